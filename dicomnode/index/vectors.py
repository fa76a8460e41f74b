"""The vector store: which slice has which vector, in immutable segments named by the catalogue.

A file is on disk (fsync of file and folder) before the one transaction that makes it count; a file without a row is an
orphan and is swept. Never changes a file in place, never mixes models in a file, never searches. Many processes
may read and write one folder: writers take a file lock, readers compare ``state()`` and load what is new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, bindparam, delete, func, insert, select, update

from dicomnode.archive.schema import segments, vectors
from dicomnode.domain import ModelId, Pseudonym, PseudoUid, SliceRef
from dicomnode.errors import IndexCorrupt, InputError, ModelMismatch, StorageFull
from dicomnode.index import ledger, snapshot
from dicomnode.index import segments as files
from dicomnode.index.ledger import State
from dicomnode.index.segments import SegmentFile, Vectors

log = structlog.get_logger(__name__)

NORM_TOLERANCE = 1e-3  # float32 rounding over 4,096 dimensions stays below 1e-4
MERGE_FAN = 16  # segments of one size class before they are merged; a row is rewritten once a class
MAX_ROWS = 65_536  # of a merged segment: 64 MiB at 256 dimensions, what a removal may have to rewrite
IN_CHUNK = 500  # values of one IN (...), below SQLite's limit of bound variables

Key = tuple[str, str, str, int]  # study, series, instance, frame


class _Merged(NamedTuple):
    """A new segment made of rows of old ones: ids of its vectors in order."""

    file: SegmentFile
    ids: list[int]


def check_vectors(rows: NDArray[Any], dim: int, what: str) -> Vectors:
    """``rows`` as contiguous float32 [n, dim], each finite and of length 1; else a clear error.

    Raises
    ------
    ModelMismatch
        Another dimension than the index has.
    InputError
        Another type or rank, NaN or infinite values, or a length that is not 1.
    """
    if rows.ndim != 2 or rows.dtype != np.float32:
        raise InputError(f"{what} must be float32 of shape [n, {dim}], not {rows.dtype} of rank {rows.ndim}")
    if rows.shape[1] != dim:
        raise ModelMismatch(f"{what} have {rows.shape[1]} dimensions, the index has {dim}")
    if not np.isfinite(rows).all():
        raise InputError(f"{what} hold NaN or infinite values", advice="check the image and the model pack")
    norms = np.linalg.norm(rows, axis=1)
    if rows.shape[0] and float(np.abs(norms - 1.0).max()) > NORM_TOLERANCE:
        raise InputError(f"{what} are not of length 1", advice="L2-normalise them first")
    return np.ascontiguousarray(rows)


class VectorStore:
    """Vectors of one model in one folder and one catalogue.

    Parameters
    ----------
    folder : Path
        The index folder; ``segments/`` and ``snapshots/`` are made in it.
    engine : sqlalchemy.Engine
        The catalogue (``dicomnode.archive.database.open_engine``).
    model_id : ModelId
        The model whose vectors these are; vectors of another are refused.
    dim : int
        Dimensions of a vector.
    """

    def __init__(self, folder: Path, engine: Engine, model_id: ModelId, dim: int) -> None:
        self.folder = folder
        self.segment_folder = folder / "segments"
        self.snapshot_folder = folder / "snapshots"
        self.engine = engine
        self.model_id = model_id
        self.dim = dim
        with files.storage_errors("index folder"):
            for made in (self.segment_folder, self.snapshot_folder):
                made.mkdir(parents=True, exist_ok=True)

    def add(self, refs: Sequence[SliceRef], rows: Vectors, *, beside: Sequence[int] | None = None) -> int:
        """Add one vector a slice; slices that are there already are left as they are.

        Parameters
        ----------
        refs : sequence of SliceRef
            Where each row belongs.
        rows : float32 [n, dim]
            Unit vectors, one a ref.
        beside : sequence of int, optional
            Of another model, one a ref: a slice is added only where that vector is still there. It is not where the
            slice was removed, or replaced, since it was read.

        Returns
        -------
        int
            How many were added: 0 when all were there.

        Raises
        ------
        InputError, ModelMismatch, StorageFull, Busy
        """
        rows = check_vectors(rows, self.dim, "the vectors to add")
        if len(refs) != len(rows):
            raise InputError(f"{len(refs)} slices but {len(rows)} vectors")
        keys = [_key(ref) for ref in refs]
        if len(set(keys)) != len(keys):
            raise InputError("the same slice is given twice", advice="one vector for each instance and frame")
        with self.writing():
            self._check_model()
            there = self._existing(refs)
            live = None if beside is None else set(self.instances(beside))
            fresh = [
                i for i, key in enumerate(keys) if key not in there and (live is None or (beside or ())[i] in live)
            ]
            if not fresh:
                return 0
            file = files.write_segment(self.segment_folder, rows[fresh], self.model_id)
            try:
                self._commit_new(file, [refs[i] for i in fresh])
            except BaseException:
                (self.segment_folder / file.name).unlink(missing_ok=True)
                raise
            try:
                self._merge_small()
            except (IndexCorrupt, StorageFull) as fault:  # what was added is safe; 'index verify' names the fault too
                log.warning("segments_not_merged", line=str(fault))
        log.info("vectors_added", vectors=len(fresh))
        return len(fresh)

    def remove_study(self, uid: PseudoUid) -> int:
        """Remove all vectors of a study, of every model, from the disk too; how many there were."""
        return self._remove(vectors.c.study_uid == uid)

    def remove_patient(self, pseudonym: Pseudonym) -> int:
        """Remove all vectors of a patient, of every model, from the disk too; how many there were."""
        return self._remove(vectors.c.patient == pseudonym)

    def move_patient(self, former: Pseudonym, kept: Pseudonym) -> int:
        """Give all vectors of a patient, of every model, to another pseudonym of the person; how many there were."""
        with self.writing(), self.engine.begin() as c:
            mine = vectors.c.patient == former
            moved = c.execute(update(vectors).where(mine).values(patient=kept)).rowcount
            if moved:
                ledger.advance(c, ledger.REVISION, 1)
                ledger.advance(c, ledger.REMOVALS, 1)  # so that readers load the patients again
        return moved

    def admit(self) -> None:
        """Let this model in beside those whose vectors are here, until ``discard_other_models``.

        For taking over from another model: both are searched apart, each by its own ``VectorStore``.
        """
        with self.writing(), self.engine.begin() as c:
            ledger.admit(c, {self.model_id, *c.scalars(select(segments.c.model_id).distinct())})

    def discard_other_models(self, only: ModelId | None = None) -> int:
        """Remove the vectors of every other model, or of one; how many there were."""
        others = segments.c.model_id != self.model_id
        removed = self._remove(others if only is None else others & (segments.c.model_id == only))
        with self.writing(), self.engine.begin() as c:
            ledger.admit(c, {self.model_id, *c.scalars(select(segments.c.model_id).distinct())})
        return removed

    def discard_damaged(self) -> list[PseudoUid]:
        """Give up segments that are missing or damaged, with all vectors of the studies in them.

        Returns
        -------
        list of PseudoUid
            The studies that must be embedded again, sorted.
        """
        v = vectors.c
        with self.writing():
            bad = [segment_id for segment_id, file in self._segments().items() if self._fault(file)]
            if not bad:
                return []
            with self.reading() as c:
                lost = set(c.scalars(select(v.study_uid).where(v.segment_id.in_(bad)).distinct()))
            studies = select(v.study_uid).where(v.segment_id.in_(bad))
            self._rewrite_without(v.study_uid.in_(studies), damaged=bad)  # a study is whole or absent
        log.warning("damaged_segments_discarded", segments=len(bad), studies=len(lost))
        return sorted(PseudoUid(uid) for uid in lost)

    def compact(self) -> int:
        """Merge small segments until no size class holds many; how many files went away."""
        with self.writing():
            return self._merge_small()

    def sweep(self) -> int:
        """Delete files that no row names (a writer was killed) and snapshots of removed vectors; how many."""
        with self.writing():
            orphans = self._orphans()
            for path in orphans:
                path.unlink(missing_ok=True)
            swept = len(orphans) + snapshot.drop_stale(self.snapshot_folder, self.state().removals, self._all_ids())
        if swept:
            log.info("index_swept", files=swept)
        return swept

    def state(self) -> State:
        """Revision, removals and excluded patients, as committed now. Cheap: two small reads."""
        with self.reading() as c:
            return ledger.read_state(c)

    def count(self) -> int:
        """Number of vectors of this model."""
        with self.reading() as c:
            return int(c.scalar(select(func.coalesce(func.sum(segments.c.n), 0)).where(self._mine())) or 0)

    def has_study(self, uid: PseudoUid) -> bool:
        """Whether the study has vectors of this model."""
        query = select(vectors.c.id).join(segments).where(self._mine(), vectors.c.study_uid == uid).limit(1)
        with self.reading() as c:
            return c.scalar(query) is not None

    def segment_names(self) -> list[str]:
        """Names of the segment files of this model."""
        return [file.name for file in self._segments().values() if file.model_id == self.model_id]

    def live_ids(self) -> NDArray[np.int64]:
        """Ids of all vectors of this model, ascending."""
        with self.reading() as c:
            found = c.scalars(select(vectors.c.id).join(segments).where(self._mine()).order_by(vectors.c.id)).all()
        return np.asarray(found, dtype=np.int64)

    def other_models(self) -> list[str]:
        """Models other than this one that have vectors here."""
        with self.reading() as c:
            return sorted(c.scalars(select(segments.c.model_id).where(~self._mine()).distinct()))

    def strangers(self) -> list[str]:
        """Models that have vectors here beside which this one was not admitted: it is refused until it is."""
        with self.reading() as c:
            admitted = ledger.admitted(c)
        return [] if self.model_id in admitted else self.other_models()

    def instances(self, ids: Sequence[int]) -> dict[int, PseudoUid]:
        """SOP Instance UID of each vector id that is still there."""
        found: dict[int, PseudoUid] = {}
        with self.reading() as c:
            for chunk in _chunks(list(ids)):
                rows = c.execute(select(vectors.c.id, vectors.c.instance_uid).where(vectors.c.id.in_(chunk)))
                found.update({row.id: PseudoUid(row.instance_uid) for row in rows})
        return found

    def places(self, ids: Sequence[int]) -> dict[int, tuple[PseudoUid, int]]:
        """SOP Instance UID and frame of each vector id that is still there."""
        found: dict[int, tuple[PseudoUid, int]] = {}
        v = vectors.c
        with self.reading() as c:
            for chunk in _chunks(list(ids)):
                for row in c.execute(select(v.id, v.instance_uid, v.frame).where(v.id.in_(chunk))):
                    found[row.id] = (PseudoUid(row.instance_uid), row.frame)
        return found

    def verify(self) -> list[str]:
        """Every problem found, one line each; empty when the store is sound. Changes nothing."""
        problems = []
        with self.writing():
            known, orphans = self._segments(), self._orphans()
            with self.reading() as c:
                counted = c.execute(
                    select(
                        vectors.c.segment_id, func.count(), func.min(vectors.c.row), func.max(vectors.c.row)
                    ).group_by(vectors.c.segment_id)
                ).all()
            for segment_id, n, first, last in counted:
                file = known.get(segment_id)
                if file and (n, first, last) != (file.n, 0, file.n - 1):
                    problems.append(f"segment {file.name}: {file.n} rows in the file, {n} in the catalogue")
            empty = known.keys() - {row[0] for row in counted}
            problems += [f"segment {known[i].name}: no rows in the catalogue" for i in sorted(empty)]
            problems += [fault for file in known.values() if (fault := self._fault(file))]
        problems += [f"file {path.name}: named by no row; 'dicomnode index rebuild' sweeps it" for path in orphans]
        return [
            *(f"vectors of another model {name}: never searched with {self.model_id}" for name in self.strangers()),
            *problems,
        ]

    def writing(self) -> Any:
        """The lock of writers of this folder, as a context manager."""
        return files.exclusive(self.folder / "writer.lock")

    def reading(self) -> Any:
        """A connection whose reads see one moment (SQLite: one WAL snapshot), as a context manager."""
        return _reading(self.engine)

    def _mine(self) -> ColumnElement[bool]:
        return segments.c.model_id == self.model_id

    def _segments(self) -> dict[int, SegmentFile]:
        """Segments of every model by their row in the catalogue, oldest first."""
        with self.reading() as c:
            rows = c.execute(select(segments).order_by(segments.c.id)).all()
        return {row.id: SegmentFile(row.name, row.n, row.dim, row.sha256, row.model_id) for row in rows}

    def _all_ids(self) -> NDArray[np.int64]:
        with self.reading() as c:
            return np.asarray(c.scalars(select(vectors.c.id)).all(), dtype=np.int64)

    def _orphans(self) -> list[Path]:
        with self.reading() as c:
            named = set(c.scalars(select(segments.c.name)))
        return [path for path in sorted(self.segment_folder.iterdir()) if path.name not in named]

    def _fault(self, file: SegmentFile) -> str:
        try:
            check_vectors(files.read_segment(self.segment_folder, file), file.dim, f"the vectors of {file.name}")
        except FileNotFoundError:
            return str(files.missing(file))
        except (IndexCorrupt, InputError, ModelMismatch) as fault:
            return str(fault)
        return ""

    def _check_model(self) -> None:
        with self.reading() as c:
            ledger.check_model(c, self.model_id, self.dim)

    def _existing(self, refs: Sequence[SliceRef]) -> set[Key]:
        """Keys that are there; refuses a study under two patients, which would defeat same-patient exclusion."""
        owner = {str(ref.study): str(ref.patient) for ref in refs}
        if any(owner[ref.study] != ref.patient for ref in refs):
            raise InputError("one study is given under two patients")
        there: set[Key] = set()
        v = vectors.c
        with self.reading() as c:
            for chunk in _chunks(sorted(owner)):
                query = select(v.study_uid, v.series_uid, v.instance_uid, v.frame, v.patient, segments.c.model_id).join(
                    segments
                )
                for *key, patient, model_id in c.execute(query.where(v.study_uid.in_(chunk))):
                    if owner[key[0]] != patient:
                        raise InputError(
                            "the study is already in the index under another patient",
                            place=f"study {key[0]}",
                            advice="'dicomnode index remove --study' first",
                        )
                    if model_id == self.model_id:
                        there.add((key[0], key[1], key[2], key[3]))
        return there

    def _commit_new(self, file: SegmentFile, refs: Sequence[SliceRef]) -> None:
        with self.engine.begin() as c:
            first = ledger.advance(
                c, ledger.NEXT_ID, len(refs), floor=int(c.scalar(select(func.max(vectors.c.id))) or 0) + 1
            )
            segment_id = self._insert_segment(c, file)
            c.execute(
                insert(vectors),
                [
                    {
                        "id": first + row,
                        "segment_id": segment_id,
                        "row": row,
                        "study_uid": ref.study,
                        "series_uid": ref.series,
                        "instance_uid": ref.instance,
                        "frame": ref.frame,
                        "z": ref.z,
                        "patient": ref.patient,
                    }
                    for row, ref in enumerate(refs)
                ],
            )
            ledger.advance(c, ledger.REVISION, 1)

    def _insert_segment(self, c: Connection, file: SegmentFile) -> int:
        row = {**file._asdict(), "created": time.time()}
        return int(c.execute(insert(segments).values(row).returning(segments.c.id)).scalar_one())

    def _remove(self, condition: ColumnElement[bool]) -> int:
        with self.writing():
            removed = self._rewrite_without(condition)
        if removed:
            log.info("vectors_removed", vectors=removed)
        return removed

    def _rewrite_without(self, condition: ColumnElement[bool], damaged: Sequence[int] = ()) -> int:
        """Write the segments that hold matching vectors again without them, in one transaction; how many went.

        Nothing is read from ``damaged`` segments: all their rows match. The lock is held by the caller.
        """
        v = vectors.c
        with self.reading() as c:
            gone = c.execute(select(v.id, v.segment_id).join(segments).where(condition)).all()
        ids = {row.id for row in gone}
        sources = sorted({row.segment_id for row in gone} | set(damaged))
        if not sources:
            return 0
        sound = [source for source in sources if source not in damaged]
        merged = [m for source in sound if (m := self._merge_files([source], without=ids)) is not None]
        self._commit_rewrite(sources, merged, removed=True)
        snapshot.drop_containing(self.snapshot_folder, np.asarray(sorted(ids), dtype=np.int64))
        return len(ids)

    def _merge_small(self) -> int:
        """Merge each size class (powers of ``MERGE_FAN``) that is full. The lock is held by the caller."""
        gone = 0
        while group := _full_class({i: f for i, f in self._segments().items() if f.model_id == self.model_id}):
            merged = self._merge_files(group, without=set())
            self._commit_rewrite(group, [merged] if merged else [], removed=False)
            gone += len(group) - 1
        return gone

    def _merge_files(self, source_ids: list[int], without: set[int]) -> _Merged | None:
        """One new file of the live rows of ``source_ids``, in order of their ids; None when nothing is left."""
        known = self._segments()
        loaded = {i: self._read(known[i]) for i in source_ids}
        query = select(vectors.c.id, vectors.c.segment_id, vectors.c.row).where(vectors.c.segment_id.in_(source_ids))
        with self.reading() as c:
            kept = [row for row in c.execute(query.order_by(vectors.c.id)) if row.id not in without]
        if not kept:
            return None
        rows = np.stack([loaded[row.segment_id][row.row] for row in kept])
        file = files.write_segment(self.segment_folder, rows, known[source_ids[0]].model_id)
        return _Merged(file, [row.id for row in kept])

    def _read(self, file: SegmentFile) -> Vectors:
        try:
            return files.read_segment(self.segment_folder, file)
        except FileNotFoundError as fault:
            raise files.missing(file) from fault

    def _commit_rewrite(self, source_ids: list[int], merged: list[_Merged], *, removed: bool) -> None:
        """Point the catalogue at the new files, delete the old rows, then the old files: readers retry."""
        moved = (
            update(vectors)
            .where(vectors.c.id == bindparam("vector"))
            .values(segment_id=bindparam("segment"), row=bindparam("new_row"))
        )
        with self.engine.begin() as c:
            for new in merged:
                segment_id = self._insert_segment(c, new.file)
                places = [{"vector": v, "segment": segment_id, "new_row": row} for row, v in enumerate(new.ids)]
                c.execute(moved, places)
            c.execute(delete(vectors).where(vectors.c.segment_id.in_(source_ids)))
            old = c.scalars(select(segments.c.name).where(segments.c.id.in_(source_ids))).all()
            c.execute(delete(segments).where(segments.c.id.in_(source_ids)))
            if removed:
                ledger.advance(c, ledger.REVISION, 1)
                ledger.advance(c, ledger.REMOVALS, 1)
        for name in old:
            (self.segment_folder / name).unlink(missing_ok=True)


def _reading(engine: Engine) -> Any:
    return engine.connect().execution_options(read_only=True)


def _full_class(known: dict[int, SegmentFile]) -> list[int]:
    """Ids of ``MERGE_FAN`` segments of one size class, smallest class first; empty when none is full."""
    classes: dict[int, list[int]] = {}
    for segment_id, file in known.items():
        size = 0
        while MERGE_FAN ** (size + 1) <= file.n:
            size += 1
        classes.setdefault(size, []).append(segment_id)
    for _size, members in sorted(classes.items()):
        group: list[int] = []
        rows = 0
        for segment_id in members:
            if rows + known[segment_id].n <= MAX_ROWS:
                group.append(segment_id)
                rows += known[segment_id].n
            if len(group) == MERGE_FAN:
                return group
    return []


def _key(ref: SliceRef) -> Key:
    return (ref.study, ref.series, ref.instance, ref.frame)


def _chunks(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), IN_CHUNK):
        yield values[start : start + IN_CHUNK]
