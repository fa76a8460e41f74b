"""Builds a snapshot and proves its recall before it is put in force.

Queries are held out of the index (one slice a patient where there are enough), and neighbours of the query's own
patient do not count: what is measured is what a study that arrives will meet. The lower bound is Wilson's with one
trial a patient, which holds for any distribution on 0..1 (its variance is at most p(1 - p)). Never puts a snapshot in
force whose bound is below the target. Facts about MRPT: docs/index.md.
"""

from __future__ import annotations

import math
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from dicomnode.durable import sync_file
from dicomnode.index import exact, snapshot
from dicomnode.index import segments as files
from dicomnode.index.mrpt import ChildDied, MrptProcess
from dicomnode.index.resident import Resident
from dicomnode.index.rows import SharedRows
from dicomnode.index.segments import Vectors
from dicomnode.index.snapshot import Manifest
from dicomnode.index.vectors import VectorStore

log = structlog.get_logger(__name__)

MIN_VECTORS = 1_000  # below, MRPT has too few levels to be tuned, and exact search takes under a millisecond
SEARCH_K = 50  # neighbours a query slice, docs/index.md
WIDE_K = 100  # asked of MRPT for them: the rest makes room for exclusions
TUNE_QUERIES = 128
TEST_QUERIES = 800
MIN_TEST_QUERIES = 100
HELD_OUT_SHARE = 0.1  # at most; held-out vectors are searched exactly
LEVELS = (0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)  # MRPT's own estimates, for WIDE_K without exclusions
MAX_EXACT_SHARE = 0.1  # of test queries that had to be searched exactly: beyond it a snapshot saves nothing
FIRST_TREES, MORE_TREES = 256, 512  # trees at most, first and second try; 1.2 MB a tree at 100,000 vectors
QUERY_BLOCK = 64  # queries a request
Z_95 = 1.6449  # one-sided 95 %
SEED = 20180411


@dataclass(frozen=True)
class Outcome:
    """A manifest, or why there is none; ``line`` is for people either way."""

    manifest: Manifest | None
    line: str


class _HeldOut(NamedTuple):
    """Positions of the queries that choose the level, and of those that prove it; no patient in both."""

    tune: NDArray[np.int64]
    test: NDArray[np.int64]


class _Measured(NamedTuple):
    recall: float
    lower: float
    exact_share: float


def wilson_lower(mean: float, trials: int) -> float:
    """One-sided 95 % lower bound of a mean of ``trials`` independent values in 0..1 (Wilson 1927)."""
    if trials < 1:
        return 0.0
    z2 = Z_95**2 / trials
    centre = mean + z2 / 2
    spread = math.sqrt(z2 * (mean * (1 - mean) + z2 / 4))
    return max(0.0, (centre - spread) / (1 + z2))


