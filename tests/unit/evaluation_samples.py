"""Labelled pictures for the tests of evaluation: thorax phantoms of two kinds, as PNG, with their LABELS.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dicomnode.models.pack import synthetic_images

KINDS = ("PLAIN", "STRIPED")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([columns, *rows])
    return path


def phantoms(count: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """``count`` images uint8 [224, 224] with their kind; no two are near copies."""
    random = np.random.default_rng(seed)
    made = []
    for i, image in enumerate(synthetic_images(count)):
        moved = np.roll(image, random.integers(-60, 60, 2), axis=(0, 1)).astype(np.float64)
        kind = KINDS[i % 2]
        if kind == "STRIPED":
            moved[:: 8 + 2 * (i % 3)] = 250
        noise = np.kron(random.normal(0, 45, (28, 28)), np.ones((8, 8)))
        made.append((kind, np.clip(moved + noise, 0, 255).astype(np.uint8)))
    return made


def labelled_folder(folder: Path, count: int, seed: int = 0, prefix: str = "p") -> Path:
    """A LABELS.csv with ``count`` pictures of count / 2 patients; two pictures of the same kind a patient."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (kind, image) in enumerate(phantoms(count, seed)):
        Image.fromarray(image).save(folder / f"{i}.png")
        rows.append([f"{i}.png", kind, f"{prefix}{i // 4 * 2 + i % 2}", 224, 224, "PNG"])
    return write_csv(folder / "LABELS.csv", ["path", "label", "patient", "width", "height", "source_format"], rows)
