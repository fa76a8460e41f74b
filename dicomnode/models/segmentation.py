"""Lungs and infection as the CE-Net outlines them: by the decoder of a network with a lesion profile, which is part of
its identity, or by the optional ``segmentation.safetensors`` of a pack without one.

The file holds the decoder alone, in half precision, for the encoder (DAC and RMP included) that the pack's weights hold
already, and the masks of the golden images, so that a decoder of another run is found when it is loaded.

It is no part of the identity that makes ``model_id``. That hash says which vectors may be compared; vectors come from
encoder, Xception and compaction, and no decoder changes one. Were it part, a pack that offers outlines would have other
vectors by name and the same by value, and a repository would have to embed every study anew for a picture. Masks are
never stored and never compared; what is kept of them for a while goes by the file's own checksum. Like the card, the
file has that checksum in the manifest, and a pack with a damaged one is refused whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dicomnode.errors import PackError
from dicomnode.models.manifest import MASKS, SEGMENTATION
from dicomnode.models.networks import CENet, CENetConfig, CENetEncoder, EmbeddingNet
from dicomnode.models.tensors import full_tensors, half_tensors, read_tensors, save_tensors, standardise

GOLDEN_MASKS = "golden"  # uint8 [images, masks, side, side / 8], eight pixels a byte
GOLDEN_AGREE = 0.99  # of the pixels: another device rounds a few at the edges otherwise
_ENCODER = "encoder."


def masks_of(cenet: CENet, images: Tensor) -> Tensor:
    """float32 [n, side, side] in 0..1 -> bool [n, masks, side, side]: more likely than not."""
    masks: Tensor = cenet(standardise(images[:, None])) > 0
    return masks


def of_network(config: CENetConfig, network: EmbeddingNet) -> CENet:
    """The CE-Net of a network that has a decoder among its own weights, for the lesion profile; nothing is copied."""
    assert network.decoder is not None
    with torch.device("meta"):  # its own parts are thrown away
        cenet = CENet(config)
    cenet.encoder = network.encoder
    for name, part in network.decoder.named_children():
        setattr(cenet, name, part)
    return cenet.eval()


def write_segmentation(folder: Path, trained: CENet, encoder: CENetEncoder, golden: npt.NDArray[np.uint8]) -> None:
    """Write a trained CE-Net's decoder beside the pack's weights.

    Parameters
    ----------
    encoder : as the pack ships it.
    golden : uint8 [n, side, side].

    Raises
    ------
    PackError
        It is not a network of ours for lungs and infection.
    """
    path = folder / SEGMENTATION
    tensors = half_tensors({k: v for k, v in trained.state_dict().items() if not k.startswith(_ENCODER)})
    cenet = _filled(trained.config, encoder, tensors, path)
    with torch.inference_mode():
        masks = masks_of(cenet, torch.from_numpy(golden).float().div(255)).numpy()
    save_tensors({**tensors, GOLDEN_MASKS: torch.from_numpy(np.packbits(masks, axis=-1))}, path)


def load_segmentation(
    folder: Path, config: CENetConfig, encoder: CENetEncoder, golden: npt.NDArray[np.uint8], device: str
) -> CENet:
    """The CE-Net of a pack on a device; its encoder is the one given, not a copy.

    Raises
    ------
    PackError
        The file does not fit the encoder, holds values that are not finite, or gives other masks than it should.
    """
    path = folder / SEGMENTATION
    tensors = read_tensors(path)
    stored = tensors.pop(GOLDEN_MASKS, None)
    cenet = _filled(config, encoder, tensors, path).to(torch.device(device))
    try:
        with torch.inference_mode():
            found = masks_of(cenet, torch.from_numpy(golden).to(torch.device(device)).float().div(255)).cpu().numpy()
        agree = float((found == _unpacked(stored, found.shape)).mean())
    except (RuntimeError, ValueError, AttributeError) as e:
        raise PackError("lacks the masks of the golden images", place=str(path)) from e
    if not agree >= GOLDEN_AGREE:
        raise PackError(
            f"the network does not give its golden masks ({agree:.3f} of the pixels, needed {GOLDEN_AGREE})",
            place=str(path),
            advice="restore the pack",
        )
    return cenet


def _unpacked(stored: Tensor | None, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    if stored is None or stored.dtype != torch.uint8:
        raise ValueError("no golden masks")
    return np.unpackbits(stored.numpy(), axis=-1).reshape(shape)


def _filled(config: CENetConfig, encoder: CENetEncoder, tensors: Mapping[str, Tensor], path: Path) -> CENet:
    if config.classes != len(MASKS):
        raise PackError(f"has {config.classes} masks; this version knows {' and '.join(MASKS)}", place=str(path))
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise PackError("holds weights that are NaN or infinite", place=str(path))
    with torch.device("meta"):  # its own encoder is thrown away
        cenet = CENet(config)
    own = {k: v for k, v in cenet.state_dict().items() if not k.startswith(_ENCODER)}
    given = full_tensors(tensors, own)
    fits = set(given) == set(own) and all(given[k].shape == own[k].shape for k in own)
    fits = fits and encoder.out_channels == cenet.encoder.out_channels
    if not fits:
        raise PackError("does not fit the pack's encoder", place=str(path))
    cenet.encoder = encoder
    cenet.load_state_dict(given, strict=False, assign=True)
    cenet.requires_grad_(False)
    return cenet.eval()
