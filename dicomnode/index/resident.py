"""The vectors of the repository in memory, as a reader sees them at one revision.

A ``Resident`` never changes; what was added since is appended behind it in the same buffer and gives a new one. UIDs
and pseudonyms are held once, rows carry numbers for them. Never writes to disk or catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, select

from dicomnode.archive.regions import described_region, joined
from dicomnode.archive.schema import segments, studies, vectors
from dicomnode.archive.schema import series as series_table
from dicomnode.domain import NOT_TOLD, UNTOLD, Pseudonym, PseudoUid, Shows
from dicomnode.errors import IndexCorrupt
from dicomnode.index import segments as files
from dicomnode.index.ledger import State, check_model, read_state
from dicomnode.index.rows import SharedRows
from dicomnode.index.segments import SegmentFile, Vectors
from dicomnode.index.vectors import VectorStore

GROWTH = 1.5  # of the buffer: appending a study costs no copy of the rest, most of the time
FEW_SHUT = 0.01  # share of the rows up to which closing each study's is faster than asking each row for its study
ROWS_AT_ONCE = 10_000  # read from the catalogue: all at once would take as much memory as the vectors
SERIES_AT_ONCE = 500  # asked for by UID: databases limit the parameters of a statement
RELOADS = 10  # a merge in another process may take a file away between catalogue and disk: ask again


Columns = tuple[Vectors, NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]  # matrix, ids, codes, z


@dataclass
class Names:
    """Numbers for studies, series and patients, in order of appearance; only ever appended to."""

    studies: list[PseudoUid] = field(default_factory=list)
    series: list[PseudoUid] = field(default_factory=list)
    patients: list[Pseudonym] = field(default_factory=list)
    study_of: dict[str, int] = field(default_factory=dict)
    series_of: dict[str, int] = field(default_factory=dict)
    patient_of: dict[str, int] = field(default_factory=dict)
    study_patient: list[int] = field(default_factory=list)
    series_study: list[int] = field(default_factory=list)
    study_shows: list[Shows] = field(default_factory=list)  # of the indexed series, without UNTOLD
    described: int = 0  # series of which it is known here

    def codes(self, study: str, series: str, patient: str) -> tuple[int, int, int]:
        """Numbers of a row's study, series and patient, given on first sight."""
        if (p := self.patient_of.get(patient)) is None:
            p = self.patient_of[patient] = len(self.patients)
            self.patients.append(Pseudonym(patient))
        if (s := self.study_of.get(study)) is None:
            s = self.study_of[study] = len(self.studies)
            self.studies.append(PseudoUid(study))
            self.study_patient.append(p)
            self.study_shows.append(NOT_TOLD)
        if (e := self.series_of.get(series)) is None:
            e = self.series_of[series] = len(self.series)
            self.series.append(PseudoUid(series))
            self.series_study.append(s)
        return s, e, p

    def describe(self, shown: Mapping[str, Shows]) -> None:
        """Take in what those series show, by UID, that have come since the last call."""
        for number in range(self.described, len(self.series)):
            study, new = self.series_study[number], shown.get(self.series[number], NOT_TOLD)
            before = self.study_shows[study]
            modality = joined((before.modality, "" if new.modality in UNTOLD else new.modality))
            self.study_shows[study] = Shows(modality, joined((before.region, new.region)))
        self.described = len(self.series)