def survivors(rows: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions that MRPT found for one query and that ``mask`` allows: ``rows`` of the snapshot, -1 where unfilled."""
    found = rows[rows >= 0].astype(np.int64)
    return found[mask[found]]


def build(store: VectorStore, resident: Resident, target_recall: float) -> Outcome:
    """Build a snapshot over ``resident``, and put it in force if its recall is proved.

    Takes half a minute for 100,000 vectors of 256 dimensions on two cores, in a child process at low priority. Adding
    and searching go on meanwhile; a removal meanwhile makes the build void.

    Raises
    ------
    StorageFull, Busy
        Busy: another build is under way.
    """
    if resident.n < MIN_VECTORS:
        return Outcome(None, f"{resident.n} vectors: searched exactly, a snapshot begins at {MIN_VECTORS}")
    held = _hold_out(resident)
    if len(held.test) < MIN_TEST_QUERIES:
        return Outcome(
            None, f"only {len(held.test)} queries can be held out: recall cannot be shown, searching exactly"
        )
    folder = store.snapshot_folder
    with files.exclusive(snapshot.build_lock(folder), timeout_s=0.0):
        work = folder / (secrets.token_hex(8) + files.PART)
        try:
            with files.storage_errors("the snapshot"):
                work.mkdir()
                return _build(store, resident, target_recall, held, work)
        except ChildDied as fault:
            log.warning("snapshot_build_failed", line=str(fault))
            return Outcome(None, f"no snapshot: {fault}; searching exactly")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _build(store: VectorStore, resident: Resident, target: float, held: _HeldOut, work: Path) -> Outcome:
    started = time.monotonic()
    inside = np.ones(resident.n, dtype=bool)
    inside[held.tune] = inside[held.test] = False
    rows = _with_stand_ins(resident, inside)
    np.save(work / snapshot.IDS, resident.ids)
    np.save(work / snapshot.HELD_OUT, np.flatnonzero(~inside))
    truth = {name: _truth(resident, getattr(held, name), inside) for name in _HeldOut._fields}
    best = _Measured(0.0, 0.0, 0.0)
    for trees in (FIRST_TREES, MORE_TREES):
        with MrptProcess(rows, resident.n) as child:
            child.grow(resident.matrix[held.tune], WIDE_K, min(trees, resident.n))
            for level in LEVELS:
                parameters = child.subset(level, work / snapshot.INDEX)
                chosen = _measure(child, resident, held.tune, inside, truth["tune"])
                if chosen.recall < target or chosen.exact_share > MAX_EXACT_SHARE:
                    continue
                with MrptProcess(rows, resident.n) as serving:  # measured as it will answer: loaded from the file
                    serving.load(work / snapshot.INDEX)
                    best = _measure(serving, resident, held.test, inside, truth["test"])
                if best.lower >= target and best.exact_share <= MAX_EXACT_SHARE:
                    manifest = _manifest(store, resident, held, work, target, best, parameters)
                    return _publish(store, work, manifest, time.monotonic() - started)
    return Outcome(
        None,
        f"no snapshot reaches recall {target:g}: the best had {best.recall:.3f}, lower bound {best.lower:.3f}, "
        f"on {len(held.test)} queries; searching exactly",
    )


def _with_stand_ins(resident: Resident, inside: NDArray[np.bool_]) -> SharedRows:
    """A copy of the rows, each held-out one replaced by the neighbour before it: MRPT sees no query, keeps the numbers.

    So the child that serves maps the rows of the repository as they are. A held-out row that it then meets in the place
    of its stand-in is left out of what MRPT found: such rows are searched exactly.
    """
    rows = SharedRows(resident.n, resident.matrix.shape[1])
    rows.array[:] = resident.matrix
    kept, held = np.flatnonzero(inside), np.flatnonzero(~inside)
    rows.array[held] = resident.matrix[kept[np.maximum(np.searchsorted(kept, held) - 1, 0)]]
    return rows


def _hold_out(resident: Resident) -> _HeldOut:
    """Split patients in a fixed random order: a seventh tunes, the others test; round robin over their slices."""
    random = np.random.default_rng(SEED)
    budget = int(resident.n * HELD_OUT_SHARE)
    tune_size = min(TUNE_QUERIES, budget // 4)
    test_size = min(TEST_QUERIES, budget - tune_size)
    shuffled = random.permutation(resident.n)
    patient = resident.patient[shuffled]
    order = random.permutation(len(resident.names.patients))
    tuning = np.zeros(len(order), dtype=bool)
    tuning[order[: max(1, len(order) // 7)]] = True
    picked = []
    for group, size in ((tuning[patient], tune_size), (~tuning[patient], test_size)):
        mine, owner = shuffled[group], patient[group]
        by_owner = np.argsort(owner, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(order)))[:-1]])
        turn = np.empty(len(mine), dtype=np.int64)
        turn[by_owner] = np.arange(len(mine)) - first[owner[by_owner]]
        picked.append(np.sort(mine[np.argsort(turn, kind="stable")[:size]]))
    return _HeldOut(*picked)


def _truth(resident: Resident, queries: NDArray[np.int64], inside: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The true nearest of each query inside the snapshot, its own patient's left out."""
    found = []
    for patient in np.unique(resident.patient[queries]):
        mine = queries[resident.patient[queries] == patient]
        mask = inside & (resident.patient != patient)
        found.append((mine, exact.top_k(resident.matrix[mine], resident.matrix, SEARCH_K, mask)[0]))
    by_query = {int(q): row[row >= 0] for mine, rows in found for q, row in zip(mine, rows, strict=True)}
    return [by_query[int(q)] for q in queries]


def _measure(
    child: MrptProcess,
    resident: Resident,
    queries: NDArray[np.int64],
    inside: NDArray[np.bool_],
    truth: list[NDArray[np.int64]],
) -> _Measured:
    """Recall per patient, and its bound; a query that the searcher would answer exactly counts as fully found."""
    rows = ask(child, resident.matrix[queries], WIDE_K)
    patients = resident.patient[queries]
    recalls, exactly = np.ones(len(queries)), 0
    for i, wanted in enumerate(truth):
        found = survivors(rows[i], inside)
        found = found[resident.patient[found] != patients[i]]
        if len(found) < min(SEARCH_K, len(wanted)):
            exactly += 1
            continue
        near, _ = exact.best(resident.matrix[queries[i]], resident.matrix, found, SEARCH_K)
        recalls[i] = np.isin(wanted, near).mean() if len(wanted) else 1.0
    means = [recalls[patients == patient].mean() for patient in np.unique(patients)]
    recall = float(np.mean(means))
    return _Measured(recall, wilson_lower(recall, len(means)), exactly / len(queries))


def ask(child: MrptProcess, queries: Vectors, k: int) -> NDArray[np.int32]:
    """Rows found for each query, int32 [m, k], in requests of ``QUERY_BLOCK``."""
    blocks = [child.query(queries[i : i + QUERY_BLOCK], k) for i in range(0, len(queries), QUERY_BLOCK)]
    return np.concatenate(blocks) if blocks else np.empty((0, k), dtype=np.int32)


def _manifest(
    store: VectorStore,
    resident: Resident,
    held: _HeldOut,
    work: Path,
    target: float,
    measured: _Measured,
    parameters: dict[str, object],
) -> Manifest:
    for name in (snapshot.IDS, snapshot.HELD_OUT, snapshot.INDEX):
        sync_file(work / name)
    return Manifest(
        format=snapshot.FORMAT,
        n=resident.n - len(held.tune) - len(held.test),
        dim=store.dim,
        model_id=store.model_id,
        segments=store.segment_names(),
        removals=resident.state.removals,
        held_out=len(held.tune) + len(held.test),
        last_id=int(resident.ids[-1]),
        rows_sha256=snapshot.rows_sha256(resident.matrix),
        ids_sha256=files.file_sha256(work / snapshot.IDS),
        held_out_sha256=files.file_sha256(work / snapshot.HELD_OUT),
        index_sha256=files.file_sha256(work / snapshot.INDEX),
        target_recall=target,
        recall=round(measured.recall, 5),
        recall_lower=round(measured.lower, 5),
        test_queries=len(held.test),
        test_patients=len(np.unique(resident.patient[held.test])),
        k=SEARCH_K,
        wide_k=WIDE_K,
        parameters=parameters,
        mrpt=snapshot.mrpt_version(),
        cpu=snapshot.cpu_id(),
        created=time.time(),
    )


def _publish(store: VectorStore, work: Path, manifest: Manifest, seconds: float) -> Outcome:
    with store.writing():
        if store.state().removals != manifest.removals:
            return Outcome(
                None, "vectors were removed while the snapshot was built; run 'dicomnode index rebuild' again"
            )
        snapshot.publish(store.snapshot_folder, work, manifest)
    log.info("snapshot_built", vectors=manifest.n, seconds=round(seconds, 1), recall_lower=manifest.recall_lower)
    return Outcome(
        manifest,
        f"snapshot of {manifest.n} vectors, recall {manifest.recall:.3f} (lower bound {manifest.recall_lower:.3f}, "
        f"{manifest.test_queries} held-out queries of {manifest.test_patients} patients)",
    )
