"""Figures of retrieval: P@k, R@k, average precision, nDCG@k for each query, and what may be said of their means.

Pure functions on arrays. A query's figures count only rows that were open to it (not itself, not its patient, no near
copy); where none of them is relevant its figures are NaN and it is left out of every mean. Intervals come from a
bootstrap over patients within each class (the slices of a patient are no independent evidence); differences between two
methods use the same draws. Sources: Manning et al. 2008 ch. 8 (precision, recall, average precision); Jarvelin and
Kekalainen 2002 (nDCG, here with the gain itself and log2 discount); Bestgen 2015 (expected average precision of a
random order); Efron and Tibshirani 1993 (percentile bootstrap); Wilson 1927.
``dicomnode.models.training.figures`` draws the same bootstrap for model cards; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_K = 50
SHOWN_KS = (1, 5, 10, 50)  # of tables and of the JSON
BOOTSTRAP = 1000
LOW, HIGH = 2.5, 97.5  # percentiles of a 95 % interval
Z_95 = 1.959963984540054  # two-sided 95 % point of the normal distribution

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class PerQuery:
    """Figures of each query, aligned with classes and clusters.

    Attributes
    ----------
    precision, recall, ceiling, ndcg : float64 [m, 50]
        At k = 1 to 50; ``ceiling`` is the highest recall that k cases allow. NaN where nothing is relevant; precision
        and ndcg also at a k that the ranking does not reach (``judge``).
    ap : float64 [m]
        Average precision.
    classes, clusters : str [m]
        Label of the query; who is drawn as one in the bootstrap (its patient).
    """

    precision: Floats
    recall: Floats
    ceiling: Floats
    ndcg: Floats
    ap: Floats
    classes: Strings
    clusters: Strings

    @property
    def counted(self) -> Bools:
        """Queries that have figures, bool [m]."""
        return ~np.isnan(self.ap)

    def column(self, name: str) -> Floats:
        """One figure of each query by its name: ``ap``, or ``precision@10``, ``recall@50``, ``ndcg@10`` ...

        Raises
        ------
        KeyError
            No such figure.
        """
        if name == "ap":
            return self.ap
        what, _, k = name.partition("@")
        if what not in ("precision", "recall", "ceiling", "ndcg") or not k.isdigit() or not 1 <= int(k) <= MAX_K:
            raise KeyError(name)
        return np.asarray(getattr(self, what)[:, int(k) - 1], dtype=np.float64)


def judge(gains: Floats, relevant: Bools, total: int | None = None, n_open: int | None = None) -> dict[str, Any]:
    """Figures of one ranking.

    Parameters
    ----------
    gains : float64 [n]
        Graded relevance in 0..1 of all rows that were open, in the order of the ranking.
    relevant : bool [n]
        Binary relevance in the same order.
    total : int, optional
        Relevant rows that were open, where the ranking does not hold them all; else those in it. Those it lacks have
        gain 1 in the ideal order of nDCG.
    n_open : int, optional
        Rows that were open, where the ranking does not hold them all; else those in it.

    Returns
    -------
    dict
        ``precision``, ``recall``, ``ceiling``, ``ndcg`` (float64 [50] each) and ``ap``. P@k divides by k, or by what
        was open where that is less. All NaN where nothing is relevant; P@k and nDCG@k also where the ranking ends
        before k though more rows were open: nobody can say what would have come next.
    """
    all_relevant = int(relevant.sum()) if total is None else total
    if not all_relevant or not len(relevant):
        nothing = np.full(MAX_K, np.nan)
        return {"precision": nothing, "recall": nothing, "ceiling": nothing, "ndcg": nothing, "ap": float("nan")}
    hit = relevant.astype(np.float64)
    found = hit.cumsum()
    k = np.arange(1, MAX_K + 1)
    at = np.minimum(k, len(hit)) - 1
    best = np.sort(np.concatenate([gains, np.ones(max(0, all_relevant - int(relevant.sum())))]))[::-1]
    discount = 1.0 / np.log2(np.arange(2, len(best) + 2))
    ideal = (best * discount).cumsum()[np.minimum(k, len(best)) - 1]
    reached = (gains * discount[: len(gains)]).cumsum()[at]
    ends_early = len(hit) < np.minimum(k, len(hit) if n_open is None else n_open)
    ndcg = np.divide(reached, ideal, out=np.zeros(MAX_K), where=ideal > 0)
    return {
        "precision": np.where(ends_early, np.nan, found[at] / (at + 1)),
        "recall": found[at] / all_relevant,
        "ceiling": np.minimum(k, all_relevant) / all_relevant,
        "ndcg": np.where(ends_early, np.nan, ndcg),
        "ap": float((found / np.arange(1, len(hit) + 1) * hit).sum() / all_relevant),
    }


def random_ap(shares: Floats, reached: Floats) -> float:
    """Expected average precision of rows in random order, exact (Bestgen 2015, here cut at a rank).

    The chance of a hit at rank i times the expected precision there, given the hit; summed over the ranks and divided
    by the relevant rows that a list can hold. It is more than the share of relevant rows, much so among few rows.

    Parameters
    ----------
    shares : float64 [n]
        Chance of each row to be relevant where it appears, 0 or 1 where that is certain; one at least above 0.
    reached : float64 [m]
        Chance that the list has a row at rank i = 1 to m; 0 beyond n.
    """
    n, rank = len(shares), np.arange(1, len(reached) + 1)
    hit = shares.sum() / n
    two_hits = (shares.sum() ** 2 - (shares**2).sum()) / max(1, n * (n - 1))  # at two given ranks
    expected = (reached * (hit + (rank - 1) * two_hits) / rank).sum()
    return float(expected / min(np.count_nonzero(shares), len(reached)))


@lru_cache(maxsize=1024)
def drawn_at_least(wanted: int, n: int, drawn: int) -> Floats:
    """Chance of at least i = 1 to ``drawn`` wanted rows among ``drawn`` of ``n`` rows, ``wanted`` of them wanted.

    Returns
    -------
    float64 [drawn]
        Tail of the hypergeometric distribution; of ``n`` rows where fewer than ``drawn`` are there. Read-only.
    """
    taken = min(drawn, n)
    exactly = [comb(wanted, i) * comb(n - wanted, taken - i) for i in range(taken + 1)]
    tail = [sum(exactly[i:]) / comb(n, taken) for i in range(1, taken + 1)]
    found = np.array(tail + [0.0] * (drawn - taken))
    found.setflags(write=False)  # it is kept for the next query
    return found


def collect(judged: Sequence[dict[str, Any]], classes: Strings, clusters: Strings) -> PerQuery:
    """The figures of all queries as one table."""
    stacked = {k: np.stack([j[k] for j in judged]) for k in ("precision", "recall", "ceiling", "ndcg")}
    return PerQuery(**stacked, ap=np.array([j["ap"] for j in judged]), classes=classes, clusters=clusters)


def mean_of(tables: Sequence[PerQuery]) -> PerQuery:
    """Each query's mean over several runs (seeds) of one method on the same queries."""
    first = tables[0]
    names = ("precision", "recall", "ceiling", "ndcg", "ap")
    means = {name: np.mean([getattr(t, name) for t in tables], axis=0) for name in names}
    return PerQuery(**means, classes=first.classes, clusters=first.clusters)


