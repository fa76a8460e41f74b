"""The embedder: prepared slices in, unit vectors out, on the processor or a GPU.

Wraps a verified pack with batching and device choice. The same slice gives the same vector whatever batch it comes
in. It never reads images; ``dicomnode.models.preprocess`` does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
import torch

from dicomnode.domain import ModelId
from dicomnode.errors import InputError, PackError
from dicomnode.models.manifest import MASKS
from dicomnode.models.pack import Pack
from dicomnode.models.preprocess import SIDE
from dicomnode.models.segmentation import masks_of

log = structlog.get_logger(__name__)

# Larger tensors are mapped and unmapped by the allocator at each layer, which costs as much as the arithmetic.
BATCH_CPU = 2
BATCH_CUDA = 128

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def choose_device(wanted: str) -> str:
    """``auto`` -> "cuda" where there is one, else "cpu"; an explicit device must exist; "cuda:1" is the second.

    Raises
    ------
    PackError
        CUDA was asked for and there is none or not so many, or the word is unknown.
    """
    kind, colon, number = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise PackError(f"unknown device {wanted!r}", place="[models] device", advice="auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        if number and int(number) >= (there := torch.cuda.device_count()):
            last = f"cuda:{there - 1}"
            raise PackError(
                f"there is no {wanted}, the last is {last}", place="[models] device", advice=f"set it to {last}"
            )
        return "cuda" if kind == "auto" else wanted
    if kind == "cuda":
        raise PackError("no CUDA device is available", place="[models] device", advice="set it to auto or cpu")
    return "cpu"


def batch_on(device: str) -> int:
    """How many slices are embedded at once on a device."""
    return BATCH_CUDA if device.startswith("cuda") else BATCH_CPU


class Embedder:
    """A pack on a device.

    Attributes
    ----------
    model_id : identity of the pack; every vector carries it.
    dim : dimension of the vectors.
    device : "cpu", "cuda" or "cuda:N".
    """

    def __init__(self, pack: Pack, device: str) -> None:
        self.pack = pack
        self.device = device
        self.model_id: ModelId = pack.manifest.model_id
        self.dim: int = pack.manifest.dim
        self.side: int = SIDE

    @classmethod
    def load(cls, pack_dir: Path, device: str = "auto") -> Embedder:
        """Load and verify a pack on a device.

        Raises
        ------
        PackError
            The device is not there, or the pack is missing, damaged or does not reproduce its golden vectors.
        """
        began = time.monotonic()
        chosen = choose_device(device)
        embedder = cls(Pack.load(pack_dir, chosen), chosen)
        log.info("model_ready", device=chosen, dim=embedder.dim, seconds=round(time.monotonic() - began, 2))
        return embedder

    def embed(self, images: Floats) -> Floats:
        """Prepared slices to vectors.

        Parameters
        ----------
        images : float32 [n, 224, 224] in 0..1.

        Returns
        -------
        float32 [n, dim]
            Each of length 1; n may be 0.

        Raises
        ------
        InputError
            Another shape, or a value that is not finite.
        """
        checked = self._checked(images)
        out = np.empty((len(checked), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for at, batch in self._batches(checked):
                out[at : at + len(batch)] = self.pack.vectors(batch).cpu().numpy()
        return out

    def full(self, images: Floats) -> Floats:
        """The full embedding before compaction, float32 [n, full_dim]: a row of benchmarks, never indexed.

        Raises
        ------
        PackError
            The pack is of a kind that has none.
        """
        checked, network = self._checked(images), self.pack.embedding_net
        out = np.empty((len(checked), network.full_dim), dtype=np.float32)
        with torch.inference_mode():
            for at, batch in self._batches(checked):
                out[at : at + len(batch)] = network.full(batch).cpu().numpy()
        return out

    def masks(self, images: Floats) -> Bools:
        """Lungs and infection as the CE-Net outlines them, bool [n, 2, 224, 224]: its own view, not a finding.

        Raises
        ------
        PackError
            The pack has no decoder (``segmentation.safetensors``).
        """
        checked, cenet = self._checked(images), self.pack.cenet
        if cenet is None:
            raise PackError(
                "the pack has no segmentation.safetensors: it outlines nothing", place=str(self.pack.folder)
            )
        out = np.empty((len(checked), len(MASKS), self.side, self.side), dtype=np.bool_)
        with torch.inference_mode():
            for at, batch in self._batches(checked):
                out[at : at + len(batch)] = masks_of(cenet, batch).cpu().numpy()
        return out

    def _checked(self, images: Floats) -> Floats:
        if images.ndim != 3 or images.shape[1:] != (self.side, self.side):
            raise InputError(f"slices must be [n, {self.side}, {self.side}], not {list(images.shape)}")
        if not np.isfinite(images).all():
            raise InputError("a prepared slice holds values that are not finite")
        return np.ascontiguousarray(images, dtype=np.float32)

    def _batches(self, images: Floats) -> Iterator[tuple[int, torch.Tensor]]:
        size = batch_on(self.device)
        for at in range(0, len(images), size):
            yield at, torch.from_numpy(images[at : at + size]).to(self.device)
