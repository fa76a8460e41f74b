"""The networks, own code: encoders, CE-Net, Xception on its encoding. No weights, no training, no files."""

from dicomnode.models.networks.cenet import CENet, CENetConfig, CENetEncoder
from dicomnode.models.networks.embedding import Compaction, EmbeddingNet
from dicomnode.models.networks.lite0 import Lite0Encoder, lite0_state_from_wheel
from dicomnode.models.networks.resnet import ResNet34Encoder
from dicomnode.models.networks.xception import TrainingHeads, Xception, XceptionConfig, published_xception

__all__ = [
    "CENet",
    "CENetConfig",
    "CENetEncoder",
    "Compaction",
    "EmbeddingNet",
    "Lite0Encoder",
    "ResNet34Encoder",
    "TrainingHeads",
    "Xception",
    "XceptionConfig",
    "lite0_state_from_wheel",
    "published_xception",
]
