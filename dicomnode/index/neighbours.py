"""How the shown cases lie to one another: an angle for each, and which of them are nearest to which.

For drawing only: ranks, similarities and verdicts come from ``cases`` and ``ranking``. The angle is that of the first
two principal components of the cases' vectors (Pearson 1901), so that cases alike point the same way; the same vectors
give the same picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicomnode.index.ranking import DECIMALS, Probe, similarities
from dicomnode.index.resident import Resident
from dicomnode.index.segments import Vectors

NEAREST = 3  # edges from each case
FLAT = 1e-6  # a projection shorter than this has no direction


def best_rows(now: Resident, probe: Probe | None, studies: list[int]) -> NDArray[np.int64]:
    """Position of each study's slice that matches the probe best; of its middle one without a probe. int64 [n]."""
    rows = [now.rows_of(study) for study in studies]
    if probe is None:
        return np.array([r[len(r) // 2] for r in rows], dtype=np.int64)
    found = []
    for mine in rows:
        scores = np.round(similarities(now, probe, mine)[1], DECIMALS)
        found.append(mine[int(scores.argmax()) % len(mine)])  # the first of equal ones, as ``ranking.best_pairs``
    return np.array(found, dtype=np.int64)


def angles(vectors: Vectors) -> NDArray[np.float64]:
    """Angle of each case in radians, float64 [n], from unit vectors float32 [n, dim].

    Where the vectors have no spread (one case, copies) the cases are spread evenly by their order.
    """
    n = len(vectors)
    even: NDArray[np.float64] = 2 * np.pi * np.arange(n) / max(1, n)
    if n < 2:
        return even
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    if n <= centred.shape[1]:
        values, left = np.linalg.eigh(centred @ centred.T)
        plane = left[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0))
    else:
        _, axes = np.linalg.eigh(centred.T @ centred)
        plane = centred @ axes[:, -2:]
    plane = plane[:, ::-1]  # eigh is ascending
    strongest = np.abs(plane).argmax(axis=0)
    plane = plane * np.where(plane[strongest, np.arange(plane.shape[1])] < 0, -1.0, 1.0)  # an axis has no sign
    flat = np.hypot(plane[:, 0], plane[:, 1]) < FLAT
    return np.where(flat, even, np.arctan2(plane[:, 1], plane[:, 0]))


def edges(vectors: Vectors, nearest: int = NEAREST) -> list[tuple[int, int, float]]:
    """Each case with its ``nearest`` among the others: (i, j, 1 - cosine) with i < j, each pair once, in order."""
    n = len(vectors)
    wanted = min(nearest, n - 1)
    if wanted < 1:
        return []
    distance = np.clip(1.0 - (vectors @ vectors.T).astype(np.float64), 0.0, 2.0).round(DECIMALS)
    np.fill_diagonal(distance, np.inf)
    rows = np.repeat(np.arange(n), wanted)
    left, columns = distance.copy(), np.empty((n, wanted), dtype=np.int64)
    for place in range(wanted):  # the first of equal ones; to sort a thousand rows whole takes ten times as long
        columns[:, place] = left.argmin(axis=1)
        left[np.arange(n), columns[:, place]] = np.inf
    pairs = np.unique(np.sort(np.stack([rows, columns.ravel()], axis=1), axis=1), axis=0)
    return [(int(i), int(j), float(distance[i, j])) for i, j in pairs]
