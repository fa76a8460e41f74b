"""ResNet34 as an encoder with a width multiplier: the encoder CE-Net was published with.

Own implementation; no pretrained weights come with it, so it starts from random ones, or from a file of a site
(``resnet34_state_from_torchvision`` renames the tensors that torchvision and timm write). It never classifies.
Facts: He et al., arXiv 1512.03385; Gu et al. 2019 (CE-Net): 64, 128, 256, 512 channels at strides 4, 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_BLOCKS = (3, 4, 6, 3)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 where the shape changes)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


class ResNet34Encoder(nn.Module):
    """ResNet34 down to stride 32.

    Parameters
    ----------
    in_channels : int
        3 as published, 1 for grey slices.
    width : float
        Multiplier of every stage's channels; 1.0 is the published width.
    """

    def __init__(self, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c = [max(8, int(width * k)) for k in STAGE_CHANNELS]
        self.channels: tuple[int, int, int, int] = (c[0], c[1], c[2], c[3])
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, c[0], 7, 2, 3, bias=False),
            nn.BatchNorm2d(c[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        stages: list[nn.Module] = []
        previous = c[0]
        for i, (channels, n) in enumerate(zip(c, STAGE_BLOCKS, strict=True)):
            first = BasicBlock(previous, channels, 1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *[BasicBlock(channels, channels, 1) for _ in range(n - 1)]))
            previous = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n, in_channels, H, W] -> feature maps at H/4, H/8, H/16, H/32 with ``channels`` channels."""
        x = self.stem(x)
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return taps[0], taps[1], taps[2], taps[3]


# torchvision's names of a block's layers -> ours.
_BLOCK_NAMES = {
    "conv1": "body.0",
    "bn1": "body.1",
    "conv2": "body.3",
    "bn2": "body.4",
    "downsample.0": "shortcut.0",
    "downsample.1": "shortcut.1",
}


def resnet34_state_from_torchvision(state: Mapping[str, Tensor], in_channels: int = 1) -> dict[str, Tensor]:
    """Rename the state dict of torchvision's ``resnet34`` to ours; its classifier is left out.

    Parameters
    ----------
    state : mapping
        Names as ``conv1.weight``, ``layer1.0.bn1.bias``.
    in_channels : int
        With 1 the first kernels are summed over the colours: a grey image then gives what R = G = B gave.

    Raises
    ------
    KeyError
        No ``conv1.weight``.
    """
    first = state["conv1.weight"]
    out = {"stem.0.weight": first.sum(1, keepdim=True) if in_channels == 1 else first.clone()}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "bn1":
            out[f"stem.1.{parts[1]}"] = tensor.clone()
        elif parts[0].startswith("layer") and len(parts) > 3:
            layer = ".".join(parts[2:-1])
            if layer in _BLOCK_NAMES:
                stage = int(parts[0].removeprefix("layer")) - 1
                out[f"stages.{stage}.{parts[1]}.{_BLOCK_NAMES[layer]}.{parts[-1]}"] = tensor.clone()
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in out.items()}