@dataclass(frozen=True)
class Resident:
    """All live vectors of one model, ascending by id.

    Attributes
    ----------
    state : State
        What was committed when this was read.
    matrix : float32 [n, dim]
        Unit vectors.
    ids : int64 [n]
        Vector ids of the catalogue.
    codes : int32 [n, 3]
        Numbers of study, series and patient in ``names``.
    z : float32 [n]
        Position in the volume, 0..1; NaN where unknown.
    shared : SharedRows
        What ``matrix`` is the beginning of, for a child process.
    """

    state: State
    names: Names
    matrix: Vectors
    ids: NDArray[np.int64]
    codes: NDArray[np.int32]
    z: NDArray[np.float32]
    shared: SharedRows
    spare: Columns

    @property
    def n(self) -> int:
        return len(self.ids)

    @property
    def study(self) -> NDArray[np.int32]:
        """Study number of each row, int32 [n]."""
        return self.codes[:, 0]

    @property
    def patient(self) -> NDArray[np.int32]:
        """Patient number of each row, int32 [n]."""
        return self.codes[:, 2]

    @cached_property
    def by_study(self) -> NDArray[np.int64]:
        """Positions grouped by study number, int64 [n]; see ``study_start``."""
        return np.argsort(self.study, kind="stable")

    @cached_property
    def study_count(self) -> NDArray[np.int64]:
        """Rows of each study number, int64."""
        return np.bincount(self.study)  # names may already know newer studies; those here are numbered without gaps

    @cached_property
    def study_start(self) -> NDArray[np.int64]:
        """Where each study begins in ``by_study``, int64."""
        return np.cumsum(self.study_count) - self.study_count

    @cached_property
    def study_patient(self) -> NDArray[np.int64]:
        """Patient number of each study number, int64."""
        return np.array(self.names.study_patient[: len(self.study_count)], dtype=np.int64)

    @cached_property
    def _by_what_they_show(self) -> dict[Shows, NDArray[np.bool_]]:
        """Studies that show the same, bool [studies]."""
        mine = self.names.study_shows[: len(self.study_count)]
        kinds = {kind: i for i, kind in enumerate(dict.fromkeys(mine))}
        numbers = np.fromiter((kinds[kind] for kind in mine), dtype=np.int64, count=len(mine))
        return {kind: numbers == i for kind, i in kinds.items()}

    def unlike(self, shows: Shows) -> NDArray[np.bool_]:
        """Studies whose headers name other modalities, or other regions of the body, than ``shows``; bool [studies].

        None where either is not told.
        """
        found = np.zeros(len(self.study_count), dtype=bool)
        for kind, mine in self._by_what_they_show.items():
            if shows.outside([kind]):
                found |= mine
        return found

    def shows(self, study: int) -> Shows:
        """Modality and region of a study's indexed series."""
        return self.names.study_shows[study]

    def patients_in(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Numbers of the patients that ``mask`` leaves open, ascending."""
        return np.flatnonzero(np.bincount(self.patient[mask]))

    def studies_in(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Numbers of the studies that ``mask`` leaves open, ascending."""
        return np.flatnonzero(np.bincount(self.study[mask]))

    def rows_of(self, study: int) -> NDArray[np.int64]:
        """Positions of a study's rows."""
        start = self.study_start[study]
        return self.by_study[start : start + self.study_count[study]]

    def open_rows(
        self,
        exclude_patients: AbstractSet[Pseudonym] = frozenset(),
        exclude_studies: AbstractSet[PseudoUid] = frozenset(),
        allow: AbstractSet[PseudoUid] | None = None,
    ) -> NDArray[np.bool_]:
        """Which rows may be answers, bool [n]: not excluded in the catalogue, not excluded here, and allowed."""
        known, count = self.names, len(self.study_count)
        is_open = np.full(count, allow is None)
        is_open[self._numbers(allow or ())] = True
        is_open[self._numbers(exclude_studies)] = False
        closed = self.state.excluded | exclude_patients
        if numbers := [known.patient_of[name] for name in closed if name in known.patient_of]:
            is_open[np.isin(self.study_patient, numbers)] = False
        shut = np.flatnonzero(~is_open)
        if self.study_count[shut].sum() > FEW_SHUT * self.n:
            return is_open[self.study]
        mask = np.ones(self.n, dtype=bool)
        for study in shut:
            mask[self.rows_of(int(study))] = False
        return mask

    def _numbers(self, uids: Iterable[PseudoUid]) -> list[int]:
        """Numbers of those studies that have rows here."""
        found = (self.names.study_of.get(uid, len(self.study_count)) for uid in uids)
        return [number for number in found if number < len(self.study_count)]


def load(store: VectorStore, previous: Resident | None = None) -> Resident:
    """What the catalogue holds now; only what is new is read when nothing was removed since ``previous``.

    Raises
    ------
    IndexCorrupt
        A segment is missing or damaged. An answer from the rest would be wrong without anybody knowing.
    ModelMismatch
        The index holds vectors of another model.
    """
    for _ in range(RELOADS):
        try:
            return _load(store, previous)
        except FileNotFoundError as gone:
            lost = gone
    raise IndexCorrupt(
        f"segment {lost.filename and str(lost.filename).rpartition('/')[2]} is missing from the index folder",
        advice=files.ADVICE,
    )


def _load(store: VectorStore, previous: Resident | None) -> Resident:
    v, s = vectors.c, segments.c
    with store.reading() as c:
        state = read_state(c)
        if previous is not None and previous.state[:2] == state[:2]:
            return previous if previous.state == state else _with_state(previous, state)
        check_model(c, store.model_id, store.dim)
        if previous is None or previous.state.removals != state.removals:
            previous = _empty(store.dim)
        last = int(previous.ids[-1]) if previous.n else -1
        query = (
            select(v.id, v.row, v.segment_id, v.study_uid, v.series_uid, v.patient, v.z)
            .where(v.id > last, v.segment_id.in_(select(s.id).where(s.model_id == store.model_id)))
            .order_by(v.id)
        )
        parts = [_columns(previous.names, rows) for rows in c.execute(query).partitions(ROWS_AT_ONCE)]
        previous.names.describe(_shown(c, previous.names.series[previous.names.described :]))
        named = {
            row.id: SegmentFile(row.name, row.n, row.dim, row.sha256, row.model_id)
            for row in c.execute(select(segments).where(s.model_id == store.model_id))
        }
    if not parts:
        return _with_state(previous, state)
    where, ids, codes, z = (np.concatenate(column) for column in zip(*parts, strict=True))
    matrix = np.empty((len(ids), store.dim), dtype=np.float32)
    for segment_id in np.unique(where[:, 0]):
        file, mine = named[int(segment_id)], where[:, 0] == segment_id
        picked = where[mine, 1]
        if picked.max() >= file.n:
            raise IndexCorrupt(f"segment {file.name} has fewer rows than the catalogue names", advice=files.ADVICE)
        matrix[mine] = files.read_segment(store.segment_folder, file)[picked]
    return _append(previous, state, (matrix, ids, codes, z))


def _room(n: int, dim: int) -> tuple[SharedRows, Columns]:
    """Unwritten columns of ``n`` rows; what is not written to takes no memory."""
    shared = SharedRows(n, dim)
    rest = (np.empty(n, dtype=np.int64), np.empty((n, 3), dtype=np.int32), np.empty(n, dtype=np.float32))
    return shared, (shared.array, *rest)


def _columns(names: Names, rows: Sequence[Row[Any]]) -> tuple[NDArray[Any], ...]:
    """Of rows of the catalogue: segment and row int64 [n, 2], and ids, codes and z of a ``Resident``."""
    where = np.array([(r.segment_id, r.row) for r in rows], dtype=np.int64)
    ids = np.fromiter((r.id for r in rows), dtype=np.int64, count=len(rows))
    codes = np.array([names.codes(r.study_uid, r.series_uid, r.patient) for r in rows], dtype=np.int32)
    z = np.array([np.nan if r.z is None else r.z for r in rows], dtype=np.float32)
    return where, ids, codes, z


def _shown(c: Connection, uids: Sequence[PseudoUid]) -> dict[str, Shows]:
    """What each series that the catalogue knows shows, as it and its study are described."""
    found: dict[str, Shows] = {}
    e, s = series_table.c, studies.c
    query = select(e.uid, e.modality, e.description, s.description.label("study")).join(studies, e.study_id == s.id)
    for start in range(0, len(uids), SERIES_AT_ONCE):
        for r in c.execute(query.where(e.uid.in_(uids[start : start + SERIES_AT_ONCE]))):
            found[r.uid] = Shows(r.modality, described_region(r.description or "", r.study or ""))
    return found


def _empty(dim: int) -> Resident:
    shared, spare = _room(0, dim)
    return Resident(State(-1, -1, frozenset()), Names(), *spare, shared=shared, spare=spare)


def _with_state(previous: Resident, state: State) -> Resident:
    return replace(previous, state=state)


def _append(
    previous: Resident,
    state: State,
    fresh: Columns,
) -> Resident:
    """A Resident of the old rows and the fresh ones; rows that an older one can see are never written to."""
    old, n = previous.n, previous.n + len(fresh[1])
    shared, spare = previous.shared, previous.spare
    if n > len(spare[1]):
        shared, spare = _room(int(n * GROWTH), shared.dim)
        _write(spare, 0, (previous.matrix, previous.ids, previous.codes, previous.z))
    _write(spare, old, fresh)
    return Resident(state, previous.names, spare[0][:n], spare[1][:n], spare[2][:n], spare[3][:n], shared, spare)


def _write(target: Columns, start: int, source: Columns) -> None:
    end = start + len(source[1])
    target[0][start:end], target[1][start:end] = source[0], source[1]
    target[2][start:end], target[3][start:end] = source[2], source[3]
