"""Studies, patients and findings of the repository. De-identified throughout; every write is idempotent.

A step of the workflow may run again after a kill, so adding the same study twice changes nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from dicomnode.archive import schema as t
from dicomnode.archive.database import scrub
from dicomnode.archive.records import InstanceRecord
from dicomnode.domain import LABEL_SCHEME, Finding, FindingStatus, Pseudonym, PseudoUid
from dicomnode.errors import NotFound


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An object of the archive: its record, where its file is (relative), and the file's SHA-256."""

    record: InstanceRecord
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class KnownInstance:
    """An instance that the catalogue already holds."""

    uid: PseudoUid
    path: str
    sha256: str


class Catalogue:
    """Queries and writes over the tables of ``archive.schema``."""

    def __init__(self, engine: Engine, *, organisation: str = "") -> None:
        self.engine = engine
        self._organisation = organisation

    def add_study(self, instances: Sequence[StoredInstance], *, source: str) -> None:
        """Add or complete one study in one transaction. All instances belong to it."""
        if not instances:
            return
        first = instances[0].record
        now = time.time()
        with self.engine.begin() as db:
            patient = _ensure(
                db, t.patients, {"pseudonym": first.patient}, {"sex": first.sex, "excluded": False, "created": now}
            )
            study = _ensure(
                db,
                t.studies,
                {"uid": first.study_uid},
                {
                    "patient_id": patient,
                    "date": first.study_date,
                    "modality": first.modality,
                    "description": first.study_description,
                    "body_part": first.body_part,
                    "age_band": first.age_band,
                    "manufacturer": first.manufacturer,
                    "organisation": self._organisation[:64],
                    "source": source,
                    "status": FindingStatus.UNKNOWN.value,
                    "created": now,
                },
            )
            series: dict[str, int] = {}
            for item in instances:
                rec = item.record
                if rec.series_uid not in series:
                    series[rec.series_uid] = _ensure(
                        db,
                        t.series,
                        {"uid": rec.series_uid},
                        {
                            "study_id": study,
                            "modality": rec.modality,
                            "number": rec.series_number,
                            "description": rec.series_description,
                        },
                    )
                row = _instance_row(item, series[rec.series_uid])
                instance = _ensure(db, t.instances, {"uid": rec.uid}, row)
                db.execute(t.instances.update().where(t.instances.c.id == instance).values(**row))

    def known_instances(self, study: PseudoUid) -> list[KnownInstance]:
        """Instances of a study in the archive, by UID."""
        query = (
            sa.select(t.instances.c.uid, t.instances.c.path, t.instances.c.sha256)
            .join(t.series, t.series.c.id == t.instances.c.series_id)
            .join(t.studies, t.studies.c.id == t.series.c.study_id)
            .where(t.studies.c.uid == study)
            .order_by(t.instances.c.uid)
        )
        with self.engine.connect() as db:
            return [KnownInstance(PseudoUid(r.uid), r.path, r.sha256) for r in db.execute(query)]

    def path_of(self, instance: PseudoUid) -> str | None:
        """Relative path of an instance's file, None when the archive does not hold it."""
        with self.engine.connect() as db:
            value = db.execute(sa.select(t.instances.c.path).where(t.instances.c.uid == instance)).scalar()
        return None if value is None else str(value)

    def study_sources(self) -> list[tuple[PseudoUid, Pseudonym, str]]:
        """(study, patient, source) of every study, oldest first."""
        query = sa.select(t.studies.c.uid, t.patients.c.pseudonym, t.studies.c.source).join(t.patients)
        with self.engine.connect() as db:
            rows = db.execute(query.order_by(t.studies.c.id))
            return [(PseudoUid(r.uid), Pseudonym(r.pseudonym), r.source) for r in rows]

    def source_of(self, study: PseudoUid) -> str:
        """Where a study came from ("received", "index-add", "labels"), "" when it is not here."""
        with self.engine.connect() as db:
            return str(db.execute(sa.select(t.studies.c.source).where(t.studies.c.uid == study)).scalar() or "")

    def status_of(self, study: PseudoUid) -> FindingStatus:
        """Whether a source states findings of a study; unknown too where it is not here."""
        with self.engine.connect() as db:
            value = db.execute(sa.select(t.studies.c.status).where(t.studies.c.uid == study)).scalar()
        return FindingStatus.UNKNOWN if value is None else FindingStatus(value)

    def mark_chosen(self, choices: dict[PseudoUid, str]) -> None:
        """Record why each series was embedded (a stable word)."""
        with self.engine.begin() as db:
            for uid, reason in choices.items():
                db.execute(t.series.update().where(t.series.c.uid == uid).values(chosen=reason[:64]))

    def was_chosen(self, study: PseudoUid) -> bool:
        """Whether a series of the study was ever embedded: the study is, or was, a case."""
        chosen = sa.select(t.series.c.id).select_from(t.series.join(t.studies))
        chosen = chosen.where(t.studies.c.uid == study, t.series.c.chosen.is_not(None))
        with self.engine.connect() as db:
            return db.execute(chosen.limit(1)).first() is not None

    def set_findings(self, study: PseudoUid, findings: Iterable[Finding], status: FindingStatus) -> None:
        """Replace a study's findings and its status.

        Raises
        ------
        NotFound
            If the catalogue does not hold the study.
        """
        with self.engine.begin() as db:
            study_id = db.execute(sa.select(t.studies.c.id).where(t.studies.c.uid == study)).scalar()
            if study_id is None:
                raise NotFound("no such study in the repository")
            stated = {}  # a file may say a finding twice
            for f in findings:
                system, code = f.system[:32], f.code[:64]
                stated[system, code] = (system, code, f.display[:255], f.source[:64] or "stated")
            c = t.findings.c
            known = db.execute(sa.select(c.system, c.code, c.display, c.source).where(c.study_id == study_id))
            if sorted(stated.values()) != sorted(tuple(row) for row in known):
                db.execute(t.findings.delete().where(c.study_id == study_id))
                for row in stated.values():
                    columns = ("system", "code", "display", "source")
                    values = dict(zip(columns, row, strict=True))
                    db.execute(t.findings.insert().values(study_id=study_id, **values))
            db.execute(t.studies.update().where(t.studies.c.id == study_id).values(status=status.value))

    def findings(self, study: PseudoUid) -> list[Finding]:
        """Findings of a study."""
        query = sa.select(t.findings).join(t.studies).where(t.studies.c.uid == study).order_by(t.findings.c.id)
        with self.engine.connect() as db:
            return [Finding(r.system, r.code, r.display, r.source) for r in db.execute(query)]

    def known_findings(self) -> list[tuple[PseudoUid, Pseudonym, FindingStatus, tuple[Finding, ...]]]:
        """Every study of a patient who is not excluded: UID, patient, status and findings; by UID."""
        s, f = t.studies.c, t.findings.c
        query = sa.select(s.id, s.uid, s.status, t.patients.c.pseudonym).join(t.patients)
        query = query.where(~t.patients.c.excluded).order_by(s.uid)
        found: dict[int, list[Finding]] = {}
        with self.engine.connect() as db:
            rows = db.execute(query).all()
            for row in db.execute(sa.select(t.findings).order_by(f.system, f.code)):
                found.setdefault(row.study_id, []).append(Finding(row.system, row.code, row.display, row.source))
        return [
            (PseudoUid(r.uid), Pseudonym(r.pseudonym), FindingStatus(r.status), tuple(found.get(r.id, ())))
            for r in rows
        ]

    def studies_with_finding(self, text: str) -> set[PseudoUid]:
        """Studies whose findings hold every word of ``text``, whatever the case.

        A word is found at the start of a display's words, and anywhere in a code; a label's code is a word, too.
        """
        words = [(word, _at_start(word)) for word in text.casefold().split()]
        said: dict[PseudoUid, tuple[str, str]] = {}
        with self.engine.connect() as db:
            f = t.findings.c
            for row in db.execute(sa.select(t.studies.c.uid, f.system, f.display, f.code).join(t.findings)):
                names, codes = said.get(row.uid, ("", ""))
                display, code = row.display.casefold(), row.code.casefold()  # here: SQLite folds ASCII only
                names += f"\n{display}"
                if row.system == LABEL_SCHEME:
                    names += f"\n{code}"
                else:
                    codes += f"\n{code}"
                said[row.uid] = names, codes
        return {
            uid
            for uid, (names, codes) in said.items()
            if words and all(start.search(names) or word in codes for word, start in words)
        }

    def patient_of(self, study: PseudoUid) -> Pseudonym | None:
        """Pseudonym of the study's patient, None when the study is not here."""
        query = sa.select(t.patients.c.pseudonym).join(t.studies).where(t.studies.c.uid == study)
        with self.engine.connect() as db:
            value = db.execute(query).scalar()
        return None if value is None else Pseudonym(value)

    def studies_of(self, patient: Pseudonym) -> list[PseudoUid]:
        """Studies of a patient."""
        query = sa.select(t.studies.c.uid).join(t.patients).where(t.patients.c.pseudonym == patient)
        with self.engine.connect() as db:
            return [PseudoUid(u) for u in db.execute(query).scalars()]

    def remove_study(self, study: PseudoUid) -> bool:
        """Remove a study's rows, and its patient's when it was the last. Returns whether it was there."""
        with self.engine.begin() as db:
            row = db.execute(sa.select(t.studies.c.id, t.studies.c.patient_id).where(t.studies.c.uid == study)).first()
            if row is None:
                return False
            db.execute(t.studies.delete().where(t.studies.c.id == row.id))
            left = db.execute(
                sa.select(sa.func.count()).select_from(t.studies).where(t.studies.c.patient_id == row.patient_id)
            ).scalar_one()
            if left == 0:
                db.execute(t.patients.delete().where(t.patients.c.id == row.patient_id, ~t.patients.c.excluded))
        return True

    def exclude_patient(self, patient: Pseudonym, excluded: bool = True) -> None:
        """Keep a patient's studies out of every search from now on, or no longer (``excluded`` False).

        Raises
        ------
        NotFound
            If the catalogue holds no such patient.
        """
        with self.engine.begin() as db:
            done = db.execute(t.patients.update().where(t.patients.c.pseudonym == patient).values(excluded=excluded))
            if done.rowcount == 0:
                raise NotFound("no such patient in the repository")

    def is_excluded(self, patient: Pseudonym) -> bool:
        """Whether a patient is kept out of every search."""
        with self.engine.connect() as db:
            query = sa.select(t.patients.c.excluded).where(t.patients.c.pseudonym == patient)
            return bool(db.execute(query).scalar())

    def move_patient(self, former: Pseudonym, kept: Pseudonym) -> int:
        """Give the studies of one pseudonym to another of the same person; how many. One excluded, both are."""
        p = t.patients
        with self.engine.begin() as db:
            old = db.execute(sa.select(p).where(p.c.pseudonym == former)).first()
            if old is None:
                return 0
            known = {"sex": old.sex, "excluded": old.excluded, "created": old.created}
            patient = _ensure(db, p, {"pseudonym": kept}, known)
            if old.excluded:
                db.execute(p.update().where(p.c.id == patient).values(excluded=True))
            theirs = t.studies.update().where(t.studies.c.patient_id == old.id)
            moved = db.execute(theirs.values(patient_id=patient)).rowcount
            db.execute(p.delete().where(p.c.id == old.id))
        return int(moved)

    def replace_object(self, instance: PseudoUid, sha256: str, size: int, study_date: str) -> None:
        """The file of an instance is written anew with other dates: its hash and size, and its study's date."""
        with self.engine.begin() as db:
            mine = t.instances.c.uid == instance
            db.execute(t.instances.update().where(mine).values(sha256=sha256, bytes=size))
            series = sa.select(t.instances.c.series_id).where(mine)
            study = sa.select(t.series.c.study_id).where(t.series.c.id.in_(series))
            db.execute(t.studies.update().where(t.studies.c.id.in_(study)).values(date=study_date))

    def forget(self, studies: Sequence[PseudoUid], patients: Sequence[Pseudonym], jobs: Sequence[int]) -> None:
        """Delete what is told of studies and jobs elsewhere (provenance, quarantine), and patients, excluded or not."""
        with self.engine.begin() as db:
            for study in studies:
                db.execute(t.provenance.delete().where(t.provenance.c.study_uid == study))
                db.execute(t.quarantine.delete().where(t.quarantine.c.place == study))
            db.execute(t.quarantine.delete().where(t.quarantine.c.job_id.in_(jobs)))
            left = sa.select(t.studies.c.patient_id)
            for patient in patients:
                mine = t.patients.c.pseudonym == patient
                db.execute(t.patients.delete().where(mine, t.patients.c.id.not_in(left)))

    def scrub(self) -> bool:
        """Leave no byte of deleted rows in the database's file; whether that was done."""
        return scrub(self.engine)

    def note(self, study: PseudoUid, event: str, detail: dict[str, Any]) -> None:
        """Append to the provenance of a study; an identical note is not repeated (steps may run again)."""
        with self.engine.begin() as db:
            same = db.execute(
                sa.select(t.provenance.c.detail).where(t.provenance.c.study_uid == study, t.provenance.c.event == event)
            ).scalars()
            if detail in list(same):
                return
            db.execute(t.provenance.insert().values(study_uid=study, event=event, detail=detail, created=time.time()))

    def get(self, key: str) -> str | None:
        """A value that binds this repository (model_id, vault check)."""
        with self.engine.connect() as db:
            return db.execute(sa.select(t.nodes.c.value).where(t.nodes.c.key == key)).scalar()

    def put(self, key: str, value: str) -> None:
        """Set such a value."""
        with self.engine.begin() as db:
            db.execute(t.nodes.delete().where(t.nodes.c.key == key))
            db.execute(t.nodes.insert().values(key=key, value=value))


