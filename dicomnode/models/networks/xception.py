"""Xception on CE-Net's RMP encoding, in its native form: stride 1 throughout, so every value keeps its place.

Own implementation of Chollet, arXiv 1610.02357. Published Xception shrinks the image; here the input is already the
stride-32 grid, so strides are 1 and a last 1x1 convolution returns to the encoding's channels: the activation has the
encoding's shape and a match can be explained per region. It never sees pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

SEPCONVS_ENTRY = 2  # separable convolutions in an entry or exit block
SEPCONVS_MIDDLE = 3


def sepconv(channels_in: int, channels_out: int) -> nn.Sequential:
    """ReLU, depthwise 3x3, pointwise 1x1, norm."""
    return nn.Sequential(
        nn.ReLU(),  # not in place: the block's input is also its shortcut
        nn.Conv2d(channels_in, channels_in, 3, 1, 1, groups=channels_in, bias=False),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class XceptionBlock(nn.Module):
    """n separable convolutions with a shortcut (1x1 where the channels change)."""

    def __init__(self, channels_in: int, channels_out: int, n: int = SEPCONVS_ENTRY) -> None:
        super().__init__()
        rest = [sepconv(channels_out, channels_out) for _ in range(n - 1)]
        self.body = nn.Sequential(sepconv(channels_in, channels_out), *rest)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.body(x)
        return y


@dataclass(frozen=True, slots=True)
class XceptionConfig:
    """Architecture of the Xception; part of a pack's identity.

    Attributes
    ----------
    in_channels : channels of the RMP encoding (324 with lite0, 516 with ResNet34 at full width).
    stem, stem_kernel : plain convolutions before the entry blocks. Published: (32, 64) of 3x3.
    entry : entry blocks. Published: (128, 256, 728).
    middle : number of middle blocks of three separable convolutions. Published: 8.
    exit_block : channels of the exit block, 0 for none. Published: 1024.
    exit : exit separable convolutions. Published: (1536, 2048).
    """

    in_channels: int = 324
    stem: tuple[int, ...] = (192,)
    stem_kernel: int = 1
    entry: tuple[int, ...] = (256, 384)
    middle: int = 2
    exit_block: int = 0
    exit: tuple[int, ...] = (512,)

    def __post_init__(self) -> None:
        for name in ("stem", "entry", "exit"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not (self.stem and self.entry and self.exit) or self.stem_kernel not in (1, 3):
            raise ValueError("stem, entry and exit each need a width; stem_kernel is 1 or 3")

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def published_xception(in_channels: int = 516) -> XceptionConfig:
    """The published widths: entry 32, 64, 128, 256, 728; middle 8 x 728; exit 1024, 1536, 2048."""
    return XceptionConfig(in_channels, (32, 64), 3, (128, 256, 728), 8, 1024, (1536, 2048))


class Xception(nn.Module):
    """Activation of the encoding's own shape: [n, C, h, w] -> [n, C, h, w], not negative."""

    def __init__(self, config: XceptionConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [nn.BatchNorm2d(config.in_channels)]
        previous = config.in_channels
        for width in config.stem:
            k = config.stem_kernel
            layers += [nn.Conv2d(previous, width, k, 1, k // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            previous = width
        for width in config.entry:
            layers.append(XceptionBlock(previous, width))
            previous = width
        layers += [XceptionBlock(previous, previous, SEPCONVS_MIDDLE) for _ in range(config.middle)]
        if config.exit_block:
            layers.append(XceptionBlock(previous, config.exit_block))
            previous = config.exit_block
        for width in config.exit:
            layers.append(sepconv(previous, width))
            previous = width
        layers += [
            nn.ReLU(),
            nn.Conv2d(previous, config.in_channels, 1, bias=False),
            nn.BatchNorm2d(config.in_channels),
            nn.ReLU(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.layers(z)
        return y


class TrainingHeads(nn.Module):
    """What the Xception is trained through: class logits and a unit projection of its pooled activation.

    Not shipped in a pack.
    """

    def __init__(self, channels: int, classes: int = 2, projection: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(channels, classes)
        self.project = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, projection))

    def forward(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """[n, C, h, w] -> (logits [n, classes], unit vectors [n, projection])."""
        pooled = activation.mean((2, 3))
        return self.classify(self.dropout(pooled)), functional.normalize(self.project(pooled), dim=1)
