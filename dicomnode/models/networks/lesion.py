"""The lesion profile: how much of the lung is infected, and where, from a CE-Net's own outlines. No weights.

What a reader of a chest CT compares first: the infected fraction of six regions, left and right of the lung and three
heights. A slice without lung has none. The regions are those of ``dicomnode.evaluation.lesion``, which reads them from
outlines that people drew.
"""

from __future__ import annotations

import torch
from torch import Tensor

BANDS, SIDES = 3, 2
LESION_DIM = 2 * BANDS * SIDES  # infected and clear share of each region
STRAY = 0.005  # share of the lung's pixels at either end of an axis that may be no lung
FULL_SHARE = 0.01  # of the image: with less lung than this the profile counts for less, down to nothing


def lesion_code(logits: Tensor) -> Tensor:
    """The lesion profile as a vector, so that the cosine of two is the Bhattacharyya coefficient of their regions.

    Parameters
    ----------
    logits : float32 [n, 2, H, W]
        Of a CE-Net: lungs, infection.

    Returns
    -------
    float32 [n, 12]
        Square roots of the infected and of the clear share of each region; of length 1 where the lung fills 1 % of
        the image and more, of length 0 where there is none.
    """
    lung = (logits[:, 0] > 0).to(logits.dtype)
    infected = torch.sigmoid(logits[:, 1])
    rows = _regions(lung.sum(2), BANDS)
    columns = _regions(lung.sum(1), SIDES)
    area = torch.einsum("nbh,nhw,nsw->nbs", rows, lung, columns).flatten(1)
    ill = torch.einsum("nbh,nhw,nsw->nbs", rows, lung * infected, columns).flatten(1)
    share = (ill / area.clamp(min=1)).clamp(0, 1)
    code = torch.cat([share.sqrt(), (1 - share).sqrt()], 1) / (BANDS * SIDES) ** 0.5
    there = (lung.mean((1, 2)) / FULL_SHARE).clamp(max=1)
    out: Tensor = code * there[:, None]
    return out


def _regions(mass: Tensor, parts: int) -> Tensor:
    """Which part of the lung's extent each line of pixels belongs to, [n, length] -> 0 or 1 [n, parts, length]."""
    length = mass.shape[1]
    cumulative = mass.cumsum(1)
    total = cumulative[:, -1:]
    first = (cumulative <= STRAY * total).sum(1, keepdim=True)
    last = (cumulative < (1 - STRAY) * total).sum(1, keepdim=True)
    at = torch.arange(length, device=mass.device)[None]
    part = ((at - first) * parts // (last - first + 1).clamp(min=1)).clamp(0, parts - 1)
    return torch.stack([part == i for i in range(parts)], 1).to(mass.dtype)
