"""U-Net with four levels: the rival of CE-Net that is trained with a manifold-embedding or a classification loss.

Own implementation from Ronneberger et al., arXiv 1505.04597 (with norms and padded convolutions, so that the output
has the size of the input). It gives its last features and its bottleneck beside the segmentation, because the
embeddings of U-Net-ME and U-Net-ML are made of those. It holds no files and no training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 4  # halvings of the side: 224 -> 14


def _double(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """Architecture of a U-Net.

    Attributes
    ----------
    base : channels of the first level, doubled at each of the four below it (16 -> 256). Published: 64.
    classes : segmentation channels (lungs, infection).
    labels : classes of the diagnosis (U-Net-ML), 0 without one.
    """

    base: int = 16
    classes: int = 2
    labels: int = 0

    def __post_init__(self) -> None:
        if self.base < 8 or self.classes < 1 or self.labels < 0:
            raise ValueError("base at least 8, classes at least 1, labels not negative")

    def as_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


class UNet(nn.Module):
    """[n, 1, H, W] with H, W multiples of 16 -> segmentation logits, last features, bottleneck.

    Attributes
    ----------
    classify : linear classifier on the pooled bottleneck; only where ``config.labels`` is not 0.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        c = [config.base * 2**i for i in range(LEVELS + 1)]
        self.down = nn.ModuleList([_double(1, c[0]), *[_double(c[i], c[i + 1]) for i in range(LEVELS)]])
        self.up = nn.ModuleList([nn.ConvTranspose2d(c[i + 1], c[i], 2, 2) for i in range(LEVELS)])
        self.join = nn.ModuleList([_double(2 * c[i], c[i]) for i in range(LEVELS)])
        self.head = nn.Conv2d(c[0], config.classes, 1)
        self.classify = nn.Linear(c[-1], config.labels) if config.labels else None

    def levels(self, x: Tensor) -> list[Tensor]:
        """The way down: feature maps at H, H/2 ... H/16; the last is the bottleneck."""
        maps = [self.down[0](x)]
        for block in list(self.down)[1:]:
            maps.append(block(functional.max_pool2d(maps[-1], 2)))
        return maps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [n, classes, H, W], last features [n, base, H, W], bottleneck [n, 16 base, H/16, W/16]."""
        maps = self.levels(x)
        y = maps[-1]
        for i in reversed(range(LEVELS)):
            y = self.join[i](torch.cat([self.up[i](y), maps[i]], 1))
        return self.head(y), y, maps[-1]

    def diagnosis(self, x: Tensor) -> Tensor:
        """Logits [n, labels] of the pooled bottleneck.

        Raises
        ------
        ValueError
            The network has no classifier.
        """
        if self.classify is None:
            raise ValueError("this U-Net has no classifier")
        out: Tensor = self.classify(self.levels(x)[-1].mean((2, 3)))
        return out
