"""What every network of ours does to a batch before it looks: one rule, shared by training and embedding.

Per-image standardisation takes the window's brightness and contrast out; it is part of a pack's preprocessing spec.
"""

from __future__ import annotations

from torch import Tensor

STANDARDISE_EPS = 0.05  # keeps a constant image at zero instead of dividing by nothing


def standardise(x: Tensor) -> Tensor:
    """float [n, C, H, W] -> the same shape, each image minus its mean over (its standard deviation + .05)."""
    mean = x.mean((1, 2, 3), keepdim=True)
    std = x.std((1, 2, 3), keepdim=True)
    return (x - mean) / (std + STANDARDISE_EPS)
