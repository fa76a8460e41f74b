"""Tables of the spool: which received objects lie in the identified zone, and which job has claimed them.

Identified data: the file is ``identified/spool.sqlite3`` and never leaves that folder (mode 0700). Nothing here
belongs to the catalogue, which is de-identified and lives in a database of its own.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, text

metadata = MetaData()


class JobState(StrEnum):
    """Where a job stands. ``done`` and ``discarded`` are final: their originals may be removed."""

    QUEUED = "queued"
    RUNNING = "running"
    QUARANTINED = "quarantined"
    ANSWERED = "answered"  # computed; originals wait until every result is delivered
    DONE = "done"
    DISCARDED = "discarded"

    @property
    def final(self) -> bool:
        return self in (JobState.DONE, JobState.DISCARDED)


studies = Table(
    "studies",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # The same study sent by two peers, or to two of our AE titles, is two studies: another role, another answer.
    Column("study_key", String, nullable=False, unique=True),
    Column("study_uid", String, nullable=False),  # empty when the data set could not be read
    Column("called", String, nullable=False),
    Column("calling", String, nullable=False),
    Column("role", String, nullable=False),
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,  # a row id is never used again, so an old job can never point at a new study
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("generation", Integer, nullable=False),  # 1 = first job of this study
    Column("role", String, nullable=False),
    Column("called", String, nullable=False),
    Column("calling", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("answer_id", Integer),  # row of the catalogue's answers
    Column("note", String, nullable=False, server_default=""),  # a stable word or one line, never identifying
    sqlite_autoincrement=True,
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=True, index=True),
    Column("sop_uid", String, nullable=False),
    Column("sop_class", String, nullable=False),
    Column("transfer_syntax", String, nullable=False),
    Column("series_uid", String, nullable=False),
    Column("sha256", String, nullable=False),  # of the data set as received, without preamble and file meta
    Column("bytes", Integer, nullable=False),
    Column("path", String, nullable=False, unique=True),  # relative to identified/spool; random, never a UID
    Column("image", Boolean, nullable=False),
    Column("version", Integer, nullable=False),  # 1 = first; more = same SOP Instance UID, other bytes
    Column("received", Float, nullable=False),
    Column("removing", Boolean, nullable=False, server_default=text("0")),
    sqlite_autoincrement=True,
)

# What a person who looked at a held instance decided about it (``deid.by_hand``), as text; goes with the instance.
decisions = Table(
    "decisions",
    metadata,
    Column("instance_id", Integer, primary_key=True, autoincrement=False),
    Column("by_hand", String, nullable=False),
)

# An instance being removed is already gone for a new arrival: the same object sent again starts afresh.
Index(
    "instances_once",
    instances.c.study_id,
    instances.c.sop_uid,
    instances.c.sha256,
    unique=True,
    sqlite_where=instances.c.removing == text("0"),
)
Index("instances_unclaimed", instances.c.study_id, sqlite_where=instances.c.job_id.is_(None))
