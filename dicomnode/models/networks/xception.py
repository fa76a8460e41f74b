"""Xception on CE-Net's RMP encoding, in two forms; both give an activation of the encoding's own shape.

Own implementation of Chollet, arXiv 1610.02357. It never sees pixels.

**Native** (default): the input is already the stride-32 grid, so strides are 1 and a last 1x1 convolution returns to
the encoding's channels. Every value keeps its place, and a match can be explained per region.

**Literal**: the encoding [C, h, w] is laid out as one grey plane, row after row in the order of its memory, and the
Xception shrinks that plane as it would an image; a 1x1 convolution and a pixel shuffle bring it back to the plane's
size (what reaches beyond it is cut off) and the plane back to [C, h, w]. The plane's sides are the factors of C x h x w
nearest to a square, the longer one down: 516x16x16 = 132,096 values at 512 px are 384x344, the published layout; at
224 px 516x7x7 are 172x147 and 324x7x7 are 126x126. Neighbours in the plane are not neighbours in the image: a
match of this form cannot be explained per region.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
    """n separable convolutions, a max-pool where the stride is 2, and a shortcut (1x1 where the shape changes)."""

    def __init__(self, channels_in: int, channels_out: int, n: int = SEPCONVS_ENTRY, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [sepconv(channels_out, channels_out) for _ in range(n - 1)]
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.body = nn.Sequential(sepconv(channels_in, channels_out), *layers)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
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
    form : "native" or "literal", as the head of this module tells.
    """

    in_channels: int = 324
    stem: tuple[int, ...] = (192,)
    stem_kernel: int = 1
    entry: tuple[int, ...] = (256, 384)
    middle: int = 2
    exit_block: int = 0
    exit: tuple[int, ...] = (512,)
    form: Literal["native", "literal"] = "native"

    def __post_init__(self) -> None:
        for name in ("stem", "entry", "exit"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not (self.stem and self.entry and self.exit) or self.stem_kernel not in (1, 3):
            raise ValueError("stem, entry and exit each need a width; stem_kernel is 1 or 3")
        if self.form not in ("native", "literal"):
            raise ValueError(f"unknown form {self.form!r}: native or literal")

    @property
    def stride(self) -> int:
        """By how much the network shrinks its input: 1 in the native form, 32 with the published literal one."""
        return 1 if self.form == "native" else 2 ** (1 + len(self.entry) + bool(self.exit_block))

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest; the native form goes without saying, as in packs made before there was one."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.form == "native":
            del plain["form"]
        return plain


def published_xception(in_channels: int = 516, form: Literal["native", "literal"] = "native") -> XceptionConfig:
    """The published widths: entry 32, 64, 128, 256, 728; middle 8 x 728; exit 1024, 1536, 2048."""
    return XceptionConfig(in_channels, (32, 64), 3, (128, 256, 728), 8, 1024, (1536, 2048), form)


def literal_xception(in_channels: int, middle: int = 2) -> XceptionConfig:
    """The literal form in about the size of the default native one, with the published stride of 32."""
    return XceptionConfig(in_channels, (32, 64), 3, (128, 256, 384), middle, 512, (512,), "literal")


def plane_of(values: int) -> tuple[int, int]:
    """Rows and columns of the plane that holds so many values: the factors nearest to a square, the longer one first.

    >>> plane_of(516 * 16 * 16)
    (384, 344)
    """
    columns = math.isqrt(values)
    while values % columns:
        columns -= 1
    return values // columns, columns


class Xception(nn.Module):
    """Activation of the encoding's own shape: [n, C, h, w] -> [n, C, h, w], not negative."""

    def __init__(self, config: XceptionConfig) -> None:
        super().__init__()
        self.config = config
        literal = config.form == "literal"
        channels = 1 if literal else config.in_channels
        out_channels = config.stride**2 if literal else config.in_channels
        step = 2 if literal else 1
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        previous = channels
        for i, width in enumerate(config.stem):
            k = config.stem_kernel
            stride = step if i == 0 else 1
            layers += [nn.Conv2d(previous, width, k, stride, k // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            previous = width
        for width in config.entry:
            layers.append(XceptionBlock(previous, width, stride=step))
            previous = width
        layers += [XceptionBlock(previous, previous, SEPCONVS_MIDDLE) for _ in range(config.middle)]
        if config.exit_block:
            layers.append(XceptionBlock(previous, config.exit_block, stride=step))
            previous = config.exit_block
        for width in config.exit:
            layers.append(sepconv(previous, width))
            previous = width
        layers += [
            nn.ReLU(),
            nn.Conv2d(previous, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        if self.config.form == "literal":
            return self._on_plane(z)
        y: Tensor = self.layers(z)
        return y

    def _on_plane(self, z: Tensor) -> Tensor:
        """As one image and back: at 512 px [n, 516, 16, 16] -> [n, 1, 384, 344] -> [n, 1024, 12, 11] -> back."""
        n = len(z)
        rows, columns = plane_of(z[0].numel())
        shrunk = self.layers(z.reshape(n, 1, rows, columns))
        grown = functional.pixel_shuffle(shrunk, self.config.stride)
        return grown[:, 0, :rows, :columns].reshape(z.shape)


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
