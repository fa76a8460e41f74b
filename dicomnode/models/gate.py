"""The input gate: whether a prepared slice shows a CT or MR slice at all, decided from its pixels.

A small convolutional network of its own, computed with numpy, independent of the model pack in force: it never ranks
and knows nothing of diseases. Its coefficients lie beside this module (``gate.safetensors``), fitted and measured by
``benchmarks/gate.py``; data, terms and error rates stand in docs/evaluation.md. Where it is unsure it lets pass: a
refused slice is a lost search, an accepted photograph only a useless one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from safetensors import SafetensorError, safe_open

from dicomnode.domain import ImageKind, refusal
from dicomnode.errors import InputError, PackError
from dicomnode.models.colour import MOST as MOST_COLOUR
from dicomnode.models.preprocess import SIDE

FILE: Final = Path(__file__).with_name("gate.safetensors")
FORMAT: Final = "dicomnode-gate-1"
LAYERS: Final = 4
STRIDE: Final = 2
FLAT: Final = 0.015  # standard deviation of pixels in 0..1; under it there is nothing to see
NAMED: Final = 0.5  # a kind is named where it is at least so probable

Floats = npt.NDArray[np.float32]


OUTPUTS: Final = (  # of the network, in this order; BLANK and COLOUR are found without it
    ImageKind.SLICE,
    ImageKind.PHOTOGRAPH,
    ImageKind.PAGE,
    ImageKind.RADIOGRAPH,
    ImageKind.ULTRASOUND,
    ImageKind.NOISE,
)


NO_MODALITY: Final[frozenset[str]] = frozenset()
LOOKS_LIKE: Final = {  # pictures that tell no modality
    ImageKind.RADIOGRAPH: frozenset({"CR", "DX"}),
    ImageKind.ULTRASOUND: frozenset({"US"}),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One image as the gate sees it: probability of a CT or MR slice, whether it passes, and what it is."""

    p_slice: float
    passes: bool
    kind: ImageKind


@dataclass(frozen=True, slots=True)
class Refused:
    """Images that were refused together: what most of the refused are, and how many of how many were."""

    kind: ImageKind
    refused: int
    of: int

    @property
    def why(self) -> str:
        """One sentence; nothing in it identifies."""
        return refusal(self.kind, several=self.of > 1)


