"""Tables of the catalogue: what the repository holds and what was answered. De-identified throughout.

No column here may hold a value from the hospital: UIDs are pseudonymous, dates shifted, patients random ids. What
identifies stays in the spool and outbox databases (zone "identified"). Changes to these tables go with an Alembic
revision in ``archive/migrations``; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

UID = String(64)  # PS3.5 9.1: at most 64 characters

patients = Table(
    "patients",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pseudonym", String(64), nullable=False, unique=True),
    Column("sex", String(4)),
    Column("excluded", Boolean, nullable=False, default=False),  # "index exclude": kept, never searched
    Column("created", Float, nullable=False),  # seconds since the epoch, UTC; so are all times here
)

studies = Table(
    "studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", UID, nullable=False, unique=True),
    Column("patient_id", ForeignKey("patients.id"), nullable=False, index=True),
    Column("date", String(8)),  # shifted
    Column("modality", String(16), nullable=False),  # of the indexed images
    Column("description", String(64)),  # cleaned
    Column("body_part", String(16)),
    Column("age_band", String(8)),  # ten years wide, "90+"
    Column("manufacturer", String(64)),
    Column("organisation", String(64)),
    Column("source", String(32), nullable=False),  # "received", "index-add", "labels"
    Column("status", String(8), nullable=False),  # domain.FindingStatus of the case
    Column("created", Float, nullable=False),
)

series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", UID, nullable=False, unique=True),
    Column("study_id", ForeignKey("studies.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("modality", String(16), nullable=False),
    Column("number", Integer),
    Column("description", String(64)),
    Column("chosen", String(64)),  # why the series was embedded, a stable word; null: it was not
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", UID, nullable=False, unique=True),
    Column("series_id", ForeignKey("series.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("sop_class", UID, nullable=False),
    Column("transfer_syntax", UID, nullable=False),
    Column("number", Integer),
    Column("frames", Integer, nullable=False, default=1),
    Column("rows", Integer),
    Column("columns", Integer),
    Column("path", String(255), nullable=False),  # relative to the archive
    Column("sha256", String(64), nullable=False),  # of the stored file
    Column("bytes", Integer, nullable=False),
)

findings = Table(
    "findings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("studies.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("system", String(32), nullable=False),
    Column("code", String(64), nullable=False),
    Column("display", String(255), nullable=False),
    Column("source", String(64), nullable=False),
    UniqueConstraint("study_id", "system", "code"),
)

segments = Table(
    "segments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),  # file name in the index folder
    Column("model_id", String(80), nullable=False, index=True),
    Column("n", Integer, nullable=False),
    Column("dim", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created", Float, nullable=False),
)

vectors = Table(
    "vectors",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("segment_id", ForeignKey("segments.id"), nullable=False, index=True),
    Column("row", Integer, nullable=False),  # row in the segment
    Column("study_uid", UID, nullable=False, index=True),
    Column("series_uid", UID, nullable=False),
    Column("instance_uid", UID, nullable=False),
    Column("frame", Integer, nullable=False, default=0),
    Column("z", Float),
    Column("patient", String(64), nullable=False, index=True),  # pseudonym
    UniqueConstraint("segment_id", "row"),
)

answers = Table(
    "answers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", String(32), nullable=False, unique=True),  # 128 random bits, hex: the link /v/r/<token>
    Column("study_uid", UID, nullable=False, index=True),
    Column("set_hash", String(64), nullable=False),  # of the pseudonymous SOP Instance UIDs
    Column("instances", JSON, nullable=False),  # those UIDs
    Column("model_id", String(80), nullable=False),
    Column("role", String(16), nullable=False),
    Column("accession", String(64), nullable=False, default=""),  # keyed hash, for "results find"
    Column("patient", String(64)),  # pseudonym of the query's patient; null: not known
    Column("instance_number", Integer, nullable=False),  # of the SR in series 9901
    Column("predecessor_id", ForeignKey("answers.id")),
    Column("body", JSON, nullable=False),  # domain.Answer.as_json()
    Column("created", Float, nullable=False),
    UniqueConstraint("study_uid", "set_hash", "model_id"),
)

results = Table(
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("answer_id", ForeignKey("answers.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # "sr", "sr-enhanced", "contact-sheet"
    Column("destination", String(64), nullable=False),  # name of the peer
    Column("state", String(16), nullable=False),  # pending, delivered, failed
    Column("attempts", Integer, nullable=False, default=0),
    Column("resends", Integer, nullable=False, default=0),  # sent again because the study came again, or by hand
    Column("next_try", Float, nullable=False, default=0.0),
    Column("error", String(255)),  # one line, de-identified
    Column("created", Float, nullable=False),
    Column("delivered", Float),
    UniqueConstraint("answer_id", "kind", "destination"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("reason", String(32), nullable=False),  # stable word, docs/quarantine.md
    Column("line", String(255), nullable=False),  # one line for people, de-identified
    Column("place", String(64)),  # tag or step
    Column("advice", String(255)),
    Column("state", String(16), nullable=False),  # held, released, discarded
    Column("job_id", Integer, index=True),  # row of the spool's jobs; null: a file of "index add"
    Column("created", Float, nullable=False),
)

provenance = Table(
    "provenance",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_uid", UID, nullable=False, index=True),
    Column("event", String(32), nullable=False),  # deidentified, indexed, answered, delivered, removed, excluded
    Column("detail", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

nodes = Table(  # what this repository is bound to, and what it remembers
    "node",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

result_slices = Table(  # de-identified key slices of a query, kept result_days for the viewer
    "result_slices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("answer_id", ForeignKey("answers.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("instance_uid", UID, nullable=False),
    Column("frame", Integer, nullable=False, default=0),
    Column("path", String(255), nullable=False),  # relative to the results folder
    Column("vector", LargeBinary, nullable=False),  # float32, little endian
    Column("z", Float),  # position in the volume, 0..1
)

users = Table(  # of the web side
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),  # lower case
    Column("hash", String(255), nullable=False),  # argon2id, PHC string
    Column("admin", Boolean, nullable=False, default=False),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("created", Float, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),  # hex SHA-256 of the cookie's value, never the value
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), index=True),  # null: the holder of a link
    Column("scope", String(32)),  # the one result that is opened; null: as the user may
    Column("csrf", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("last_used", Float, nullable=False),
    Column("expires", Float, nullable=False, index=True),  # whatever the use
)

Index("ix_vectors_series", vectors.c.series_uid)
# Who is excluded is read before every search; each database recognises the condition as it writes it in queries.
Index(
    "ix_patients_excluded",
    patients.c.pseudonym,
    sqlite_where=text("excluded = 1"),
    postgresql_where=patients.c.excluded,
)
