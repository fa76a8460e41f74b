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
MAX_CRASHES = 2  # of the MRPT process with one snapshot: after that it is not trusted any more

Hits = tuple[NDArray[np.int64], NDArray[np.float32]]


class _Placed(NamedTuple):
    """A snapshot seen from one Resident: which positions it covers, bool [n], and the vectors held out of it."""

    snapshot: Snapshot
    resident: Resident
    covered: NDArray[np.bool_]
    held_out: Vectors


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
        self._crashes = 0

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
            token = snapshot.current_token(self.store.snapshot_folder) if self.backend == "mrpt" else ""
            self._resident = resident.load(self.store, self._resident)  # after the token: holds what that names
            if self.backend == "mrpt":
                self._refresh_snapshot(token, self._resident)
            return self._resident

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in use; None: everything is searched exactly."""
        return self._snapshot if self._crashes < MAX_CRASHES else None

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
        inside = mask & placed.covered
        allowed = int(np.count_nonzero(inside))
        if allowed < FEW_ALLOWED * placed.snapshot.manifest.n or np.count_nonzero(mask) > 2 * allowed:
            return exact.top_k(queries, now.matrix, k, mask)
        rows = self._ask(placed, queries)
        if rows is None:
            return exact.top_k(queries, now.matrix, k, mask)
        rest = _outside(placed, queries, k, mask)
        return self._join(now, queries, k, mask, [survivors(row, inside) for row in rows], rest)

    def _join(
        self,
        now: Resident,
        queries: Vectors,
        k: int,
        mask: NDArray[np.bool_],
        proposed: list[NDArray[np.int64]],
        rest: NDArray[np.int64],
    ) -> Hits:
        """Merge what MRPT found with the rest; queries for which too few survive are searched exactly."""
        positions = np.full((len(queries), k), -1, dtype=np.int64)
        similarity = np.full((len(queries), k), exact.MISSING, dtype=np.float32)
        short = np.zeros(len(queries), dtype=bool)
        for i, query in enumerate(queries):
            if len(proposed[i]) < k:
                short[i] = True
                continue
            near = np.concatenate([proposed[i], rest[i][rest[i] >= 0]])
            positions[i], similarity[i] = exact.best(query, now.matrix, near, k)
        if short.any():
            positions[short], similarity[short] = exact.top_k(queries[short], now.matrix, k, mask)
        return positions, similarity

    def _refresh_snapshot(self, token: str, now: Resident) -> None:
        held = self._snapshot
        if token == self._token and (held is None or (held.folder / snapshot.MANIFEST).exists()):
            if self._child is not None and self._child.rows is not now.shared:
                with self._pipe:  # the rows have moved to more room: the old one must not be kept for the child alone
                    self._drop_child()
            return
        with self._pipe:
            self._drop_child()
            self._snapshot = snapshot.newest(
                self.store.snapshot_folder, token, self.store.model_id, now.ids, now.matrix
            )
            self._token, self._placed, self._crashes = token, None, 0

    def _place(self, now: Resident) -> _Placed | None:
        """The snapshot seen from ``now``; None where there is none in use."""
        with self._lock:
            held = self.snapshot
            if held is None or not now.n:
                return None
            p = self._placed
            if p is None or p.snapshot is not held or p.resident.ids is not now.ids:
                if not snapshot.begins_with(held, now.ids):
                    return None  # the caller holds what was before a removal
                covered = np.zeros(now.n, dtype=bool)
                covered[: held.rows] = True
                covered[held.held_out] = False
                self._placed = p = _Placed(held, now, covered, now.matrix[held.held_out])
            return p

    def _ask(self, placed: _Placed, queries: Vectors) -> NDArray[np.int32] | None:
        """Rows that MRPT proposes, int32 [m, WIDE_K]; None when its process failed and exact search must do."""
        held = placed.snapshot
        with self._pipe:
            if self.snapshot is not held:
                return None  # another thread has just loaded a newer one: its rows mean other vectors
            started = time.monotonic()
            try:
                if self._child is None:
                    self._child = MrptProcess(placed.resident.shared, held.rows)
                    self._child.load(held.folder / snapshot.INDEX)
                rows = ask(self._child, queries, min(WIDE_K, held.rows))
            except ChildDied as fault:
                log.warning(
                    "mrpt_process_failed", line=str(fault), seconds=round(time.monotonic() - started, 3), now="exact"
                )
                self._drop_child()
                self._crashes += 1
                return None
            if rows.min(initial=0) < -1 or rows.max(initial=0) >= held.rows:
                log.warning("mrpt_process_failed", line="the MRPT process named rows that do not exist", now="exact")
                self._drop_child()
                self._crashes = MAX_CRASHES
                return None
            return rows

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _outside(placed: _Placed, queries: Vectors, k: int, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The best ``k`` of the held-out rows and of the tail for each query: positions int64 [m, 2 k], -1 where fewer."""
    held, rows = placed.snapshot.held_out, placed.snapshot.rows
    best = exact.top_k(queries, placed.held_out, k, mask[held])[0]
    later = exact.top_k(queries, placed.resident.matrix[rows:], k, mask[rows:])[0]
    return np.hstack([np.where(best < 0, -1, held[best]), np.where(later < 0, -1, later + rows)])
