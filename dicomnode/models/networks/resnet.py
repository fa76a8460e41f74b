"""ResNet34 as an encoder with a width multiplier: the encoder CE-Net was published with.

Own implementation; no pretrained weights exist for it here, so it starts from random ones. It never classifies.
Facts: He et al., arXiv 1512.03385; Gu et al. 2019 (CE-Net): 64, 128, 256, 512 channels at strides 4, 8, 16, 32.
"""

from __future__ import annotations

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
