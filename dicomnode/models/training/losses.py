"""The losses: BCE + batch Dice for segmentation, supervised contrastive and manifold embedding. Pure functions.

Facts: Gu et al. 2019 (Dice; their code trains on only one of BCE and Dice, here both are summed); Khosla et al.,
arXiv 2004.11362 (supervised contrastive); Baur et al., arXiv 1703.06000 (manifold embedding).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def segmentation_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None) -> Tensor:
    """Logits and masks [n, K, H, W] -> scalar: BCE plus one minus the Dice of the whole batch, mean over classes.

    Parameters
    ----------
    known : Tensor, optional
        Bool [n, K]: which masks were drawn; what is unknown costs nothing. None: all.
    """
    if known is not None and not bool(known.all()):
        return _partly_known(logits, masks, known)
    p = torch.sigmoid(logits)
    together = (p * masks).sum((0, 2, 3))
    dice = (2 * together + 1) / ((p + masks).sum((0, 2, 3)) + 1)
    return functional.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


def _partly_known(logits: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    if not bool(known.any()):
        return logits.sum() * 0
    w = known.to(logits.dtype)[:, :, None, None]
    p = torch.sigmoid(logits) * w
    dice = (2 * (p * masks).sum((0, 2, 3)) + 1) / ((p + masks * w).sum((0, 2, 3)) + 1)
    bce = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((2, 3), keepdim=True)
    seen = known.any(0).to(logits.dtype)
    return (bce * w).sum() / w.sum() + ((1 - dice) * seen).sum() / seen.sum()


def supervised_contrastive(unit: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Unit vectors [n, d] and labels [n] -> scalar; each is drawn to all others of its label."""
    scores = unit @ unit.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=unit.device)
    scores = scores.masked_fill(itself, -1e9)
    same = (labels[:, None] == labels[None]) & ~itself
    log_p = scores - scores.logsumexp(1, keepdim=True)
    return -((log_p * same).sum(1) / same.sum(1).clamp(min=1)).mean()


MARGIN = 0.5  # of an angular distance in 0..1
COSINE_LIMIT = 1 - 1e-6  # the arc cosine has no slope at its ends


def manifold_embedding(features: Tensor, labels: Tensor, margin: float = MARGIN) -> Tensor:
    """Sampled pixel features [n, d] and their labels [n] -> scalar, the mean over all pairs of different samples.

    Pairs of one label cost their angular distance arccos(cos) / pi, others what they lack to the margin.
    """
    unit = functional.normalize(features, dim=1)
    distance = torch.arccos((unit @ unit.T).clamp(-COSINE_LIMIT, COSINE_LIMIT)) / math.pi
    same = labels[:, None] == labels[None]
    cost = torch.where(same, distance, (margin - distance).clamp(min=0))
    pairs = ~torch.eye(len(labels), dtype=torch.bool, device=features.device)
    return cost[pairs].mean()
