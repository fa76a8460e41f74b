"""CE-Net: context encoder network for segmentation; its RMP encoding is the first half of our embedding.

Own implementation from the paper (Gu et al., IEEE TMI 2019): dense atrous convolution (DAC), residual multi-kernel
pooling (RMP), decoder with added skips. One departure, measured: BatchNorm after each DAC convolution and on the sum;
without it activations grew to 1e6, overflowed half precision, and one channel decided every distance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.models.networks.efficientnet_lite import EfficientNetLite
from dicomnode.models.networks.resnet import ResNet34Encoder

POOLS = (2, 3, 5, 6)  # kernel = stride of the RMP branches
MIN_SIDE = 6 * 32  # under this side the 6x6 pool of the stride-32 grid is empty
# torch 2.13's CPU build dies in the channels-last backward pass of narrower networks (8 channels).
MIN_WIDTH = 0.25
EncoderName = Literal["resnet34", "lite0", "lite2"]
# What people call them -> the names in manifests and checkpoints, which are part of a pack's identity.
ENCODERS: dict[str, EncoderName] = {
    "resnet34": "resnet34",
    "lite0": "lite0",
    "lite2": "lite2",
    "efficientnet-lite0": "lite0",
    "efficientnet-lite2": "lite2",
}


class DenseAtrous(nn.Module):
    """DAC: four cascaded branches of dilated 3x3 convolutions (receptive fields 3, 7, 9, 19), added to the input.

    The authors share the convolutions d1, d3 and k between the branches; so do we. Norms are one a use.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.d1 = nn.Conv2d(channels, channels, 3, padding=1, dilation=1)
        self.d3 = nn.Conv2d(channels, channels, 3, padding=3, dilation=3)
        self.d5 = nn.Conv2d(channels, channels, 3, padding=5, dilation=5)
        self.k = nn.Conv2d(channels, channels, 1)
        self.norms = nn.ModuleDict(
            {n: nn.BatchNorm2d(channels) for n in ("b1", "b2", "b3", "b4a", "b4b", "k2", "k3", "k4", "sum")}
        )

    def forward(self, x: Tensor) -> Tensor:
        n = self.norms
        one = n["b1"](self.d1(x))
        two = n["b2"](self.d3(x))
        three = n["b3"](self.d3(one))
        four = n["b4b"](self.d5(n["b4a"](three)))
        out: Tensor = n["sum"](
            x
            + functional.relu(one)
            + functional.relu(n["k2"](self.k(two)))
            + functional.relu(n["k3"](self.k(three)))
            + functional.relu(n["k4"](self.k(four)))
        )
        return out


class ResidualPooling(nn.Module):
    """RMP: pooled views 2, 3, 5, 6 through one shared 1x1 convolution to one channel each, before the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, 4 + C, h, w]."""
        size = x.shape[-2:]
        views = [
            functional.interpolate(self.squeeze(functional.max_pool2d(x, k, k)), size=size, mode="bilinear")
            for k in POOLS
        ]
        return torch.cat([*views, x], 1)


class DecoderBlock(nn.Module):
    """1x1 to a quarter, transposed 3x3 of stride 2, 1x1 out; each with norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        mid = channels_in // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, mid, 1),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(mid, mid, 3, 2, 1, 1),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, channels_out, 1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


@dataclass(frozen=True, slots=True)
class CENetConfig:
    """Architecture of a CE-Net; part of a pack's identity.

    Attributes
    ----------
    encoder : "resnet34" (published), "lite0" or "lite2" (ImageNet start); "efficientnet-lite0" is "lite0".
    width : multiplier of resnet34's channels; the others have one width.
    in_channels : 1 or 3.
    classes : segmentation channels (lungs, infection).
    """

    encoder: EncoderName = "lite0"
    width: float = 1.0
    in_channels: int = 1
    classes: int = 2

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}: resnet34 or lite0 or lite2")
        object.__setattr__(self, "encoder", ENCODERS[self.encoder])
        if self.encoder != "resnet34" and self.width != 1.0:
            raise ValueError(f"{self.encoder} has one width: 1.0")
        if self.width < MIN_WIDTH or self.in_channels not in (1, 3) or self.classes < 1:
            raise ValueError(f"width at least {MIN_WIDTH}, in_channels 1 or 3, classes >= 1")

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


class CENetEncoder(nn.Module):
    """Encoder, DAC and RMP."""

    def __init__(self, config: CENetConfig) -> None:
        super().__init__()
        self.backbone: EfficientNetLite | ResNet34Encoder = (
            ResNet34Encoder(config.in_channels, config.width)
            if config.encoder == "resnet34"
            else EfficientNetLite(config.encoder, config.in_channels)
        )
        channels = self.backbone.channels[-1]
        self.dac = DenseAtrous(channels)
        self.rmp = ResidualPooling(channels)
        self.out_channels = channels + len(POOLS)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Skips at strides 4, 8, 16 and the RMP encoding at stride 32."""
        a, b, c, d = self.backbone(x)
        return a, b, c, self.rmp(self.dac(d))

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_channels, H, W] with H, W multiples of 32, at least 192 -> [n, out_channels, H/32, W/32]."""
        return self.features(x)[3]


class _Decoding(nn.Module):
    """The decoder's parts, where they stand in a CE-Net's own state dict."""

    def _add_decoder(self, config: CENetConfig, encoder: CENetEncoder) -> None:
        c4, c8, c16, _ = encoder.backbone.channels
        self.up16 = DecoderBlock(encoder.out_channels, c16)
        self.up8 = DecoderBlock(c16, c8)
        self.up4 = DecoderBlock(c8, c4)
        self.up2 = DecoderBlock(c4, c4)
        head = max(16, c4 // 2)
        self.head = nn.Sequential(
            nn.ConvTranspose2d(c4, head, 4, 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(head, head, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(head, config.classes, 3, 1, 1),
        )

    def decode(self, a: Tensor, b: Tensor, c: Tensor, z: Tensor) -> Tensor:
        """``CENetEncoder.features`` -> segmentation logits [n, classes, H, W]."""
        up = self.up4(self.up8(self.up16(z) + c) + b) + a
        y: Tensor = self.head(self.up2(up))
        return y


class CENetDecoder(_Decoding):
    """The decoder alone, for networks that bring an encoder of their own."""

    def __init__(self, config: CENetConfig, encoder: CENetEncoder) -> None:
        super().__init__()
        self._add_decoder(config, encoder)


class CENet(_Decoding):
    """The whole network: segmentation logits [n, classes, H, W]; apply a sigmoid for probabilities."""

    def __init__(self, config: CENetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = CENetEncoder(config)
        self._add_decoder(config, self.encoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(*self.encoder.features(x))
