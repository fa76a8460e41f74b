"""Times adding, searching and retrieving at several sizes, exactly and with an MRPT snapshot; prints Markdown.

Run: ``python benchmarks/index.py [--sizes 1000,20000,100000] [--dim 256]``. Vectors are generated: patients around
common centres, 32 slices a study, each patient one study. Recall is against exact search, own patient excluded.
Each time is the best of 15, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import logging
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import structlog
from numpy.typing import NDArray
from sqlalchemy import insert

from dicomnode.archive.database import open_engine
from dicomnode.archive.schema import metadata, patients, studies
from dicomnode.domain import ModelId, Pseudonym, PseudoUid, Shows, SliceRef
from dicomnode.index.cases import QueryStudy
from dicomnode.index.repository import VectorIndex
from dicomnode.index.verdict import References, cache_path

SLICES = 32
CLUSTERS = 200
BATCH = 64  # studies added at once while filling: the single-study time is measured apart
REPEATS = 15


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


class Source:
    """Endless studies of new patients."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.centres = unit(self.random.standard_normal((CLUSTERS, dim)))
        self.dim, self.made = dim, 0

    def study(self) -> tuple[list[SliceRef], NDArray[np.float32]]:
        self.made += 1
        uid, name = PseudoUid(f"2.25.{self.made}"), Pseudonym(f"p{self.made}")
        series = PseudoUid(f"{uid}.1")
        refs = [SliceRef(PseudoUid(f"{series}.{i}"), series, uid, name, z=i / (SLICES - 1)) for i in range(SLICES)]
        patient = self.centres[self.random.integers(CLUSTERS)] + 0.7 * unit(self.random.standard_normal(self.dim))
        return refs, unit(patient + 0.5 * unit(self.random.standard_normal((SLICES, self.dim))))


def fill(index: VectorIndex, source: Source, n: int) -> None:
    """Add studies until there are about ``n`` vectors, with their rows in the catalogue."""
    while index.store.count() < n:
        batch = [source.study() for _ in range(min(BATCH, max(1, (n - index.store.count()) // SLICES)))]
        with index.store.engine.begin() as c:
            for refs, _ in batch:
                row = insert(patients).values(pseudonym=refs[0].patient, created=0).returning(patients.c.id)
                known = {"patient_id": c.execute(row).scalar_one(), "modality": "CT", "source": "labels"}
                c.execute(insert(studies).values(uid=refs[0].study, status="unknown", created=0, **known))
        index.add([ref for refs, _ in batch for ref in refs], np.concatenate([rows for _, rows in batch]))


def best_ms(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The best of several runs: what the work costs, whatever else the machine does."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def recall(index: VectorIndex, exactly: VectorIndex, source: Source) -> float:
    """Share of the exact 50 nearest that are found, over 20 new studies."""
    shares = []
    for _ in range(20):
        _, rows = source.study()
        found, wanted = index.searcher.search(rows, 50)[0], exactly.searcher.search(rows, 50)[0]
        shares += [float(np.isin(w, f).mean()) for w, f in zip(wanted, found, strict=True)]
    return float(np.mean(shares))


def memory_kb(folder: Path, dim: int) -> float:
    """Memory (PSS) of a process that searches a snapshot and of its child, kB a slice; what they share counts once."""
    before = sum(p.memory_full_info().pss for p in _family())
    engine = open_engine(folder / "catalogue.sqlite")
    index = VectorIndex(folder / "index", engine, ModelId("bench"), dim, backend="mrpt")
    index.searcher.search(np.eye(SLICES, dim, dtype=np.float32), 50)
    after = sum(p.memory_full_info().pss for p in _family())
    n = index.store.count()
    index.close()
    return (after - before) / 1024 / n


def _family() -> list[psutil.Process]:
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def memory_of(folder: Path, dim: int) -> float:
    """``memory_kb`` of a new process."""
    command = [sys.executable, __file__, "--memory", str(folder), "--dim", str(dim)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(n: int, dim: int) -> Iterator[str]:
    """Two lines of the table: exact, and MRPT."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = open_engine(folder / "catalogue.sqlite")
        metadata.create_all(engine)

        def opened(backend: str) -> VectorIndex:
            return VectorIndex(folder / "index", engine, ModelId("bench"), dim, backend=backend)

        source, index = Source(dim), opened("mrpt")
        fill(index, source, n)
        started = time.perf_counter()
        opened("exact").searcher.refresh()
        start_ms = 1000 * (time.perf_counter() - started)
        started = time.perf_counter()
        built = index.rebuild()
        build_s = time.perf_counter() - started
        exactly = opened("exact")
        add_ms = best_ms(lambda: index.add(*source.study()))
        for label, used in (("exact", exactly), ("mrpt", index)):
            if label == "mrpt" and built.snapshot is None:
                yield f"| {n} | mrpt | no snapshot: {built.line} | | | | | | | |"
                continue
            refs, rows = source.study()
            used.searcher.search(rows, 50)
            one = best_ms(lambda used=used, rows=rows: used.searcher.search(rows[:1], 50))
            study = best_ms(lambda used=used, rows=rows: used.searcher.search(rows, 50))
            query = QueryStudy(refs, rows, shows=Shows("CT"))
            started = time.perf_counter()
            used.retriever.retrieve(query)
            first_s = time.perf_counter() - started
            retrieve = best_ms(lambda used=used, query=query: used.retriever.retrieve(query))
            share = recall(used, exactly, source) if label == "mrpt" else 1.0
            cache_path(used.store.folder, used.store.model_id).unlink(missing_ok=True)
            started = time.perf_counter()
            References(used.searcher).reference(used.searcher.refresh(), SLICES)
            reference_s = time.perf_counter() - started
            memory = f"{memory_of(folder, dim):.2f}" if label == "mrpt" else "-"
            proved = f"{built.snapshot.recall_lower:.3f}" if label == "mrpt" and built.snapshot else "-"
            yield (
                f"| {n} | {label} | {one:.1f} | {study:.1f} | {retrieve:.0f} | {share:.3f} ({proved}) | {add_ms:.0f} "
                f"| {start_ms:.0f} | {build_s if label == 'mrpt' else 0:.1f} | {reference_s:.1f} ({first_s:.1f}) "
                f"| {memory} |"
            )
        index.close()


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,20000,100000")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory_kb(options.memory, options.dim))
        return
    print(
        f"{options.dim} dimensions, {SLICES} slices a study, {platform.machine()}, Python {platform.python_version()}\n"
    )
    print(
        "| vectors | search | 1 slice, ms | 32 slices, ms | cases of a study, ms | recall@50 (proved) "
        "| add a study, ms | start, ms | build, s | reference, s (first answer, s) | memory, kB a slice |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes.split(","):
        for line in measure(int(size), options.dim):
            print(line, flush=True)


if __name__ == "__main__":
    main()
