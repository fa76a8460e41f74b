"""Generated slices and tables for the tests of training: discs on noise, no patient."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomnode.models.training.data import LabelledData, SegmentationData

CLASSES = ("healthy", "ill")


def slices(n: int = 10, volumes: Sequence[int] = (0, 0, 1, 1, 2, 2, 4, 4, 3, 6), seed: int = 0) -> SegmentationData:
    """Bright discs on noise: 'lungs' are the discs, 'infection' a part of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:224, 0:224]
    images, masks = [], []
    for _ in range(n):
        cx, cy, r = *rng.uniform(70, 150, 2), rng.uniform(30, 60)
        disc = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        images.append((rng.normal(60, 10, (224, 224)) + 120 * disc).clip(0, 255).astype(np.uint8))
        masks.append(np.stack([disc, disc & (x < cx)]))
    return SegmentationData(np.stack(images), np.stack(masks), np.array(volumes))


def labelled(n: int = 12, seed: int = 1) -> LabelledData:
    """Dark and bright noise, each image of a patient of its own; all of the training split."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = (rng.random((n, 224, 224)) * 100 + labels[:, None, None] * 100).astype(np.uint8)
    return LabelledData(images, labels, np.array([f"p{i:02d}" for i in range(n)]), np.ones(n, dtype=bool), CLASSES)


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> npt.NDArray[np.uint8]:
    """Coarse noise, uint8 [rows, columns]: no two seeds are near-copies."""
    coarse = (np.random.default_rng(seed).random((8, 8)) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def write_pictures(folder: Path, n: int) -> list[str]:
    """n different PNG files; their names."""
    names = [f"{i}.png" for i in range(n)]
    for i, name in enumerate(names):
        Image.fromarray(picture(i)).save(folder / name)
    return names


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def command(*args: object) -> subprocess.CompletedProcess[str]:
    """``dicomnode ...`` in a process of its own, as it sets up the log."""
    words = [sys.executable, "-m", "dicomnode.cli", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
