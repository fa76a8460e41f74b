"""One evaluation: packs and controls on the same index and the same queries, every control always.

Images are prepared once, in batches, by the product's own ``prepare_file``, and embedded by its own ``Embedder``;
memory holds features, not images. Nothing is written here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from dicomnode.errors import InputError, UsageError
from dicomnode.evaluation import controls, metrics, taught
from dicomnode.evaluation.candidates import Candidate, Extractor, Pixels, Vectors
from dicomnode.evaluation.labels import Checks, Row, check_pair, prepared
from dicomnode.evaluation.metrics import PerQuery
from dicomnode.evaluation.rank import cosine_ranker, distance_ranker, index_ranker
from dicomnode.evaluation.task import Ranker, Rules, Task
from dicomnode.models.packing import MAX_DIM

log = structlog.get_logger(__name__)

BATCH = 32  # images prepared and embedded together
CALIBRATION = 288  # index images from which a random network takes its statistics
SHUFFLES = 20  # permutations of the labels a seed: their mean is what a ranking that means nothing reaches

Progress = Callable[[int, int], None]
Features = dict[str, Vectors]
SMALL, HISTOGRAM, MEAN = "raw 32x32 pixels", "histogram of 32 bins", "mean intensity"
MASKED, BORDER, RANDOM, PERMUTED = "lungs masked out", "border only", "random weights", "permuted labels"


@dataclass(frozen=True, slots=True)
class Method:
    """A pack or a control with its figures, one table a seed.

    Attributes
    ----------
    note : what a reader must know of this row.
    recipe : how it was made, for the ledger.
    """

    name: str
    kind: str  # "pack" or "control"
    tables: tuple[PerQuery, ...]
    seeds: tuple[int, ...] = (0,)
    note: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def table(self) -> PerQuery:
        """Each query's mean over the seeds."""
        return metrics.mean_of(self.tables)


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen.

    Attributes
    ----------
    lung_model : checkpoint of a CE-Net that finds the lungs for the masked control; None: a classical segmentation.
    seeds : runs of the controls that draw something at random.
    first_seed : of those runs.
    controls : False only where a ledger holds those of the same index and queries already.
    """

    lung_model: Path | None = None
    seeds: int = 1
    first_seed: int = 0
    controls: bool = True

    @property
    def drawn(self) -> tuple[int, ...]:
        """The seeds of those runs."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured, in the order of the table: packs, then controls.

    Attributes
    ----------
    vectors : float32 [n, dim] of the index by the first pack, for the map; ``labels`` aligned with it.
    near_pairs, near_queries : near copies across index and queries, of different patients.
    """

    name: str
    title: str
    packs: tuple[Method, ...]
    controls: tuple[Method, ...]
    n_index: int
    index_patients: int
    classes: Mapping[str, int]
    rules: Rules
    near_pairs: int
    near_queries: int
    checks: Checks
    vectors: Vectors
    labels: npt.NDArray[np.str_]
    seconds: float

    @property
    def methods(self) -> tuple[Method, ...]:
        return (*self.packs, *self.controls)

    @property
    def n_queries(self) -> int:
        return len(self.packs[0].tables[0].ap)

    def as_json(self) -> dict[str, Any]:
        """The object of ``evaluate --json``."""
        first = self.packs[0].table
        of_controls = []
        for control in self.controls:
            table = control.table
            apart = {n: metrics.difference(first, table, n) for n in ("precision@10", "ap", "ndcg@10")}
            row = metrics.row_of(control.name, table)
            more = {
                "difference": apart["precision@10"],
                "differences": {"map": apart["ap"], "ndcg@10": apart["ndcg@10"]},
            }
            of_controls.append({**row, **more, "note": control.note})
        packs = [{**metrics.row_of(p.name, p.table), "note": p.note, "recipe": dict(p.recipe)} for p in self.packs]
        for row, pack in zip(packs[1:], self.packs[1:], strict=True):
            row["difference"] = metrics.difference(first, pack.table)
        return {
            "protocol": self.name,
            "title": self.title,
            "n_index": self.n_index,
            "n_queries": self.n_queries,
            "n_queries_counted": int(first.counted.sum()),
            "n_query_patients": len(np.unique(first.clusters)),
            "near_copies": {"pairs": self.near_pairs, "queries": self.near_queries, "closed": self.rules.close_near},
            "graded": self.rules.graded,
            "packs": packs,
            "controls": of_controls,
            "notes": self.checks.lines(),
            "skipped": self.checks.failed,
        }


def evaluate(
    name: str,
    title: str,
    index: Sequence[Row],
    queries: Sequence[Row],
    packs: Sequence[Candidate],
    *,
    rules: Rules | None = None,
    options: Options | None = None,
    checks: Checks | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure packs and all controls.

    Parameters
    ----------
    index, queries : labelled rows.
    packs : what is measured; the controls that need a network use the first.
    progress : told (images done, images in all).

    Raises
    ------
    InputError
        One class only, no query with a label of the index, no usable image, the lung model is no checkpoint.
    """
    rules, options, checks = rules or Rules(), options or Options(), checks or Checks()
    if not packs:
        raise UsageError("no pack to evaluate", place="--pack")
    began = time.monotonic()
    check_pair(index, queries, checks, place=name)
    find = controls.cenet_lungs(options.lung_model) if options.lung_model else controls.classical_lungs
    lungs = controls.Lungs(find)
    extractors = _extractors(packs, lungs, index, options)
    total = len(index) + len(queries)
    tell = progress or (lambda _done, _total: None)
    index, of_index = _features(index, extractors, checks, lambda done: tell(done, total))
    queries, of_queries = _features(queries, extractors, checks, lambda done: tell(total - len(queries) + done, total))
    check_pair(index, queries, Checks(), place=name)  # of what was left
    task = Task(index, queries, of_index[SMALL], of_queries[SMALL], rules)
    near = task.near_copies()
    if near[0]:
        does = "closed to their queries" if rules.close_near else "left open, as the protocol says"
        checks.notes.append(f"{near[0]} near copies of {near[1]} queries are in the index under other patients: {does}")
    measured = [_measure(task, c, of_index[c.name], of_queries[c.name]) for c in packs]
    first = packs[0]
    asked = measured[0].tables[0].counted
    beside = _controls(task, first, asked, of_index, of_queries, options, checks) if options.controls else []
    if lungs.without:
        checks.notes.append(f"{MASKED}: no lung was found on {lungs.without} of {total} images, which stay as they are")
    log.info("evaluated", slices=len(queries), seconds=round(time.monotonic() - began, 1))
    classes, counts = np.unique([r.label for r in index], return_counts=True)
    return Evaluation(
        name=name,
        title=title,
        packs=tuple(measured),
        controls=tuple(beside),
        n_index=len(index),
        index_patients=len({r.cluster for r in index}),
        classes={str(c): int(n) for c, n in zip(classes, counts, strict=True)},
        rules=rules,
        near_pairs=near[0],
        near_queries=near[1],
        checks=checks,
        vectors=of_index[first.name],
        labels=np.array([r.label for r in index]),
        seconds=time.monotonic() - began,
    )


