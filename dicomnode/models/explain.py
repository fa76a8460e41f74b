"""Why two slices are alike: how much their similarity falls when a region of one of them is covered.

Occlusion (Zeiler and Fergus 2014) of a grid of regions, both ways, with the network itself; no gradient and no second
model. Covered means black, the background of every prepared slice: regions that are black already change nothing and
are not computed. Never says what a region is, only what it weighs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Embed = Callable[[Floats], Floats]

CELLS = 8  # a side: 28 pixels of 224, as fine as the network's own last maps (7)
BLACK = 1 / 255  # of the full range: a region at or below it is covered already
DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Explanation:
    """Falls in similarity, float64 [cells, cells], when a region of the case or of the query is covered; < 0: rises."""

    case: npt.NDArray[np.float64]
    query: npt.NDArray[np.float64]
    similarity: float


def occlusion(embed: Embed, case: Floats, query: Floats, cells: int = CELLS) -> Explanation:
    """Compare two prepared slices region by region.

    Parameters
    ----------
    embed : callable
        Prepared slices float32 [n, side, side] to unit vectors float32 [n, dim].
    case, query : float32 [side, side] in 0..1.
    cells : int
        Regions a side.
    """
    covered_case, at_case = _covered(case, cells)
    covered_query, at_query = _covered(query, cells)
    vectors = embed(np.concatenate([np.stack([case, query]), covered_case, covered_query]))
    whole = float(vectors[0] @ vectors[1])
    n = 2 + len(at_case)
    return Explanation(
        case=_map(whole - vectors[2:n] @ vectors[1], at_case, cells),
        query=_map(whole - vectors[n:] @ vectors[0], at_query, cells),
        similarity=round(min(1.0, max(0.0, whole)), DECIMALS),
    )


def _covered(image: Floats, cells: int) -> tuple[Floats, list[tuple[int, int]]]:
    """The slice once for each region that is not black, with that region black, and which regions these are."""
    rows, columns = (np.linspace(0, side, cells + 1).astype(int) for side in image.shape)
    made: list[Floats] = []
    at: list[tuple[int, int]] = []
    for i in range(cells):
        for j in range(cells):
            region = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
            if image[region].max(initial=0.0) > BLACK:
                one = image.copy()
                one[region] = 0.0
                made.append(one)
                at.append((i, j))
    return np.stack(made) if made else np.empty((0, *image.shape), dtype=np.float32), at


def _map(falls: Floats, at: list[tuple[int, int]], cells: int) -> npt.NDArray[np.float64]:
    grid = np.zeros((cells, cells), dtype=np.float64)
    for (i, j), fall in zip(at, falls, strict=True):
        grid[i, j] = round(float(fall), DECIMALS)
    return grid