def of_queries(table: PerQuery, which: Bools) -> PerQuery:
    """The table with the figures of the queries in ``which`` (bool [m]) alone; the others have none."""
    names = ("precision", "recall", "ceiling", "ndcg", "ap")
    kept = {}
    for name in names:
        values = np.array(getattr(table, name), dtype=np.float64)
        values[~which] = np.nan
        kept[name] = values
    return PerQuery(**kept, classes=table.classes, clusters=table.clusters)


def macro(values: Floats, classes: Strings) -> Floats:
    """Mean over classes of the mean over queries; float64 of ``values.shape[1:]``. NaN rows are left out."""
    rows = ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
    kept, names = values[rows], classes[rows]
    if not len(kept):
        return np.full(values.shape[1:], np.nan)
    return np.asarray(np.mean([kept[names == c].mean(axis=0) for c in np.unique(names)], axis=0), dtype=np.float64)


def bootstrap(values: Floats, classes: Strings, clusters: Strings, seed: int = 0) -> Floats:
    """Macro means of ``values`` [m, d] in 1,000 draws of clusters within each class, float64 [1000, d].

    The draws depend on classes, clusters and seed alone, so that two methods measured on the same queries meet the
    same draws: their differences are paired.
    """
    rows = ~np.isnan(values).any(axis=1)
    kept, names, who = values[rows], classes[rows], clusters[rows]
    rng = np.random.default_rng(seed)
    draws = []
    for c in np.unique(names):
        groups, member = np.unique(who[names == c], return_inverse=True)
        sums = np.zeros((len(groups), values.shape[1]))
        np.add.at(sums, member, kept[names == c])
        counts = np.bincount(member)
        chosen = rng.integers(0, len(groups), (BOOTSTRAP, len(groups)))
        draws.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)[:, None])
    return np.asarray(np.mean(draws, axis=0), dtype=np.float64)


