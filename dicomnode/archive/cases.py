"""What the catalogue knows of studies as cases, for who shows them: descriptions, findings, files. Reads only.

Everything is de-identified. A study of an excluded patient is never given out, whoever asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Engine

from dicomnode.archive import schema as t
from dicomnode.domain import Finding, FindingStatus, Pseudonym, PseudoUid

LABELS = "labels"  # source of cases of a LABELS.csv
IN_CHUNK = 500  # values of one IN (...), below SQLite's limit of bound variables

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CaseRow:
    """A study that may be shown. ``organisation`` and the like are empty where not known."""

    id: int
    study: PseudoUid
    patient: Pseudonym
    modality: str
    body_part: str
    manufacturer: str
    organisation: str
    age_band: str
    sex: str
    source: str
    status: FindingStatus
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class CaseFile:
    """An image object of a study: where it is in the archive (relative) and the file's SHA-256."""

    instance: PseudoUid
    path: str
    sha256: str


class Cases:
    """Queries over studies, series, instances and findings.

    Parameters
    ----------
    engine : Engine
        The catalogue.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def by_uid(self, studies: Iterable[PseudoUid]) -> dict[PseudoUid, CaseRow]:
        """The studies that are here and not excluded."""
        found: dict[PseudoUid, CaseRow] = {}
        for chunk in _chunks(list(studies)):
            found.update({row.study: row for row in self._rows(t.studies.c.uid.in_(chunk))})
        return found

    def by_id(self, row: int) -> CaseRow | None:
        """One study by its row; None where it is gone or excluded."""
        return self.by_ids([row]).get(row)

    def by_ids(self, rows: Iterable[int]) -> dict[int, CaseRow]:
        """The studies of these rows that are here and not excluded."""
        found: dict[int, CaseRow] = {}
        for chunk in _chunks(list(rows)):
            found.update({row.id: row for row in self._rows(t.studies.c.id.in_(chunk))})
        return found

    def where(self, *, status: FindingStatus | None = None, modality: str | None = None) -> set[PseudoUid]:
        """Studies with this status and this modality, where given."""
        query = sa.select(t.studies.c.uid)
        if status is not None:
            query = query.where(t.studies.c.status == status.value)
        if modality is not None:
            query = query.where(t.studies.c.modality == modality)
        with self._engine.connect() as db:
            return {PseudoUid(uid) for uid in db.execute(query).scalars()}

    def patients_since(self, when: float, only: Collection[Pseudonym] | None = None) -> set[Pseudonym]:
        """Patients with DICOM studies who came into the catalogue after a time; ``only``: of these few.

        Pictures of a LABELS.csv are nobody's: no identity came with them.
        """
        query = sa.select(t.patients.c.pseudonym).distinct().join(t.studies)
        query = query.where(t.patients.c.created > when, t.studies.c.source != LABELS)
        if only is not None:
            query = query.where(t.patients.c.pseudonym.in_(only))
        with self._engine.connect() as db:
            return {Pseudonym(p) for p in db.execute(query).scalars()}

    def files(self, row: int) -> list[CaseFile]:
        """Objects of a study that have rows and columns."""
        c = t.instances.c
        query = (
            sa.select(c.uid, c.path, c.sha256)
            .select_from(t.instances.join(t.series))
            .where(t.series.c.study_id == row, c.rows > 0, c.columns > 0)
            .order_by(c.id)
        )
        with self._engine.connect() as db:
            return [CaseFile(PseudoUid(r.uid), r.path, r.sha256) for r in db.execute(query)]

    def paths(self, instances: Sequence[PseudoUid]) -> dict[PseudoUid, str]:
        """Relative path of each instance that the archive holds."""
        found: dict[PseudoUid, str] = {}
        with self._engine.connect() as db:
            for chunk in _chunks(list(instances)):
                query = sa.select(t.instances.c.uid, t.instances.c.path).where(t.instances.c.uid.in_(chunk))
                found.update({PseudoUid(r.uid): r.path for r in db.execute(query)})
        return found

    def _rows(self, where: sa.ColumnElement[bool]) -> list[CaseRow]:
        query = (
            sa.select(t.studies, t.patients.c.pseudonym, t.patients.c.sex)
            .join(t.patients)
            .where(where, ~t.patients.c.excluded)
        )
        with self._engine.connect() as db:
            rows = db.execute(query).all()
            coded: dict[int, list[Finding]] = {row.id: [] for row in rows}
            stated = sa.select(t.findings).where(t.findings.c.study_id.in_(list(coded)))
            for f in db.execute(stated.order_by(t.findings.c.system, t.findings.c.code)):
                coded[f.study_id].append(Finding(f.system, f.code, f.display, f.source))
        return [
            CaseRow(
                id=row.id,
                study=PseudoUid(row.uid),
                patient=Pseudonym(row.pseudonym),
                modality=row.modality,
                body_part=row.body_part or "",
                manufacturer=row.manufacturer or "",
                organisation=row.organisation or "",
                age_band=row.age_band or "",
                sex=row.sex or "",
                source=row.source,
                status=FindingStatus(row.status),
                findings=tuple(coded[row.id]),
            )
            for row in rows
        ]


def _chunks(values: list[T]) -> Iterable[list[T]]:
    return (values[i : i + IN_CHUNK] for i in range(0, len(values), IN_CHUNK))
