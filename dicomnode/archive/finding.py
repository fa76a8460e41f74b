"""Queries by DICOM attributes over the catalogue: studies, series and instances that fulfil conditions, page by page.

Knows which attribute stands in which column, and nothing of the network or of UIDs of the hospital: conditions and rows
are pseudonymous. Excluded patients are never among the rows. Facts: PS3.4 C.2.2 (matching), C.6.2 (Study Root).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Engine, FromClause, func

from dicomnode.archive.schema import answers, instances, patients, result_slices, series, studies, vectors
from dicomnode.domain import ModelId, Pseudonym, PseudoUid

PAGE = 500  # rows read in one transaction: a slow peer must not hold one open
IN_CHUNK = 500  # values of one IN (...), below SQLite's limit of bound variables


class Level(IntEnum):
    """Query/Retrieve levels of the Study Root model, outermost first (PS3.4 C.6.2.1)."""

    STUDY = 0
    SERIES = 1
    IMAGE = 2


@dataclass(frozen=True, slots=True)
class OneOf:
    """Single value matching, or list of UID matching (PS3.4 C.2.2.2.1, C.2.2.2.2)."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """Wild card matching: ``*`` any characters, ``?`` one (PS3.4 C.2.2.2.4)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Between:
    """Range matching, both ends included, "" for an open end (PS3.4 C.2.2.2.5)."""

    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Condition:
    """What an attribute must be: any of ``matches``."""

    keyword: str
    matches: tuple[OneOf | Like | Between, ...]


@dataclass(frozen=True, slots=True)
class Attribute:
    """Where an attribute stands.

    Attributes
    ----------
    level : Level
        Of the entity it belongs to.
    column : ColumnElement, optional
        Its value; None: the repository keeps none and answers zero length.
    listed : bool
        ``column`` is of a lower entity: the attribute has all its different values in the study.
    unknown_matches : bool
        An entity without a value fulfils every condition, as PS3.4 C.2.2.1.2 wants of required keys.
    any_case : bool
        Upper and lower case are the same (PS3.4 C.2.2.2.1, PN only).
    """

    level: Level
    column: ColumnElement[Any] | None = None
    listed: bool = False
    unknown_matches: bool = False
    any_case: bool = False


def _number_of(counted: ColumnElement[Any], source: FromClause, where: ColumnElement[bool]) -> ColumnElement[Any]:
    return sa.select(func.count(counted)).select_from(source).where(where).scalar_subquery()


_st, _se, _in = studies.alias("st"), series.alias("se"), instances.alias("i")
_series_of = _se.join(_st, _st.c.id == _se.c.study_id)
_instances_of = _in.join(_se, _se.c.id == _in.c.series_id)
_all_of = _in.join(_series_of, _se.c.id == _in.c.series_id)
_of_patient = _st.c.patient_id == patients.c.id

ATTRIBUTES: dict[str, Attribute] = {
    "StudyInstanceUID": Attribute(Level.STUDY, studies.c.uid),
    "PatientID": Attribute(Level.STUDY, patients.c.pseudonym),
    "PatientName": Attribute(Level.STUDY, patients.c.pseudonym, any_case=True),
    "PatientSex": Attribute(Level.STUDY, patients.c.sex),
    "StudyDate": Attribute(Level.STUDY, studies.c.date, unknown_matches=True),
    "StudyTime": Attribute(Level.STUDY, unknown_matches=True),
    # Taken away, not unknown: a study asked for by its accession number must not be "found" in every other one.
    "AccessionNumber": Attribute(Level.STUDY),
    "StudyID": Attribute(Level.STUDY),
    "StudyDescription": Attribute(Level.STUDY, studies.c.description),
    "ModalitiesInStudy": Attribute(Level.STUDY, series.c.modality, listed=True),
    "SOPClassesInStudy": Attribute(Level.STUDY, instances.c.sop_class, listed=True),
    "NumberOfStudyRelatedSeries": Attribute(Level.STUDY, _number_of(_se.c.id, _se, _se.c.study_id == studies.c.id)),
    "NumberOfStudyRelatedInstances": Attribute(
        Level.STUDY, _number_of(_in.c.id, _instances_of, _se.c.study_id == studies.c.id)
    ),
    "NumberOfPatientRelatedStudies": Attribute(Level.STUDY, _number_of(_st.c.id, _st, _of_patient)),
    "NumberOfPatientRelatedSeries": Attribute(Level.STUDY, _number_of(_se.c.id, _series_of, _of_patient)),
    "NumberOfPatientRelatedInstances": Attribute(Level.STUDY, _number_of(_in.c.id, _all_of, _of_patient)),
    "SeriesInstanceUID": Attribute(Level.SERIES, series.c.uid),
    "Modality": Attribute(Level.SERIES, series.c.modality),
    "SeriesNumber": Attribute(Level.SERIES, series.c.number, unknown_matches=True),
    "SeriesDescription": Attribute(Level.SERIES, series.c.description),
    "BodyPartExamined": Attribute(Level.SERIES, studies.c.body_part),
    "Manufacturer": Attribute(Level.SERIES, studies.c.manufacturer),
    "NumberOfSeriesRelatedInstances": Attribute(
        Level.SERIES, _number_of(_in.c.id, _in, _in.c.series_id == series.c.id)
    ),
    "SOPInstanceUID": Attribute(Level.IMAGE, instances.c.uid),
    "InstanceNumber": Attribute(Level.IMAGE, instances.c.number, unknown_matches=True),
    "SOPClassUID": Attribute(Level.IMAGE, instances.c.sop_class),
    "Rows": Attribute(Level.IMAGE, instances.c.rows),
    "Columns": Attribute(Level.IMAGE, instances.c.columns),
    "NumberOfFrames": Attribute(Level.IMAGE, instances.c.frames),
}
_TABLES = {Level.STUDY: studies, Level.SERIES: series, Level.IMAGE: instances}