def figures_of(values: Floats, classes: Strings, clusters: Strings, seed: int = 0) -> list[dict[str, Any]]:
    """``{"mean", "ci": [low, high]}`` of each column of ``values`` [m, d]; None where no query has a figure.

    A query counts in each column in which it has a figure; columns of the same queries meet the same draws.
    """
    found: list[dict[str, Any]] = [{"mean": None, "ci": [None, None]} for _ in range(values.shape[1])]
    lacking = np.isnan(values)
    for pattern in {column.tobytes(): column for column in lacking.T}.values():
        if pattern.all():  # of no rows, too
            continue
        columns = np.flatnonzero((lacking == pattern[:, None]).all(axis=0))
        mean = macro(values[:, columns], classes)
        low, high = np.percentile(bootstrap(values[:, columns], classes, clusters, seed), [LOW, HIGH], axis=0)
        for i, m, a, b in zip(columns, mean, low, high, strict=True):
            found[i] = {"mean": round(float(m), 4), "ci": [round(float(a), 4), round(float(b), 4)]}
    return found


def difference(one: PerQuery, other: PerQuery, name: str = "precision@10", seed: int = 0) -> dict[str, Any]:
    """``one`` minus ``other`` in one figure, macro, with the 95 % interval of the paired bootstrap.

    Raises
    ------
    ValueError
        The two tables are not of the same queries.
    """
    same = np.array_equal(one.classes, other.classes) and np.array_equal(one.clusters, other.clusters)
    if not same:
        raise ValueError("paired differences need the same queries in the same order")
    apart = one.column(name) - other.column(name)
    found: dict[str, Any] = figures_of(apart[:, None], one.classes, one.clusters, seed)[0]
    return found


def row_of(name: str, table: PerQuery, seed: int = 0) -> dict[str, Any]:
    """ROW of the command-line contract: macro figures with intervals, and the same by class."""
    whole = _figures(table, np.ones(len(table.ap), dtype=bool), seed)
    classes = np.unique(table.classes[table.counted])
    by_class = {str(c): _figures(table, table.classes == c, seed) for c in classes}
    return {"name": name, **whole, "by_class": by_class}


def _figures(table: PerQuery, rows: Bools, seed: int) -> dict[str, Any]:
    at = [k - 1 for k in SHOWN_KS]
    blocks = (table.precision[:, at], table.recall[:, at], table.ceiling[:, at], table.ndcg[:, at], table.ap[:, None])
    values = np.concatenate(blocks, axis=1)[rows]
    found = figures_of(values, table.classes[rows], table.clusters[rows], seed)
    n = len(SHOWN_KS)
    parts = {
        name: {str(k): found[i * n + j] for j, k in enumerate(SHOWN_KS)}
        for i, name in enumerate(("precision", "recall", "recall_ceiling", "ndcg"))
    }
    counted = table.counted & rows
    return {
        **parts,
        "map": found[-1],
        "queries": int(counted.sum()),
        "patients": len(np.unique(table.clusters[counted])),
    }


def curves_of(table: PerQuery) -> dict[str, dict[str, list[float]]]:
    """Macro precision and recall at k = 1 to 50, over all queries ("all") and over each class."""
    out: dict[str, dict[str, list[float]]] = {}
    for name in ("all", *np.unique(table.classes[table.counted]).tolist()):
        rows = np.ones(len(table.ap), dtype=bool) if name == "all" else table.classes == name
        out[name] = {
            what: [round(float(v), 4) for v in macro(getattr(table, what)[rows], table.classes[rows])]
            for what in ("precision", "recall")
        }
    return out


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion of ``n`` independent trials (Wilson 1927).

    Raises
    ------
    ValueError
        No trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError("a proportion needs 0 <= successes <= n and n >= 1")
    p, z2 = successes / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
