"""The three public data sets as arrays of 224x224 grey bytes, with splits that do not leak.

Reads the folders described beside the data (``labels.csv``, ``slices.csv``); writes nothing and never mixes the
official validation split of COVID-CT into training. Splits: ct-lung-seg by volume (without the one that shows a
patient of another), sars-cov-2-ct by blocks of neighbouring files (its near-twins stand side by side), covid-ct by the
official split (no patient in two).
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomnode.csvrows import DataProblems, Row, read_csv
from dicomnode.errors import InputError, UsageError
from dicomnode.models.preprocess import SIDE, picture_pixels
from dicomnode.models.training.reading import opened, present, shown

HELD_OUT_VOLUMES = (3, 6, 12, 15)  # of ct-lung-seg; never trained on
LEFT_OUT_VOLUMES = (10,)  # the patient of volume 11 once more, by another reconstruction: on neither side
SARS_BLOCK = 48  # files a block; a slice-level split is leaky (raw pixels reach P@1 .934, blocks .678)
SARS_HELD_OUT = 2  # blocks with index % 5 == 2 are held out
POSITIVE = "COVID"
CLASSES = ("NonCOVID", POSITIVE)

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")


def digest_of(arrays: Iterable[npt.NDArray[Any]], words: Iterable[str] = ()) -> str:
    """SHA-256 of arrays, with their shapes, and words."""
    digest = hashlib.sha256("\0".join(words).encode())
    for array in arrays:
        digest.update(f"\0{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def first_rows(words: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """For each word, int [n], the row in which it comes first; -1 for ""."""
    _, first, inverse = np.unique(words, return_index=True, return_inverse=True)
    return np.where(words == "", -1, first[inverse]).astype(np.int64)


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
    patients : str [n], "" where it is not known; None: of no slice. Volumes of one patient are on one side too.
    """

    images: Bytes
    masks: npt.NDArray[np.bool_]
    volumes: npt.NDArray[np.int64]
    held: tuple[int, ...] = HELD_OUT_VOLUMES
    drawn: npt.NDArray[np.bool_] | None = None
    patients: npt.NDArray[np.str_] | None = None

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Slices of the held-out volumes."""
        return np.isin(self.volumes, self.held)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Bool [n, 2]: which masks somebody drew."""
        return np.ones((len(self.images), 2), dtype=np.bool_) if self.drawn is None else self.drawn

    @property
    def fingerprint(self) -> str:
        """What a run that goes on is compared by: slices, masks, volumes, splits and patients (not their names)."""
        parts: list[npt.NDArray[Any]] = [self.images, self.masks, self.volumes, self.held_out, self.known]
        if self.patients is not None and self.patients.any():
            parts.append(first_rows(self.patients))
        return digest_of(parts)


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

    @property
    def fingerprint(self) -> str:
        """What a run that goes on is compared by: images, labels, groups (not their names) and splits."""
        groups = np.unique(self.groups, return_inverse=True)[1]
        return digest_of([self.images, self.labels, groups, self.train], self.classes)


def read_grey(path: Path) -> Bytes:
    """A plain image as grey uint8 [224, 224], by the very rule with which the node reads pictures.

    Raises
    ------
    InputError
        Missing, empty or unreadable; without the path.
    """
    present(path)
    with opened(path) as image:
        return np.rint(picture_pixels(image) * 255).astype(np.uint8)


def _read_mask(path: Path) -> npt.NDArray[np.bool_]:
    present(path)
    with opened(path) as image:
        mask = image.convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(mask) > 127


def _rows(path: Path, columns: Sequence[str]) -> Sequence[tuple[int, Row]]:
    if not path.is_file():
        raise UsageError("is missing", place=str(path), advice="point --data at the folder that holds the data sets")
    table = read_csv(path)
    if table.problems:
        raise DataProblems(path, table.problems)
    lacking = [c for c in columns if not table.rows or c not in table.names]
    if lacking:
        raise InputError(f"has no rows with the column {lacking[0]!r}", place=str(path))
    return table.rows


def _of_row(table: Path, number: int, name: str, read: Callable[[Path], T]) -> T:
    """The file that a row names, relative to its table; what is wrong with it is told with the row."""
    try:
        return read(table.parent / name)
    except InputError as e:
        raise InputError(f"row {number}: {shown(name)}: {e.line}", place=str(table)) from e


def load_segmentation(root: Path) -> SegmentationData:
    """ct-lung-seg below ``root`` without ``LEFT_OUT_VOLUMES``; masks are nearest-neighbour resampled."""
    table = root / "ct-lung-seg" / "slices.csv"
    images, masks, volumes = [], [], []
    for number, row in _rows(table, ("slice", "volume_guess")):
        volume = _whole(table, number, row["volume_guess"])
        if volume in LEFT_OUT_VOLUMES:
            continue
        image, lungs, infection = (
            _one(table, number, kind, row["slice"]) for kind in ("images", "lung-masks", "infection-masks")
        )
        images.append(_of_row(table, number, image, read_grey))
        masks.append(np.stack([_of_row(table, number, mask, _read_mask) for mask in (lungs, infection)]))
        volumes.append(volume)
    if not images:
        raise InputError(f"has no slices but of the volumes left out, {LEFT_OUT_VOLUMES}", place=str(table))
    return SegmentationData(np.stack(images), np.stack(masks), np.array(volumes, dtype=np.int64))


def _whole(table: Path, number: int, text: str) -> int:
    try:
        return int(text)
    except ValueError as e:
        raise InputError(f"row {number}: volume_guess {text!r} is no whole number", place=str(table)) from e


def _one(table: Path, number: int, kind: str, stem: str) -> str:
    """The file of a slice in one of the folders beside its table, relative to the table."""
    try:
        found = sorted((table.parent / kind).glob(f"{glob.escape(stem)}.*")) if stem else []
    except (OSError, ValueError, NotImplementedError):  # a name that no file can have, or an absolute one
        found = []
    if not found:
        raise InputError(f"row {number}: {kind} has no file for slice {shown(stem)!r}", place=str(table))
    return f"{kind}/{found[0].name}"


def load_covid_ct(root: Path) -> LabelledData:
    """covid-ct below ``root``: ``train`` is the official training split, the rest the validation split."""
    table = root / "covid-ct" / "labels.csv"
    rows = _rows(table, ("path", "label", "patient", "split"))
    return LabelledData(
        np.stack([_of_row(table, n, r["path"], read_grey) for n, r in rows]),
        np.array([r["label"] == POSITIVE for _, r in rows]).astype(np.int64),
        np.array([r["patient"] for _, r in rows]),
        np.array([r["split"] == "train" for _, r in rows]),
    )


def load_sars(root: Path) -> LabelledData:
    """sars-cov-2-ct below ``root``; groups are blocks of neighbouring files, as there are no patient ids."""
    table = root / "sars-cov-2-ct" / "labels.csv"
    rows = _rows(table, ("path", "label"))
    blocks = np.arange(len(rows)) // SARS_BLOCK
    return LabelledData(
        np.stack([_of_row(table, n, r["path"], read_grey) for n, r in rows]),
        np.array([r["label"] == POSITIVE for _, r in rows]).astype(np.int64),
        np.array([f"block{b:03d}" for b in blocks]),
        blocks % 5 != SARS_HELD_OUT,
    )
