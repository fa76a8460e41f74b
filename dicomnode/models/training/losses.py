"""The losses: BCE + batch Dice for segmentation, supervised contrastive for the embedding. Pure functions.

Facts: Gu et al. 2019 (Dice; their code trains on only one of BCE and Dice, here both are summed); Khosla et al.,
arXiv 2004.11362 (supervised contrastive).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits and masks [n, K, H, W] -> scalar: BCE plus one minus the Dice of the whole batch, mean over classes."""
    p = torch.sigmoid(logits)
    together = (p * masks).sum((0, 2, 3))
    dice = (2 * together + 1) / ((p + masks).sum((0, 2, 3)) + 1)
    return functional.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


def supervised_contrastive(unit: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Unit vectors [n, d] and labels [n] -> scalar; each is drawn to all others of its label."""
    scores = unit @ unit.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=unit.device)
    scores = scores.masked_fill(itself, -1e9)
    same = (labels[:, None] == labels[None]) & ~itself
    log_p = scores - scores.logsumexp(1, keepdim=True)
    return -((log_p * same).sum(1) / same.sum(1).clamp(min=1)).mean()
