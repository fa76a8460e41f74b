"""How often the nearest studies of other patients share a finding: precision at k by a site's own findings.

Only labelled studies count: those with a finding that a source states. A study whose status is unknown is in no
denominator and in no numerator, as a query or as a neighbour: unknown is never negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_PATIENTS = 20  # labelled: fewer say nothing about a model
K = 10
BOOTSTRAPS = 2000
SEED = 20180411

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Precision:
    """Mean precision with its 95 % interval over patients, and on how much it stands."""

    mean: float
    low: float
    high: float
    studies: int
    patients: int


def precision_at(
    vectors: Floats, patients: Sequence[str], findings: Sequence[frozenset[str]], k: int = K
) -> Precision | None:
    """Precision at ``k`` of labelled studies among labelled studies of other patients.

    Parameters
    ----------
    vectors : float32 [n, dim]
        One unit vector a study.
    patients : sequence of str
        Whose each study is.
    findings : sequence of frozenset of str
        Stated findings of each study (a stated absence is a finding of its own); empty: unknown.

    Returns
    -------
    Precision, optional
        None with fewer than ``MIN_PATIENTS`` labelled patients. A neighbour is relevant where it shares a finding.
        The interval is the percentile bootstrap over the patients of the queries.
    """
    labelled = np.array([bool(f) for f in findings], dtype=bool)
    owner = np.asarray(patients)[labelled]
    if len(np.unique(owner)) < MIN_PATIENTS:
        return None
    stated = [f for f in findings if f]
    score = vectors[labelled] @ vectors[labelled].T
    score[owner[:, None] == owner[None]] = -np.inf
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    per_study = np.array(
        [np.mean([bool(stated[i] & stated[j]) for j in row if np.isfinite(score[i, j])]) for i, row in enumerate(order)]
    )
    by_patient = {name: per_study[owner == name] for name in np.unique(owner)}
    low, high = _interval(by_patient)
    return Precision(float(per_study.mean()), low, high, len(stated), len(by_patient))


def _interval(by_patient: Mapping[str, npt.NDArray[np.float64]]) -> tuple[float, float]:
    sums = np.array([v.sum() for v in by_patient.values()])
    counts = np.array([len(v) for v in by_patient.values()])
    drawn = np.random.default_rng(SEED).integers(0, len(sums), (BOOTSTRAPS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
