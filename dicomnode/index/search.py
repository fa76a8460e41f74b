"""Nearest vectors with exclusions and filters inside the search: MRPT where it pays, exact search everywhere else.

Every similarity returned was computed here from the checksummed vectors; MRPT only proposes rows. Its process may die
at any time: the same call then answers exactly. Never returns a vector of an excluded patient, of another model, or
one that was removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from dicomnode.domain import Pseudonym, PseudoUid
from dicomnode.errors import InputError
from dicomnode.index import exact, resident, snapshot
from dicomnode.index.build import SEARCH_K, WIDE_K, ask, survivors
from dicomnode.index.mrpt import ChildDied, MrptProcess
from dicomnode.index.resident import Resident
from dicomnode.index.segments import Vectors
from dicomnode.index.snapshot import Snapshot
from dicomnode.index.vectors import VectorStore, check_vectors

log = structlog.get_logger(__name__)

FEW_ALLOWED = 0.5  # share of the snapshot: below it the allowed rows are searched exactly
MAX_STARTS = 2  # of the MRPT process for one snapshot: after that it is not trusted any more

Hits = tuple[NDArray[np.int64], NDArray[np.float32]]


class _Placed(NamedTuple):
    """A snapshot seen from one Resident: position of each of its rows (-1: gone), and which positions it covers."""

    snapshot: Snapshot
    resident: Resident
    positions: NDArray[np.int64]
    covered: NDArray[np.bool_]


class Searcher:
    """Searches one store; safe for threads, one to a process is enough.

    Parameters
    ----------
    store : VectorStore
    backend : str
        ``mrpt`` uses a valid snapshot where there is one, ``exact`` never does.
    """

    def __init__(self, store: VectorStore, *, backend: str = "mrpt") -> None:
        self.store = store
        self.backend = backend
        self._lock = threading.Lock()  # around loading
        self._pipe = threading.Lock()  # around the child
        self._resident: Resident | None = None
        self._token = ""
        self._snapshot: Snapshot | None = None
        self._placed: _Placed | None = None
        self._child: MrptProcess | None = None
        self._starts = 0

    def close(self) -> None:
        """End the MRPT process, if one runs."""
        with self._pipe:
            self._drop_child()

    def refresh(self) -> Resident:
        """The repository as committed now; loads what is new, and a new snapshot when there is one.

        Raises
        ------
        IndexCorrupt, ModelMismatch
        """
        with self._lock:
            self._resident = resident.load(self.store, self._resident)
            if self.backend == "mrpt":
                self._refresh_snapshot()
            return self._resident

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in use; None: everything is searched exactly."""
        return self._snapshot if self._starts <= MAX_STARTS else None

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        exclude_patients: AbstractSet[Pseudonym] = frozenset(),
        exclude_studies: AbstractSet[PseudoUid] = frozenset(),
        allow: AbstractSet[PseudoUid] | None = None,
    ) -> Hits:
        """The ``k`` nearest vectors to each query among those that are open.

        Parameters
        ----------
        queries : float32 [m, dim]
            Unit vectors.
        k : int
            Neighbours a query.
        exclude_patients, exclude_studies : set
            Never returned; patients excluded in the catalogue never are either.
        allow : set of PseudoUid, optional
            Only vectors of these studies.

        Returns
        -------
        ids : int64 [m, k]
            Vector ids, nearest first, equal ones oldest first; -1 where fewer than ``k`` are open.
        similarity : float32 [m, k]
            Cosine; -inf beside -1.

        Raises
        ------
        InputError
            NaN, infinite or zero queries, or ``k`` below 1.
        ModelMismatch, IndexCorrupt
        """
        now = self.refresh()
        positions, similarity = self.search_rows(
            now, queries, k, now.open_rows(exclude_patients, exclude_studies, allow)
        )
        ids = np.full(positions.shape, -1, dtype=np.int64)
        ids[positions >= 0] = now.ids[positions[positions >= 0]]
        return ids, similarity

    def search_rows(self, now: Resident, queries: Vectors, k: int, mask: NDArray[np.bool_]) -> Hits:
        """As ``search``, for a caller that holds a Resident and its own mask; positions instead of ids."""
        queries = check_vectors(queries, self.store.dim, "the query vectors")
        if k < 1:
            raise InputError("at least one neighbour must be asked for")
        placed = self._place(now)
        if placed is None or k > SEARCH_K:
            return exact.top_k(queries, now.matrix, k, mask)
        allowed = int(np.count_nonzero(mask & placed.covered))
        rest = mask & ~placed.covered
        if allowed < FEW_ALLOWED * len(placed.positions) or np.count_nonzero(rest) > allowed:
            return exact.top_k(queries, now.matrix, k, mask)
        rows = self._ask(placed.snapshot, queries)
        if rows is None:
            return exact.top_k(queries, now.matrix, k, mask)
        return self._join(now, queries, k, mask, placed, rows, exact.top_k(queries, now.matrix, k, rest)[0])

    def _join(
        self,
        now: Resident,
        queries: Vectors,
        k: int,
        mask: NDArray[np.bool_],
        placed: _Placed,
        rows: NDArray[np.int32],
        tail: NDArray[np.int64],
    ) -> Hits:
        """Merge what MRPT found with the exact tail; queries for which too few survive are searched exactly."""
        positions = np.full((len(queries), k), -1, dtype=np.int64)
        similarity = np.full((len(queries), k), exact.MISSING, dtype=np.float32)
        short = np.zeros(len(queries), dtype=bool)
        for i, query in enumerate(queries):
            found = survivors(rows[i], placed.positions, mask)
            if len(found) < k:
                short[i] = True
                continue
            near = np.concatenate([found, tail[i][tail[i] >= 0]])
            positions[i], similarity[i] = exact.best(query, now.matrix, near, k)
        if short.any():
            positions[short], similarity[short] = exact.top_k(queries[short], now.matrix, k, mask)
        return positions, similarity

    def _refresh_snapshot(self) -> None:
        token = snapshot.current_token(self.store.snapshot_folder)
        held = self._snapshot
        if token == self._token and (held is None or (held.folder / snapshot.MANIFEST).exists()):
            return
        with self._pipe:
            self._drop_child()
            self._snapshot = snapshot.newest(self.store.snapshot_folder, self.store.model_id, self.store.dim)
            self._token, self._placed, self._starts = token, None, 0

    def _place(self, now: Resident) -> _Placed | None:
        """The snapshot seen from ``now``; None where there is none in use."""
        with self._lock:
            held = self.snapshot
            if held is None or not now.n:
                return None
            p = self._placed
            if p is None or p.snapshot is not held or p.resident.ids is not now.ids:
                where = np.minimum(np.searchsorted(now.ids, held.ids), now.n - 1)
                positions = np.where(now.ids[where] == held.ids, where, -1)
                covered = np.zeros(now.n, dtype=bool)
                covered[positions[positions >= 0]] = True
                self._placed = _Placed(held, now, positions, covered)
            return self._placed

    def _ask(self, held: Snapshot, queries: Vectors) -> NDArray[np.int32] | None:
        """Rows that MRPT proposes, int32 [m, WIDE_K]; None when its process failed and exact search must do."""
        with self._pipe:
            if self.snapshot is not held:
                return None  # another thread has just loaded a newer one: its rows mean other vectors
            started = time.monotonic()
            try:
                if self._child is None:
                    self._starts += 1
                    self._child = MrptProcess()
                    self._child.open(held.folder / snapshot.DATA, held.manifest.n, held.manifest.dim)
                    self._child.load(held.folder / snapshot.INDEX)
                rows = ask(self._child, queries, min(WIDE_K, held.manifest.n))
            except ChildDied as fault:
                log.warning(
                    "mrpt_process_failed", line=str(fault), seconds=round(time.monotonic() - started, 3), now="exact"
                )
                self._drop_child()
                if self._starts >= MAX_STARTS:
                    self._starts = MAX_STARTS + 1
                return None
            if rows.min(initial=0) < -1 or rows.max(initial=0) >= held.manifest.n:
                log.warning("mrpt_process_failed", line="the MRPT process named rows that do not exist", now="exact")
                self._drop_child()
                self._starts = MAX_STARTS + 1
                return None
            return rows

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