@dataclass(frozen=True, slots=True)
class Gate:
    """The fitted network.

    Attributes
    ----------
    kernels : [out, in * k * k] float32 of each layer, ``sizes`` their k; ``biases`` [out] float32.
    head : float32 [6, 2 * last], ``head_bias`` float32 [6].
    threshold : a picture passes with at least this probability of a slice.
    threshold_claimed : an image that its header calls CT or MR passes with this, which is lower.
    """

    kernels: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    sizes: tuple[int, ...]
    head: Floats
    head_bias: Floats
    threshold: float
    threshold_claimed: float

    @classmethod
    def load(cls, path: Path = FILE) -> Gate:
        """Read and check the coefficients.

        Raises
        ------
        PackError
            The file is missing, damaged, or of another format.
        """
        advice = "install dicomnode again, or fit it: python -m benchmarks.gate fit"
        try:
            with safe_open(str(path), "np") as f:
                said = dict(f.metadata() or {})
                tensors = {name: np.asarray(f.get_tensor(name)) for name in sorted(f.keys())}
        except (OSError, SafetensorError, ValueError, TypeError) as e:
            what = "is missing" if isinstance(e, FileNotFoundError) else "cannot be read"
            raise PackError(f"the input gate's file {what}", place=str(path), advice=advice) from None
        if said.get("format") != FORMAT or said.get("sha256") != digest(tensors):
            raise PackError("the input gate's file is damaged or of another version", place=str(path), advice=advice)
        try:
            picture, claimed = (float(v) for v in json.loads(said["thresholds"]))
        except (KeyError, ValueError, TypeError):
            raise PackError("the input gate's file names no thresholds", place=str(path), advice=advice) from None
        wide = {name: value.astype(np.float32) for name, value in tensors.items()}
        kernels = tuple(wide[f"conv{n}"] for n in range(LAYERS))
        return cls(
            tuple(np.ascontiguousarray(k.reshape(len(k), -1)) for k in kernels),
            tuple(wide[f"bias{n}"] for n in range(LAYERS)),
            tuple(int(k.shape[-1]) for k in kernels),
            wide["head"],
            wide["head_bias"],
            picture,
            claimed,
        )

    def probabilities(self, images: Floats) -> Floats:
        """float32 [n, 224, 224] in 0..1 -> float32 [n, 6], each row of sum 1, in the order of ``OUTPUTS``.

        Raises
        ------
        InputError
            Another shape or type, or values that are not numbers.
        """
        _check(images)
        out = np.empty((len(images), len(OUTPUTS)), dtype=np.float32)
        for row, image in enumerate(images):
            x = image.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))[None] * np.float32(2) - np.float32(1)
            for kernel, bias, size in zip(self.kernels, self.biases, self.sizes, strict=True):
                x = _convolve(x, kernel, bias, size)
            pooled = np.concatenate([x.mean((1, 2)), x.max((1, 2))])
            logits = self.head @ pooled + self.head_bias
            e = np.exp(logits - logits.max())
            out[row] = e / e.sum()
        return out

    def see(
        self,
        images: Floats,
        *,
        claimed: bool = False,
        colours: Sequence[float] = (),
        modality: str = "",
        taught: Set[str] = frozenset(),
    ) -> tuple[Seen, ...]:
        """Each image by itself.

        Parameters
        ----------
        images : float32 [n, 224, 224] in 0..1.
        claimed : their headers call them CT or MR.
        colours : of pictures: the share of pixels with a colour of their own, as ``models.colour`` finds it.
        modality : of all of them, as their headers say.
        taught : modalities beside CT and MR that the model was taught: images whose headers name one pass unless
            they are blank, pictures where they look like one (``LOOKS_LIKE``).

        Raises
        ------
        InputError
            As ``probabilities``.
        """
        seen = []
        threshold = self.threshold_claimed if claimed else self.threshold
        for image, p, colour in zip(images, self.probabilities(images), colours or [0.0] * len(images), strict=True):
            p_slice = float(p[0])
            if float(image.std()) < FLAT:
                seen.append(Seen(0.0, False, ImageKind.BLANK))
            elif claimed and modality in taught:
                seen.append(Seen(p_slice, True, OUTPUTS[int(p.argmax())]))
            elif colour > MOST_COLOUR:
                seen.append(Seen(0.0, False, ImageKind.COLOUR))
            elif p_slice >= threshold:
                seen.append(Seen(p_slice, True, ImageKind.SLICE))
            else:
                best = 1 + int(p[1:].argmax())
                kind = OUTPUTS[best] if p[best] >= NAMED else ImageKind.OTHER
                seen.append(Seen(p_slice, not claimed and bool(LOOKS_LIKE.get(kind, NO_MODALITY) & taught), kind))
        return tuple(seen)


def decide(seen: Sequence[Seen]) -> Refused | None:
    """Whether images that belong together (the key slices of a study, one picture) are refused: where most of them are.

    No images: nothing to refuse.
    """
    refused = [s for s in seen if not s.passes]
    if 2 * len(refused) <= len(seen):
        return None
    kinds = [s.kind for s in refused]
    most = max(dict.fromkeys(kinds), key=kinds.count)
    return Refused(most if 2 * kinds.count(most) > len(kinds) else ImageKind.OTHER, len(refused), len(seen))


@functools.cache
def fitted() -> Gate:
    """The gate that comes with this version, read once.

    Raises
    ------
    PackError
        As ``Gate.load``.
    """
    return Gate.load()


def digest(tensors: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """SHA-256 over names, types, shapes and values, whatever order they are stored in."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        sha.update(f"{name} {value.dtype.str} {value.shape}".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def _check(images: Floats) -> None:
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or images.dtype != np.float32:
        raise InputError(f"the input gate takes float32 [n, {SIDE}, {SIDE}], not {images.dtype} {images.shape}")
    if not np.isfinite(images).all():
        raise InputError("the image holds values that are not numbers")


def _convolve(x: Floats, kernel: Floats, bias: Floats, size: int) -> Floats:
    """A convolution of stride 2 with zero padding, and ReLU: [c, h, w] -> [out, h / 2, w / 2]."""
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    rows, columns = windows.shape[1:3]
    patches = windows.transpose(0, 3, 4, 1, 2).reshape(-1, rows * columns)
    y: Floats = np.maximum(kernel @ patches + bias[:, None], np.float32(0)).reshape(len(kernel), rows, columns)
    return y
