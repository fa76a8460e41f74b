"""The index as the rest of the node uses it: store, searcher and retriever of one model, and their upkeep.

``status``, ``rebuild`` and ``verify`` are what ``dicomnode index`` shows. Never embeds anything: what a damaged segment
took with it is named, so that the caller can embed it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, func, select

from dicomnode.archive.schema import instances, segments, studies, vectors
from dicomnode.domain import ModelId, Pseudonym, PseudoUid, SliceRef
from dicomnode.errors import IndexCorrupt
from dicomnode.index import build, snapshot, takeover
from dicomnode.index.cases import CaseRetriever
from dicomnode.index.search import Searcher
from dicomnode.index.segments import Vectors
from dicomnode.index.snapshot import Manifest
from dicomnode.index.takeover import Source
from dicomnode.index.vectors import VectorStore
from dicomnode.index.verdict import remove_cache

WORTH_A_SNAPSHOT = 50_000  # vectors; below, exact search of a 32-slice study takes less than 50 ms (docs/index.md)
TAIL_SHARE = 0.25  # of the snapshot: a longer tail is worth building again


@dataclass(frozen=True)
class Rebuilt:
    """What ``rebuild`` did: studies to embed again, files swept and merged, the snapshot or why there is none."""

    lost: tuple[PseudoUid, ...]
    swept: int
    merged: int
    snapshot: Manifest | None
    line: str


class VectorIndex:
    """One index folder with one model.

    Parameters
    ----------
    folder : Path
    engine : sqlalchemy.Engine
        The catalogue.
    model_id : ModelId
    dim : int
    backend : str
        ``mrpt`` or ``exact`` (setting ``[index] backend``).
    target_recall : float
        That a snapshot must be shown to have (setting ``[index] target_recall``).
    worth_a_snapshot : int
        Vectors from which ``build_if_due`` builds one.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        model_id: ModelId,
        dim: int,
        *,
        backend: str = "mrpt",
        target_recall: float = 0.95,
        worth_a_snapshot: int = WORTH_A_SNAPSHOT,
    ) -> None:
        self.store = VectorStore(folder, engine, model_id, dim)
        self.searcher = Searcher(self.store, backend=backend)
        self.retriever = CaseRetriever(self.searcher)
        self.backend = backend
        self.target_recall = target_recall
        self.worth_a_snapshot = worth_a_snapshot

    def add(self, refs: Sequence[SliceRef], rows: Vectors, *, beside: Sequence[int] | None = None) -> int:
        """``VectorStore.add``."""
        return self.store.add(refs, rows, beside=beside)

    def to_embed(self, uid: PseudoUid) -> list[Source]:
        """Slices of a study that another model has vectors of and this one lacks."""
        return takeover.to_embed(self.store, uid)

    def has_study(self, uid: PseudoUid) -> bool:
        """Whether the study has vectors of this model."""
        return self.store.has_study(uid)

    def vectors_of(self, uid: PseudoUid) -> Vectors:
        """The vectors of a study, float32 [m, dim]; m is 0 where it has none of this model."""
        if not self.has_study(uid):
            return np.empty((0, self.store.dim), dtype=np.float32)
        now = self.searcher.refresh()
        number = now.names.study_of.get(uid)
        if number is None or number >= len(now.study_count):  # removed just now
            return np.empty((0, self.store.dim), dtype=np.float32)
        rows = now.rows_of(number)
        return np.ascontiguousarray(now.matrix[rows])

    def remove_study(self, uid: PseudoUid) -> int:
        """Remove a study's vectors everywhere: segments, snapshots, references. How many there were."""
        removed = self.store.remove_study(uid)
        remove_cache(self.store.folder)
        return removed

    def remove_patient(self, pseudonym: Pseudonym) -> int:
        """Remove a patient's vectors everywhere. How many there were."""
        removed = self.store.remove_patient(pseudonym)
        remove_cache(self.store.folder)
        return removed

    def move_patient(self, former: Pseudonym, kept: Pseudonym) -> int:
        """Give a patient's vectors to another pseudonym of the same person. How many there were."""
        moved = self.store.move_patient(former, kept)
        remove_cache(self.store.folder)
        return moved

    def close(self) -> None:
        """End the search process."""
        self.searcher.close()

    def status(self) -> dict[str, Any]:
        """The object of ``index status --json``; reads the catalogue and the manifest, loads no vectors."""
        store = self.store
        held = self._manifest()
        with store.reading() as c:
            counts = {
                "studies": c.scalar(select(func.count()).select_from(studies)),
                "patients": c.scalar(select(func.count(studies.c.patient_id.distinct()))),
                "instances": c.scalar(select(func.count()).select_from(instances)),
            }
            newer = select(func.count()).select_from(vectors.join(segments))
            newer = newer.where(segments.c.model_id == store.model_id, vectors.c.id > (held.last_id if held else -1))
            tail = int(c.scalar(newer) or 0)
        return {
            **counts,
            "vectors": store.count(),
            "tail": tail,
            "model_id": store.model_id,
            "backend": self.backend,
            "segments": len(store.segment_names()),
            "other_models": store.other_models(),
            "excluded_patients": len(store.state().excluded),
            "snapshot": held.public() if held else None,
        }

    def verify(self) -> list[str]:
        """Every problem of store and snapshots, one line each; empty: sound. Reads everything, changes nothing."""
        problems = self.store.verify()
        sound = not problems
        for name in snapshot.names(self.store.snapshot_folder, self.store.model_id):
            try:
                held = snapshot.open_checked(self.store.snapshot_folder / name, self.store.model_id, self.store.dim)
                if sound:  # otherwise the lines above say what to mend first
                    now = self.searcher.refresh()
                    snapshot.check_rows(held, now.ids, now.matrix)
            except IndexCorrupt as fault:
                problems.append(str(fault))
        with self.store.reading() as c:
            strangers = select(vectors.c.study_uid).distinct().where(vectors.c.study_uid.not_in(select(studies.c.uid)))
            unknown = c.scalars(strangers).all()
        problems += [
            f"study {uid}: has vectors but is not in the catalogue; never an answer" for uid in sorted(unknown)
        ]
        return problems

    def admit(self) -> None:
        """Let this model's vectors in beside those of the model it takes over from."""
        self.store.admit()

    def discard_other_models(self, only: ModelId | None = None) -> int:
        """Remove what models before this one left, or one of them; how many vectors there were."""
        removed = self.store.discard_other_models(only)
        remove_cache(self.store.folder)
        return removed

    def repair(self) -> list[PseudoUid]:
        """Give up damaged segments; the studies to embed again. Their other vectors went too."""
        lost = self.store.discard_damaged()
        if lost:
            remove_cache(self.store.folder)
        return lost

    def rebuild(self) -> Rebuilt:
        """Give up what is damaged, sweep, merge, and build a snapshot where the backend uses one.

        Raises
        ------
        Busy, StorageFull
        """
        lost = self.repair()
        swept, merged = self.store.sweep(), self.store.compact()
        if self.backend != "mrpt":
            return Rebuilt(tuple(lost), swept, merged, None, "backend exact: no snapshot is used")
        made = build.build(self.store, self.searcher.refresh(), self.target_recall)
        return Rebuilt(tuple(lost), swept, merged, made.manifest, made.line)

    def snapshot_due(self) -> bool:
        """Whether a snapshot would pay now: there are many vectors, and no snapshot or a long tail."""
        if self.backend != "mrpt" or self.store.count() < self.worth_a_snapshot:
            return False
        held = self._manifest()
        return held is None or self.status()["tail"] > TAIL_SHARE * held.n

    def build_if_due(self) -> str:
        """Build a snapshot when one is due; a line for the log, empty when nothing was due."""
        if not self.snapshot_due():
            return ""
        return build.build(self.store, self.searcher.refresh(), self.target_recall).line

    def warm(self, slices: int) -> None:
        """Compute what the next verdict on a query of ``slices`` slices needs, so that no query waits for it."""
        self.retriever.warm(slices)

    def _manifest(self) -> Manifest | None:
        for name in snapshot.names(self.store.snapshot_folder, self.store.model_id):
            try:
                held = snapshot.read_manifest(self.store.snapshot_folder / name)
            except IndexCorrupt:
                continue  # verify names it
            if not snapshot.mismatch(held, self.store.model_id, self.store.dim):
                return held
        return None
