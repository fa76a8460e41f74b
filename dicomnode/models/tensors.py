"""What every network of ours does to a batch before it looks, and how its tensors lie in a file.

Per-image standardisation takes the window's brightness and contrast out; it is part of a pack's preprocessing spec.
Files are safetensors: nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dicomnode.errors import PackError

COUNTER = "num_batches_tracked"  # only training needs it: not shipped
STANDARDISE_EPS = 0.05  # keeps a constant image at zero instead of dividing by nothing


def standardise(x: Tensor) -> Tensor:
    """float [n, C, H, W] -> the same shape, each image minus its mean over (its standard deviation + .05)."""
    mean = x.mean((1, 2, 3), keepdim=True)
    std = x.std((1, 2, 3), keepdim=True)
    return (x - mean) / (std + STANDARDISE_EPS)


def half_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a pack ships: convolutions as float16, one-dimensional tensors (norms) as float32, PCA as int8."""
    out = {}
    for name, tensor in state.items():
        if name.endswith(COUNTER):
            continue
        small = tensor.dtype == torch.float32 and tensor.ndim > 1
        out[name] = (tensor.half() if small else tensor).contiguous()
    return out


def full_tensors(tensors: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shipped tensors as a network computes with them, with the counters that its state ``names`` has besides."""
    filled = {k: v if v.dtype == torch.int8 else v.to(torch.float32) for k, v in tensors.items()}
    return {**filled, **{k: torch.zeros((), dtype=torch.int64) for k in names if k.endswith(COUNTER)}}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises
    ------
    PackError
        It is not one.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise PackError("is not a readable safetensors file", place=str(path)) from e


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that everybody may read."""
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes 0600; an installed pack is read by the node's own user