def _at_start(word: str) -> re.Pattern[str]:
    """Finds a folded word where a word begins, but not behind "non-": "covid" is not in non-COVID."""
    if word[0].isalpha() and word[0].upper() == word[0]:  # a script without cases may write no gaps between words
        return re.compile(re.escape(word))
    return re.compile(rf"(?<![^\W_])(?<!\bnon[-_]){re.escape(word)}")


def _ensure(db: Connection, table: sa.Table, unique: dict[str, Any], values: dict[str, Any]) -> int:
    """Id of the row with these unique values, inserted when missing. The transaction is IMMEDIATE: no race."""
    where = [table.c[k] == v for k, v in unique.items()]
    found = db.execute(sa.select(table.c.id).where(*where)).scalar()
    if found is not None:
        return int(found)
    return int(db.execute(table.insert().values(**unique, **values)).inserted_primary_key[0])  # type: ignore[index]


def _instance_row(item: StoredInstance, series_id: int) -> dict[str, Any]:
    rec = item.record
    return {
        "series_id": series_id,
        "sop_class": rec.sop_class,
        "transfer_syntax": rec.transfer_syntax,
        "number": rec.number,
        "frames": rec.frames,
        "rows": rec.rows,
        "columns": rec.columns,
        "path": item.path,
        "sha256": item.sha256,
        "bytes": rec.bytes,
    }