def _calibration(index: Sequence[Row]) -> Pixels:
    """Up to 288 index images, evenly spread."""
    step = max(1, len(index) // CALIBRATION)
    images = [pixels for _, pixels in prepared(index[::step][:CALIBRATION], Checks())]
    if len(images) < 2:
        raise InputError("the index has fewer than two images that can be read")
    return np.stack(images)


def _extractors(
    packs: Sequence[Candidate], lungs: controls.Lungs, index: Sequence[Row], options: Options
) -> dict[str, Extractor]:
    names = [c.name for c in packs]
    if len(set(names)) < len(names):
        raise UsageError(f"two packs have the name {max(names, key=names.count)!r}", place="--pack")
    first = packs[0]
    found: dict[str, Extractor] = {c.name: c.embed for c in packs}
    found[SMALL] = controls.small  # finds near copies, too
    if not options.controls:
        return found
    found |= {HISTOGRAM: controls.histogram, MEAN: controls.intensity}
    found[MASKED] = lambda images: first.embed(controls.lungs_masked(images, lungs))
    found[BORDER] = lambda images: first.embed(controls.border_only(images))
    if first.twin is not None:
        calibration = _calibration(index)
        found |= {f"{RANDOM} {seed}": controls.random_twin(first.twin, calibration, seed) for seed in options.drawn}
    return found


def _features(
    rows: Sequence[Row], extractors: Mapping[str, Extractor], checks: Checks, told: Callable[[int], None]
) -> tuple[list[Row], Features]:
    """The rows that could be used, and their features by name."""
    used: list[Row] = []
    parts: dict[str, list[Vectors]] = {name: [] for name in extractors}

    def flush(batch: list[Pixels]) -> None:
        images = np.stack(batch)
        for name, extract in extractors.items():
            parts[name].append(extract(images))
        batch.clear()
        told(len(used))

    batch: list[Pixels] = []
    for row, pixels in prepared(rows, checks):
        used.append(row)
        batch.append(pixels)
        if len(batch) == BATCH:
            flush(batch)
    if batch:
        flush(batch)
    if not used:
        raise InputError("no image could be read", place=str(rows[0].path.parent) if rows else "")
    return used, {name: np.concatenate(found) for name, found in parts.items()}


def _measure(task: Task, candidate: Candidate, index: Vectors, queries: Vectors) -> Method:
    began = time.monotonic()
    if index.shape[1] > MAX_DIM:  # longer than any pack's: no store takes it, the search is the same
        table = task.measure(cosine_ranker(index, queries))
    else:
        with index_ranker(candidate.model_id, index, queries) as ranker:
            table = task.measure(ranker)
    seconds = time.monotonic() - began
    return Method(candidate.name, "pack", (table,), (candidate.seed,), candidate.note, candidate.recipe, seconds)


def _permuted(
    task: Task, first: Candidate, asked: metrics.Bools, index: Vectors, queries: Vectors, seeds: tuple[int, ...]
) -> Method:
    """``asked``: queries with something to find; permuted, others may seem to have it too."""
    began, tables = time.monotonic(), []
    with index_ranker(first.model_id, index, queries) as ranker:
        ranker = _remembered(ranker)
        for seed in seeds:
            rng = np.random.default_rng(seed)
            drawn = [task.measure(ranker, rng.permutation(len(task.index))) for _ in range(SHUFFLES)]
            tables.append(metrics.of_queries(metrics.mean_of(drawn), asked))
    note = f"the ranking of {first.name}; relevance of the index rows permuted, mean of {SHUFFLES} permutations a seed"
    return Method(_control(PERMUTED), "control", tuple(tables), seeds, note, seconds=time.monotonic() - began)


def _remembered(ranker: Ranker) -> Ranker:
    """The same ranking, computed once a query."""
    held: dict[int, npt.NDArray[np.int32]] = {}

    def ranked(query: int, mask: metrics.Bools) -> npt.NDArray[np.int64]:
        if query not in held:
            held[query] = ranker(query, mask).astype(np.int32)
        return held[query].astype(np.int64)

    return ranked


def _controls(
    task: Task,
    first: Candidate,
    asked: metrics.Bools,
    index: Features,
    queries: Features,
    options: Options,
    checks: Checks,
) -> list[Method]:
    def made(what: str, rankers: Sequence[Ranker], note: str, seeds: tuple[int, ...] = (0,)) -> Method:
        began = time.monotonic()
        tables = tuple(task.measure(r) for r in rankers)
        return Method(_control(what), "control", tables, seeds, note, seconds=time.monotonic() - began)

    def cosine(what: str) -> list[Ranker]:
        return [cosine_ranker(index[what], queries[what])]

    a, b, names = controls.metadata(task.index, task.queries, (index[MEAN], queries[MEAN]))
    how = (
        f"a CE-Net ({options.lung_model.parent.name})"
        if options.lung_model
        else "a classical segmentation (no --lung-model)"
    )
    own = (first.seed,)  # of the controls that are the first pack on other images
    seeds = options.drawn
    drawn = [f"{RANDOM} {s}" for s in seeds if f"{RANDOM} {s}" in index]  # none of a pack of another kind
    twins = [cosine_ranker(index[name], queries[name]) for name in drawn]
    if not twins:
        checks.notes.append(
            f"control left out: {RANDOM}, as a network of the kind of {first.name} cannot be drawn anew"
        )
    return [
        made("metadata", [distance_ranker(a, b)], "nearest by " + ", ".join(names)),
        made(SMALL, cosine(SMALL), "centred, cosine"),
        made(HISTOGRAM, cosine(HISTOGRAM), "Bhattacharyya"),
        *_taught(task, index, queries, checks),
        *(
            [made(RANDOM, twins, f"architecture of {first.name}, statistics of the index images", seeds)]
            if twins
            else []
        ),
        made(MASKED, cosine(MASKED), f"{first.name}; lungs found by {how}", own),
        made(BORDER, cosine(BORDER), f"{first.name}; only the outer {controls.BORDER} of 224 pixels", own),
        _permuted(task, first, asked, index[first.name], queries[first.name], seeds),
    ]


def _taught(task: Task, index: Features, queries: Features, checks: Checks) -> list[Method]:
    """The controls that the labels of the index teach; none where no labels decide relevance."""
    if task.rules.graded:
        return []
    began = time.monotonic()
    found, lines = taught.teach(
        task.index, task.queries, (index[MEAN], queries[MEAN]), (index[HISTOGRAM], queries[HISTOGRAM]), task.rules
    )
    checks.notes += lines
    learnt = (time.monotonic() - began) / max(1, len(found))
    made = []
    for control in found:
        began = time.monotonic()
        table = task.measure(cosine_ranker(control.index, control.queries))
        seconds = learnt + time.monotonic() - began
        made.append(Method(_control(control.name), "control", (table,), (0,), control.note, taught.RECIPE, seconds))
    return made


def _control(what: str) -> str:
    return f"control: {what}"
