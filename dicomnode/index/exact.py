"""Exact search by cosine: one matrix product, then the best k of each row, in an order that never varies.

Unit vectors only, so the dot product is the cosine and the order is that of the Euclidean distance MRPT uses. Never
reads a disk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicomnode.index.segments import Vectors

BLOCK_VALUES = 1 << 26  # scores held at once: 256 MiB of float32
TIE = 2e-6  # float32 products of unit vectors differ by less between BLAS kernels
DECIMALS = 7  # ranks are decided on float64 cosines rounded to this: equal vectors tie whatever the kernel
MISSING = -np.inf  # similarity beside a padded position


def rescore(query: Vectors, matrix: Vectors, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosines of ``query`` [dim] with rows of ``matrix``, computed one way only, float64 rounded to ``DECIMALS``."""
    return np.round(matrix[positions].astype(np.float64) @ query.astype(np.float64), DECIMALS)


def best(
    query: Vectors, matrix: Vectors, positions: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best ``k`` of ``positions`` for one query: (positions int64 [k], float32 [k]), padded with -1 and -inf."""
    scores = rescore(query, matrix, positions)
    order = np.lexsort((positions, -scores))[:k]
    found = np.full(k, -1, dtype=np.int64)
    similarity = np.full(k, MISSING, dtype=np.float32)
    found[: len(order)] = positions[order]
    similarity[: len(order)] = scores[order]
    return found, similarity


def top_k(
    queries: Vectors, matrix: Vectors, k: int, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` rows of ``matrix`` nearest to each query, among those that ``mask`` allows.

    Parameters
    ----------
    queries : float32 [m, dim]
    matrix : float32 [n, dim]
    k : int
    mask : bool [n]

    Returns
    -------
    positions : int64 [m, k]
        -1 where fewer than ``k`` rows are allowed. Equal similarities: the older row first.
    similarity : float32 [m, k]
        Cosine; -inf beside -1.
    """
    m = queries.shape[0]
    positions = np.full((m, k), -1, dtype=np.int64)
    similarity = np.full((m, k), MISSING, dtype=np.float32)
    rows = np.flatnonzero(mask)
    if not len(rows) or not m:
        return positions, similarity
    sparse = len(rows) * 2 < len(mask)
    searched = matrix[rows] if sparse else matrix
    closed = np.empty(0, dtype=np.int64) if sparse else np.flatnonzero(~mask)
    step = max(1, BLOCK_VALUES // searched.shape[0])
    for start in range(0, m, step):
        scores = queries[start : start + step] @ searched.T
        scores[:, closed] = MISSING
        cut = len(rows) - min(k, len(rows)) + len(closed)
        threshold = np.partition(scores, cut, axis=1)[:, cut] - TIE
        for i, row in enumerate(scores):
            near = np.flatnonzero(row >= threshold[i])
            near = rows[near] if sparse else near
            positions[start + i], similarity[start + i] = best(queries[start + i], matrix, near, k)
    return positions, similarity
