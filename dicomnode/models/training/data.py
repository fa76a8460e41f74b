"""The three public data sets as arrays of 224x224 grey bytes, with splits that do not leak.

Reads the folders described beside the data (``labels.csv``, ``slices.csv``); writes nothing and never mixes the
official validation split of COVID-CT into training. Splits: ct-lung-seg by volume (without the one that shows a
patient of another), sars-cov-2-ct by blocks of neighbouring files (its near-twins stand side by side), covid-ct by the
official split (no patient in two).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomnode.errors import InputError
from dicomnode.models.preprocess import SIDE, picture_pixels

HELD_OUT_VOLUMES = (3, 6, 12, 15)  # of ct-lung-seg; never trained on
LEFT_OUT_VOLUMES = (10,)  # the patient of volume 11 once more, by another reconstruction: on neither side
SARS_BLOCK = 48  # files a block; a slice-level split is leaky (raw pixels reach P@1 .934, blocks .678)
SARS_HELD_OUT = 2  # blocks with index % 5 == 2 are held out
POSITIVE = "COVID"
CLASSES = ("NonCOVID", POSITIVE)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SegmentationData:
    """Slices with outlines: ct-lung-seg, or a site's own.

    Attributes
    ----------
    images : uint8 [n, 224, 224].
    masks : bool [n, 2, 224, 224] (lungs, infection); false where nobody drew one.
    volumes : int [n]; all slices of a volume are on one side of every split.
    held : volumes that are never trained on.
    drawn : bool [n, 2], which masks somebody drew; None: all.
    """

    images: Bytes
    masks: npt.NDArray[np.bool_]
    volumes: npt.NDArray[np.int64]
    held: tuple[int, ...] = HELD_OUT_VOLUMES
    drawn: npt.NDArray[np.bool_] | None = None

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Slices of the held-out volumes."""
        return np.isin(self.volumes, self.held)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Bool [n, 2]: which masks somebody drew."""
        return np.ones((len(self.images), 2), dtype=np.bool_) if self.drawn is None else self.drawn


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Labelled slices.

    Attributes
    ----------
    images : uint8 [n, 224, 224].
    labels : int [n], an index into ``classes`` (1 = COVID in COVID-CT).
    groups : str [n], patient or block; a group is on one side of every split.
    train : bool [n], the training split.
    classes : words of the labels.
    """

    images: Bytes
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]
    train: npt.NDArray[np.bool_]
    classes: tuple[str, ...] = CLASSES

    def part(self, rows: npt.NDArray[np.bool_]) -> LabelledData:
        """The rows where ``rows`` is true."""
        return LabelledData(self.images[rows], self.labels[rows], self.groups[rows], self.train[rows], self.classes)


def read_grey(path: Path) -> Bytes:
    """A plain image as grey uint8 [224, 224], by the very rule with which the node reads pictures."""
    try:
        with Image.open(path) as image:
            return np.rint(picture_pixels(image) * 255).astype(np.uint8)
    except (OSError, ValueError) as e:
        raise InputError("is not a readable image", place=str(path)) from e


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise InputError("is missing", place=str(path), advice="point --data at the folder that holds the data sets")
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    lacking = [c for c in columns if not rows or c not in rows[0]]
    if lacking:
        raise InputError(f"has no rows with the column {lacking[0]!r}", place=str(path))
    return rows


def load_segmentation(root: Path) -> SegmentationData:
    """ct-lung-seg below ``root`` without ``LEFT_OUT_VOLUMES``; masks are nearest-neighbour resampled."""
    folder = root / "ct-lung-seg"
    rows = _rows(folder / "slices.csv", ("slice", "volume_guess"))
    rows = [r for r in rows if int(r["volume_guess"]) not in LEFT_OUT_VOLUMES]
    images, masks = [], []
    for row in rows:
        images.append(read_grey(_one(folder / "images", row["slice"])))
        pair = []
        for kind in ("lung-masks", "infection-masks"):
            with Image.open(_one(folder / kind, row["slice"])) as image:
                mask = image.convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            pair.append(np.asarray(mask) > 127)
        masks.append(np.stack(pair))
    return SegmentationData(
        np.stack(images), np.stack(masks), np.array([int(r["volume_guess"]) for r in rows], dtype=np.int64)
    )


def _one(folder: Path, stem: str) -> Path:
    for path in sorted(folder.glob(f"{stem}.*")):
        return path
    raise InputError(f"has no file for slice {stem}", place=str(folder))


def load_covid_ct(root: Path) -> LabelledData:
    """covid-ct below ``root``: ``train`` is the official training split, the rest the validation split."""
    folder = root / "covid-ct"
    rows = _rows(folder / "labels.csv", ("path", "label", "patient", "split"))
    return LabelledData(
        np.stack([read_grey(folder / r["path"]) for r in rows]),
        np.array([r["label"] == POSITIVE for r in rows]).astype(np.int64),
        np.array([r["patient"] for r in rows]),
        np.array([r["split"] == "train" for r in rows]),
    )


def load_sars(root: Path) -> LabelledData:
    """sars-cov-2-ct below ``root``; groups are blocks of neighbouring files, as there are no patient ids."""
    folder = root / "sars-cov-2-ct"
    rows = _rows(folder / "labels.csv", ("path", "label"))
    blocks = np.arange(len(rows)) // SARS_BLOCK
    return LabelledData(
        np.stack([read_grey(folder / r["path"]) for r in rows]),
        np.array([r["label"] == POSITIVE for r in rows]).astype(np.int64),
        np.array([f"block{b:03d}" for b in blocks]),
        blocks % 5 != SARS_HELD_OUT,
    )
