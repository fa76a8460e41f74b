"""Approximate search beside others at equal recall: python benchmarks/neighbours.py [--sizes 20000,100000] [--dim 256]

Vectors as in benchmarks/index.py (patients around common centres, 32 slices a study), one thread. The product's MRPT
snapshot is built for a target recall of .95 as a lower bound on held-out queries of its own patients; hnswlib and two
indexes of faiss are then given the smallest search effort that reaches the recall the snapshot shows on the same new
queries. Best of 5 over all queries, a query at a time. Prints Markdown. Needs ``pip install --group bench``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import structlog
from index import Source, fill  # type: ignore[import-not-found]  # beside this file
from numpy.typing import NDArray

from dicomnode.archive.database import open_engine
from dicomnode.archive.schema import metadata
from dicomnode.domain import ModelId
from dicomnode.index.repository import VectorIndex

K = 50
QUERIES = 200
ROUNDS = 5
TARGET = 0.95
EFFORTS = (50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512, 640, 800)  # hnsw: ef
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # IVF: lists

Rows = NDArray[np.float32]
Ids = NDArray[np.int64]
Search = Callable[[Rows], Ids]  # one query [1, dim] -> ids [K]


def recall_of(search: Search, queries: Rows, truth: Ids) -> float:
    """Share of the true K nearest that are found."""
    return float(np.mean([np.isin(truth[i], search(queries[i : i + 1])).mean() for i in range(len(queries))]))


def ms_of(search: Search, queries: Rows) -> float:
    """Milliseconds a query, best of the rounds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for i in range(len(queries)):
            search(queries[i : i + 1])
        times.append(time.perf_counter() - began)
    return 1000 * min(times) / len(queries)


def least_effort(
    efforts: Sequence[int], give: Callable[[int], None], search: Search, queries: Rows, truth: Ids, wanted: float
) -> tuple[int, float]:
    """The smallest effort that reaches a recall, and the recall; the largest where none does."""
    reached = 0.0
    for effort in efforts:
        give(effort)
        reached = recall_of(search, queries, truth)
        if reached >= wanted:
            return effort, reached
    return efforts[-1], reached


def line(n: int, name: str, recall: float, ms: float, exact_ms: float, build_s: float) -> str:
    """A row of the table."""
    return f"| {n} | {name} | {recall:.3f} | {ms:.2f} | {exact_ms / ms:.1f}x | {build_s:.1f} |"


def others(n: int, rows: Rows, queries: Rows, truth: Ids, wanted: float, exact_ms: float) -> list[str]:
    """hnswlib, faiss IVF and faiss flat."""
    out = []
    dim = rows.shape[1]
    began = time.perf_counter()
    graph = hnswlib.Index("ip", dim)
    graph.init_index(len(rows), ef_construction=200, M=16)
    graph.set_num_threads(1)
    graph.add_items(rows, num_threads=1)
    built = time.perf_counter() - began

    def by_graph(q: Rows) -> Ids:
        return np.asarray(graph.knn_query(q, K, num_threads=1)[0][0], dtype=np.int64)

    effort, reached = least_effort(EFFORTS, graph.set_ef, by_graph, queries, truth, wanted)
    out.append(line(n, f"hnswlib M = 16, ef = {effort}", reached, ms_of(by_graph, queries), exact_ms, built))

    began = time.perf_counter()
    lists = int(4 * np.sqrt(len(rows)))
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    inverted.train(rows)
    inverted.add(rows)
    built = time.perf_counter() - began

    def by_lists(q: Rows) -> Ids:
        return np.asarray(inverted.search(q, K)[1][0])

    def probe(count: int) -> None:
        inverted.nprobe = count

    effort, reached = least_effort(PROBES, probe, by_lists, queries, truth, wanted)
    out.append(
        line(n, f"faiss IVF {lists} lists, nprobe = {effort}", reached, ms_of(by_lists, queries), exact_ms, built)
    )
    flat = faiss.IndexFlatIP(dim)
    flat.add(rows)
    out.append(line(n, "faiss flat", 1.0, ms_of(lambda q: np.asarray(flat.search(q, K)[1][0]), queries), exact_ms, 0.0))
    return out


def measure(n: int, dim: int) -> list[str]:
    """Rows of one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = open_engine(folder / "catalogue.sqlite")
        metadata.create_all(engine)

        def opened(backend: str) -> VectorIndex:
            return VectorIndex(folder / "index", engine, ModelId("bench"), dim, backend=backend, target_recall=TARGET)

        source, index = Source(dim), opened("mrpt")
        fill(index, source, n)
        began = time.perf_counter()
        built = index.rebuild()
        build_s = time.perf_counter() - began
        exactly = opened("exact")
        queries = np.concatenate([source.study()[1][::8] for _ in range(QUERIES // 4)])[:QUERIES]

        def by(used: VectorIndex) -> Search:
            return lambda q: used.searcher.search(q, K)[0][0]

        truth = np.stack([by(exactly)(q[None]) for q in queries])
        exact_ms = ms_of(by(exactly), queries)
        out = [line(n, "dicomnode, exact", 1.0, exact_ms, exact_ms, 0.0)]
        wanted = TARGET
        if built.snapshot is None:
            out.append(f"| {n} | dicomnode, MRPT | no snapshot: {built.line} | | | |")
        else:
            wanted = recall_of(by(index), queries, truth)
            proved = f"dicomnode, MRPT (proved {built.snapshot.recall_lower:.3f})"
            out.append(line(n, proved, wanted, ms_of(by(index), queries), exact_ms, build_s))
        resident = exactly.searcher.refresh()
        order = np.argsort(resident.ids)  # ids count from 0 in the order of adding: row i is id i for the others
        rows, ids = np.ascontiguousarray(resident.matrix[order]), resident.ids[order]
        place = {int(v): i for i, v in enumerate(ids)}
        out += others(n, rows, queries, np.array([[place[int(i)] for i in t] for t in truth]), wanted, exact_ms)
        index.close()
        return out


def main() -> None:
    """Print the table."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="20000,100000,320000")
    parser.add_argument("--dim", type=int, default=256)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    print(f"{options.dim} dimensions, {QUERIES} queries, k = {K}, one thread, hnswlib {version('hnswlib')}, "
          f"faiss {faiss.__version__}\n")  # fmt: skip
    print(f"| vectors | search | recall@{K} | a query, ms | beside exact | build, s |\n|---|---|---|---|---|---|")
    for size in options.sizes.split(","):
        for row in measure(int(size), options.dim):
            print(row, flush=True)


if __name__ == "__main__":
    main()
