"""What is asked and what counts as right: index rows, query rows, which of them are open to each other, relevance.

A row is closed to a query when it is the same image, of the same group (patient, volume), or a near copy (cosine of the
centred 32x32 pixels above .98). Labels decide relevance, or profiles for graded relevance. Reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dicomnode.evaluation import metrics
from dicomnode.evaluation.labels import Row
from dicomnode.evaluation.metrics import Bools, Floats, PerQuery

NEAR_COPY = 0.98  # cosine of centred 32x32 pixels
PROFILE_FLOOR = 0.01  # infected fraction of a region below which nobody would call it infected
RELEVANT_AGREEMENT = 0.5  # graded agreement from which a row counts as relevant in P@k, R@k and AP

Ranker = Callable[[int, Bools], npt.NDArray[np.int64]]  # (query, open rows) -> open rows, best first
Vectors = npt.NDArray[np.float32]


def agreement(profile: Floats, others: Floats) -> Floats:
    """How far infected fractions agree, region by region: (sum of minima + e) / (sum of maxima + e).

    Parameters
    ----------
    profile : float64 [d]
        Infected fraction of each region, 0..1.
    others : float64 [n, d]

    Returns
    -------
    float64 [n]
        1 for equal profiles, two lungs without infection among them; 0 for infection in different regions only. It is
        1 - (mean absolute difference) / (mean of the larger values), the weighted Jaccard index (Ruzicka 1958), with
        e = d * .01 so that traces below 1 % of a region decide nothing.
    """
    e = PROFILE_FLOOR * others.shape[1]
    smaller = np.minimum(profile, others).sum(axis=1) + e
    larger = np.maximum(profile, others).sum(axis=1) + e
    return np.asarray(smaller / larger, dtype=np.float64)


@dataclass(frozen=True)
class Rules:
    """What a protocol rules.

    Attributes
    ----------
    graded : relevance is the agreement of profiles; else an equal label.
    close_group : rows of the query's own group are closed.
    close_near : near copies are closed; counted in any case.
    """

    graded: bool = False
    close_group: bool = True
    close_near: bool = True


@dataclass(frozen=True)
class Task:
    """Index and queries that can be used, with what decides relevance and exclusion.

    Attributes
    ----------
    small_index, small_queries : float32 [n, 1024] and [m, 1024]
        Centred 32x32 pixels of length 1.
    """

    index: Sequence[Row]
    queries: Sequence[Row]
    small_index: Vectors
    small_queries: Vectors
    rules: Rules = field(default_factory=Rules)

    @cached_property
    def _labels(self) -> npt.NDArray[np.str_]:
        return np.array([r.label for r in self.index])

    @cached_property
    def _clusters(self) -> npt.NDArray[np.str_]:
        return np.array([r.cluster for r in self.index])

    @cached_property
    def _paths(self) -> npt.NDArray[np.str_]:
        return np.array([str(r.path.resolve()) for r in self.index])

    @cached_property
    def _profiles(self) -> Floats:
        return np.array([r.profile for r in self.index], dtype=np.float64)

    @cached_property
    def classes(self) -> npt.NDArray[np.str_]:
        """Label of each query, str [m]."""
        return np.array([r.label for r in self.queries])

    @cached_property
    def clusters(self) -> npt.NDArray[np.str_]:
        """Patient of each query, str [m]."""
        return np.array([r.cluster for r in self.queries])

    def near(self, query: int) -> Bools:
        """Rows that are near copies of a query, bool [n]."""
        return np.asarray(self.small_index @ self.small_queries[query] > NEAR_COPY)

    def open_rows(self, query: int) -> Bools:
        """Rows that may be answers to a query, bool [n]."""
        row = self.queries[query]
        closed = self._paths == str(row.path.resolve())
        if self.rules.close_group:
            closed |= self._clusters == row.cluster
        if self.rules.close_near:
            closed |= self.near(query)
        return np.asarray(~closed)

    def near_copies(self) -> tuple[int, int]:
        """Pairs of query and index row that are near copies of different patients, and queries that have one."""
        counts = [int((self.near(i) & (self._clusters != row.cluster)).sum()) for i, row in enumerate(self.queries)]
        return sum(counts), sum(c > 0 for c in counts)

    def relevance(self, query: int) -> tuple[Floats, Bools]:
        """Gain 0..1 and binary relevance of every index row, float64 and bool [n]."""
        row = self.queries[query]
        if not self.rules.graded:
            same = self._labels == row.label
            return same.astype(np.float64), same
        gains = agreement(np.array(row.profile), self._profiles)
        return gains, gains >= RELEVANT_AGREEMENT

    def measure(self, ranker: Ranker, shuffle: npt.NDArray[np.int64] | None = None) -> PerQuery:
        """Figures of a method on every query.

        Parameters
        ----------
        ranker : the method.
        shuffle : int64 [n], optional
            A permutation of the index rows whose relevance is used instead of their own: the control in which labels
            mean nothing.
        """
        judged = []
        for i in range(len(self.queries)):
            order = ranker(i, self.open_rows(i))
            gains, relevant = self.relevance(i)
            if shuffle is not None:
                gains, relevant = gains[shuffle], relevant[shuffle]
            judged.append(metrics.judge(gains[order], relevant[order]))
        return metrics.collect(judged, self.classes, self.clusters)
