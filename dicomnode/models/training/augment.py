"""Augmentation that makes a slice look as if it came through another window, format, crop or scanner.

Every draw is for one image, from one seeded generator, so a resumed run repeats itself. Masks follow the geometry
alone. Ranges are those of the best of several runs by figures on COVID-CT's validation split,
whose slices were cut out of papers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

JPEG_QUALITY = (15, 80)
ROTATION = 0.3  # radians
SCALE = (-0.3, 0.15)
ANISOTROPY = 0.15  # slices in papers are squeezed: train on it
SHIFT = 0.12  # of the half side


@dataclass(frozen=True, slots=True)
class Strength:
    """How much to do: 1 is the measured recipe, 0 nothing; ``jpeg`` is the share of recompressed images."""

    geometry: float = 1.0
    photometry: float = 1.0
    jpeg: float = 0.3


HEAVY = Strength()
SEGMENTATION = Strength(jpeg=0.1)


def to_unit(images: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [n, H, W] -> float32 [n, 1, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)[:, None]


def _recompress(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.uint8)


class Augmenter:
    """Augments batches; all randomness comes from ``rng``."""

    def __init__(self, rng: np.random.Generator, strength: Strength = HEAVY) -> None:
        self.rng = rng
        self.strength = strength

    def __call__(self, images: npt.NDArray[np.uint8], masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """uint8 [n, H, W] (and float masks [n, K, H, W]) -> float32 [n, 1, H, W] in 0..1 (and masks)."""
        s = self.strength
        if s.jpeg > 0:
            images = np.stack(
                [_recompress(i, int(self.rng.integers(*JPEG_QUALITY))) if self._chance(s.jpeg) else i for i in images]
            )
        n = len(images)
        x = to_unit(images)
        if s.geometry > 0:
            grid = self._grid(x)
            padding = "border" if self._chance(0.5) else "zeros"
            x = functional.grid_sample(x, grid, padding_mode=padding, align_corners=False)
            if masks is not None:
                masks = functional.grid_sample(masks, grid, mode="nearest", align_corners=False)
        if s.photometry > 0:
            x = self._photometry(x)
            x = torch.cat([self._resolution(x[i : i + 1]) for i in range(n)])
        return x.clamp(0, 1), masks

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return torch.from_numpy(self.rng.uniform(low, high, n).astype(np.float32))

    def _some(self, n: int, p: float, value: Tensor, otherwise: float) -> Tensor:
        on = torch.from_numpy(self.rng.random(n) < p)
        return torch.where(on, value, torch.full((n,), otherwise))[:, None, None, None]

    def _grid(self, x: Tensor) -> Tensor:
        n, g = len(x), self.strength.geometry
        angle = self._uniform(n, -ROTATION, ROTATION) * g
        sx = 1 + self._uniform(n, *SCALE) * g
        sy = sx * (1 + self._uniform(n, -ANISOTROPY, ANISOTROPY) * g)
        flip = torch.from_numpy(np.where(self.rng.random(n) < 0.5, -1.0, 1.0).astype(np.float32))
        dx, dy = self._uniform(n, -SHIFT, SHIFT) * g, self._uniform(n, -SHIFT, SHIFT) * g
        row_x = torch.stack([flip * sx * angle.cos(), -sy * angle.sin(), dx], 1)
        row_y = torch.stack([flip * sx * angle.sin(), sy * angle.cos(), dy], 1)
        return functional.affine_grid(torch.stack([row_x, row_y], 1), list(x.shape), align_corners=False)

    def _photometry(self, x: Tensor) -> Tensor:
        """Another window, another gamma, less contrast."""
        n, p = len(x), self.strength.photometry
        shifted = torch.from_numpy(self.rng.random(n) < 0.8 * p)
        low = torch.where(shifted, self._uniform(n, -0.1, 0.2), torch.zeros(n))[:, None, None, None]
        high = torch.where(shifted, self._uniform(n, 0.5, 1.15), torch.ones(n))[:, None, None, None]
        x = ((x - low) / (high - low)).clamp(0, 1)
        x = x.clamp(min=1e-4).pow(self._some(n, 0.6 * p, self._uniform(n, -0.6, 0.6).exp(), 1.0))
        contrast = self._some(n, 0.3 * p, self._uniform(n, 0.5, 1.0), 1.0)
        return x * contrast + self._uniform(n, 0, 1)[:, None, None, None] * (1 - contrast)

    def _resolution(self, x: Tensor) -> Tensor:
        """One image [1, 1, H, W]: resized down and up, or blurred, or noisy, or left."""
        p, u, side = self.strength.photometry, self.rng.random(), x.shape[-1]
        if u < 0.3 * p:
            small = int(self.rng.integers(round(side * 0.36), round(side * 0.9)))
            down = functional.interpolate(x, size=small, mode="bilinear", antialias=True)
            return functional.interpolate(down, size=side, mode="bilinear")
        if u < 0.5 * p:
            return _blur(x, float(self.rng.uniform(0.4, 1.6)))
        if u < 0.65 * p:
            sigma = float(self.rng.uniform(0.01, 0.06))
            return x + torch.from_numpy(self.rng.normal(0, sigma, x.shape).astype(np.float32))
        return x


def _blur(x: Tensor, sigma: float) -> Tensor:
    at = torch.arange(-3, 4, dtype=torch.float32)
    w = torch.exp(-(at**2) / (2 * sigma**2))
    w = w / w.sum()
    padded = functional.pad(x, (3, 3, 3, 3), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, w.view(1, 1, 1, 7)), w.view(1, 1, 7, 1))