Row = dict[str, Any]  # keyword -> value; None or "": zero length; a list: several values


@dataclass(frozen=True, slots=True)
class Found:
    """Where an instance belongs."""

    instance: PseudoUid
    study: PseudoUid
    patient: Pseudonym
    modality: str


class Finder:
    """Answers conditions from the catalogue; reads only.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        Of ``archive.database.open_engine``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(read_only=True)
        self._globs = engine.dialect.name == "sqlite"

    def find(self, level: Level, conditions: Sequence[Condition], wanted: Collection[str]) -> Iterator[Row]:
        """Entities of a level in the order they came; read a page at a time, each as it is when it is read.

        Parameters
        ----------
        level : Level
        conditions : sequence of Condition
            All must be fulfilled.
        wanted : collection of str
            Keywords of ``ATTRIBUTES`` at this level or above.
        """
        key, after = _TABLES[level].c.id, -1
        query = self._select(level, conditions, wanted).order_by(key).limit(PAGE)
        while True:
            with self._engine.connect() as db:
                page = db.execute(query.where(key > after)).all()
                rows = self._rows(db, page, wanted)
            yield from rows
            if len(page) < PAGE:
                return
            after = page[-1].row_id

    def instances(
        self, uids: Sequence[PseudoUid], conditions: Sequence[Condition], wanted: Collection[str]
    ) -> dict[PseudoUid, Row]:
        """Those of some instances that fulfil the conditions."""
        columns = {*wanted, "SOPInstanceUID"}
        query = self._select(Level.IMAGE, conditions, columns)
        found: dict[PseudoUid, Row] = {}
        with self._engine.connect() as db:
            for start in range(0, len(uids), IN_CHUNK):
                page = db.execute(query.where(instances.c.uid.in_(uids[start : start + IN_CHUNK]))).all()
                found.update({PseudoUid(r["SOPInstanceUID"]): r for r in self._rows(db, page, columns)})
        return found

    def indexed_studies(self, conditions: Sequence[Condition]) -> set[PseudoUid]:
        """Studies of which an instance with a vector fulfils the conditions."""
        query = sa.select(studies.c.uid).distinct().select_from(_joined(Level.IMAGE).join(vectors, _HAS_VECTOR))
        with self._engine.connect() as db:
            return {PseudoUid(u) for u in db.execute(query.where(*self._where(conditions))).scalars()}

    def first_indexed(self, study: PseudoUid, conditions: Sequence[Condition]) -> PseudoUid | None:
        """The first instance of a study that has a vector and fulfils the conditions."""
        query = sa.select(instances.c.uid).select_from(_joined(Level.IMAGE).join(vectors, _HAS_VECTOR))
        query = query.where(*self._where(conditions), studies.c.uid == study).order_by(instances.c.id).limit(1)
        with self._engine.connect() as db:
            found = db.execute(query).scalar()
        return None if found is None else PseudoUid(found)

    def locate(self, uids: Collection[str]) -> Found | None:
        """The instance of the repository that has one of these UIDs."""
        query = sa.select(instances.c.uid, studies.c.uid.label("study"), patients.c.pseudonym, series.c.modality)
        query = query.select_from(_joined(Level.IMAGE)).where(instances.c.uid.in_(uids), ~patients.c.excluded)
        with self._engine.connect() as db:
            row = db.execute(query).first()
        return (
            None
            if row is None
            else Found(PseudoUid(row.uid), PseudoUid(row.study), Pseudonym(row.pseudonym), row.modality)
        )

    def kept_query(self, uids: Collection[str], model_id: ModelId) -> tuple[PseudoUid, int] | None:
        """The newest answer to a query with an instance of one of these UIDs whose key slices are kept.

        Returns
        -------
        (PseudoUid, int), optional
            The instance and the answer's row.
        """
        a, held = answers.c, sa.cast(answers.c.instances, sa.Text)
        kept = sa.select(result_slices.c.id).where(result_slices.c.answer_id == a.id).exists()
        named = sa.or_(*(held.contains(f'"{uid}"', autoescape=True) for uid in uids))
        query = sa.select(a.id, a.instances).where(kept, named, a.model_id == model_id).order_by(a.id.desc()).limit(1)
        with self._engine.connect() as db:
            row = db.execute(query).first()
        if row is None:
            return None
        return next(PseudoUid(uid) for uid in row.instances if uid in uids), int(row.id)

    def _select(self, level: Level, conditions: Sequence[Condition], wanted: Collection[str]) -> sa.Select[Any]:
        columns = [
            a.column.label(keyword)
            for keyword in wanted
            if (a := ATTRIBUTES[keyword]).column is not None and not a.listed
        ]
        query = sa.select(_TABLES[level].c.id.label("row_id"), studies.c.id.label("study_row"), *columns)
        return query.select_from(_joined(level)).where(*self._where(conditions))

    def _where(self, conditions: Sequence[Condition]) -> list[ColumnElement[bool]]:
        return [~patients.c.excluded, *(self._fulfils(c) for c in conditions)]

    def _fulfils(self, condition: Condition) -> ColumnElement[bool]:
        a = ATTRIBUTES[condition.keyword]
        if a.column is None:
            return sa.true() if a.unknown_matches else sa.false()
        column = func.lower(a.column) if a.any_case else a.column
        tests = [self._matches(column, m, any_case=a.any_case) for m in condition.matches]
        if a.unknown_matches:
            tests.append(a.column.is_(None))
            if isinstance(a.column.type, sa.String):
                tests.append(a.column == "")
        fulfilled = sa.or_(*tests)
        if not a.listed:
            return fulfilled
        inner = sa.select(series.c.id).where(series.c.study_id == studies.c.id, fulfilled)
        if a.column.table is instances:  # a listed attribute is a plain column
            inner = inner.join(instances, instances.c.series_id == series.c.id)
        return inner.correlate(studies).exists()

    def _matches(
        self, column: ColumnElement[Any], match: OneOf | Like | Between, *, any_case: bool
    ) -> ColumnElement[bool]:
        if isinstance(match, Between):
            ends = [column >= match.low] if match.low else []
            return sa.and_(column != "", *ends, *([column <= match.high] if match.high else []))
        if isinstance(match, OneOf):
            if isinstance(column.type, sa.Integer):
                return column.in_([int(v) for v in match.values])
            return column.in_([v.lower() if any_case else v for v in match.values])
        pattern = match.pattern.lower() if any_case else match.pattern
        if self._globs:  # SQLite's LIKE would not tell cases apart
            return column.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
        for special in "\\%_":
            pattern = pattern.replace(special, f"\\{special}")
        return column.like(pattern.replace("*", "%").replace("?", "_"), escape="\\")

    def _rows(self, db: sa.Connection, page: Sequence[sa.Row[Any]], wanted: Collection[str]) -> list[Row]:
        listed = {k: self._listed(db, k, {r.study_row for r in page}) for k in wanted if ATTRIBUTES[k].listed}
        rows = []
        for record in page:
            values = record._mapping
            row: Row = {k: values.get(k) for k in wanted}
            row.update({k: values_of.get(record.study_row, []) for k, values_of in listed.items()})
            rows.append(row)
        return rows

    def _listed(self, db: sa.Connection, keyword: str, study_rows: Collection[int]) -> dict[int, list[str]]:
        column = ATTRIBUTES[keyword].column
        assert column is not None
        query = sa.select(series.c.study_id, column).distinct().where(series.c.study_id.in_(study_rows))
        if column.table is instances:  # a listed attribute is a plain column
            query = query.join_from(series, instances, instances.c.series_id == series.c.id)
        found: dict[int, list[str]] = {}
        for study_row, value in db.execute(query.order_by(column)):
            found.setdefault(study_row, []).append(value)
        return found


_HAS_VECTOR = vectors.c.instance_uid == instances.c.uid


def _joined(level: Level) -> FromClause:
    joined: FromClause = studies.join(patients, patients.c.id == studies.c.patient_id)
    if level >= Level.SERIES:
        joined = joined.join(series, series.c.study_id == studies.c.id)
    if level >= Level.IMAGE:
        joined = joined.join(instances, instances.c.series_id == series.c.id)
    return joined
