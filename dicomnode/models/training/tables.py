"""A site's own data as CSV, checked before anything is trained or written: one line for each thing that is wrong.

``LABELS.csv`` (path, label; patient, split optional), a table of outlined slices (path, lung_mask, infection_mask,
volume; patient, split optional) and one of scans (path, scan, label; patient, split optional). Images are what the
node takes: DICOM, PNG, JPEG, WebP, prepared by the node's own code (pictures upright by EXIF and transparency on black,
as uploads are). Lines name rows, files and labels; never a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from dicomnode.csvrows import DataProblems, Row, read_csv
from dicomnode.errors import InputError
from dicomnode.models.frames import number_of_frames
from dicomnode.models.pictures import upright_grey
from dicomnode.models.preprocess import (
    SIDE,
    UnusableImage,
    is_dicom,
    picture_pixels,
    prepare_dicom,
    prepare_dicom_mask,
    read_header,
)
from dicomnode.models.training.data import LabelledData, SegmentationData, digest_of
from dicomnode.models.training.progress import tell
from dicomnode.models.training.reading import opened, present, shown
from dicomnode.models.training.splits import joined, near_twins

TRAIN = "train"
LABEL_COLUMNS = ("path", "label")
SLICE_COLUMNS = ("path", "lung_mask", "infection_mask", "volume")
SCAN_COLUMNS = ("path", "scan", "label")
# Columns that this or another command uses (docs/training.md); any other is a slip, such as "pateint".
OPTIONAL = ("patient", "split", "source_format", "source_mode", "width", "height")
SHOWN = 20  # problems told one by one

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass
class _Problems:
    """What is wrong with one table, collected so that all of it can be mended at once."""

    path: Path
    lines: list[str] = field(default_factory=list)

    def add(self, number: int, line: str) -> None:
        self.lines.append(f"row {number}: {line}")

    def stop(self) -> None:
        if self.lines:
            raise DataProblems(self.path, self.lines)


def _table(path: Path, required: Sequence[str], optional: Sequence[str]) -> list[tuple[int, Row]]:
    """Rows with their line numbers (the header is row 1); columns checked."""
    table = read_csv(path)
    missing = [f"column {c!r} is missing" for c in required if c not in table.names]
    known = (*required, *optional)
    unknown = [f"column {c!r} is unknown (known: {', '.join(known)})" for c in table.names if c not in known]
    if missing or unknown or table.problems:
        raise DataProblems(path, [*missing, *unknown, *table.problems])
    rows = list(table.rows)
    if not rows:
        raise DataProblems(path, ["has no rows"])
    return rows


def read_upright(path: Path) -> Bytes:
    """An image file as the node prepares it, grey uint8 [224, 224]; see the head of this module.

    Raises
    ------
    InputError
        Missing, 0 bytes, or ``UnusableImage``: unreadable, larger than 100 million pixels, or all of one grey.
    """
    present(path)
    if is_dicom(path):
        return np.rint(prepare_dicom(path).pixels * 255).astype(np.uint8)
    with opened(path) as image:
        grey = upright_grey(image)
    pixels = np.rint(picture_pixels(grey) * 255).astype(np.uint8)
    if pixels.min() == pixels.max():
        raise UnusableImage("constant", "every pixel has the same value")
    return pixels


def read_mask(path: Path, image: Path) -> npt.NDArray[np.bool_]:
    """A drawn mask as the node prepares its image, bool [224, 224]: brighter than half; of masks of 0 and 1, the ones.

    Parameters
    ----------
    image : the image it was drawn on; the mask of a DICOM image is cut to the body with it.

    Raises
    ------
    InputError
        Missing, unreadable, or of another size than its image.
    """
    present(path)
    with opened(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        values = np.asarray(upright if upright.mode.startswith(("I", "F")) else upright.convert("L"), dtype=np.float32)
    highest = float(values.max())
    drawn = values > (127.0 if 1 < highest <= 255 else highest / 2)
    if is_dicom(image):
        return prepare_dicom_mask(image, drawn)
    width, height = _picture_size(image)
    if drawn.shape != (height, width):
        raise InputError(f"is {drawn.shape[1]}x{drawn.shape[0]}, its image {width}x{height}")
    small = Image.fromarray((drawn * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(small) > 127


def _picture_size(path: Path) -> tuple[int, int]:
    """Upright width and height of a picture."""
    with opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF Orientation: a quarter turn
        return (height, width) if turned else (width, height)


def _images(base: Path, rows: Sequence[tuple[int, Row]], problems: _Problems) -> list[Bytes]:
    """The images of all rows; what is wrong with one goes to ``problems``, and its place is taken by black."""
    seen: dict[Path, int] = {}
    out, with_more = [], 0

    def read(number: int, name: str) -> Bytes:
        path = base / name
        present(path)
        first = seen.setdefault(path.resolve(), number)
        if first != number:
            raise InputError(f"is already in row {first}")
        return read_upright(path)

    for number, row in rows:
        image = np.zeros((SIDE, SIDE), dtype=np.uint8)
        if row["path"]:
            image = _attempt(number, row["path"], partial(read, number, row["path"]), problems, image)
            with_more += bool(image.any()) and _has_frames(base / row["path"])
        else:
            problems.add(number, "path is empty")
        out.append(image)
    if with_more:
        tell(f"{problems.path}: {with_more} of the images have several frames: the first of each is taken")
    return out


def _has_frames(path: Path) -> bool:
    """Whether a file that could be read is a DICOM object with more frames than one."""
    return is_dicom(path) and number_of_frames(read_header(path)) > 1


def _attempt(number: int, name: str, read: Callable[[], T], problems: _Problems, otherwise: T) -> T:
    try:
        return read()
    except InputError as e:
        problems.add(number, f"{shown(name)}: {e.line}")
        return otherwise


def _splits(rows: Sequence[tuple[int, Row]], problems: _Problems) -> npt.NDArray[np.str_] | None:
    """The split of each row, None without that column."""
    if "split" not in rows[0][1]:
        return None
    for number, row in rows:
        if not row["split"]:
            problems.add(number, "split is empty")
    words = np.array([row["split"] for _, row in rows])
    if TRAIN not in words:
        problems.lines.append(f"no row has the split {TRAIN!r}")
    return words


def _leaks(
    rows: Sequence[tuple[int, Row]],
    groups: npt.NDArray[np.str_],
    splits: npt.NDArray[np.str_],
    what: str,
    problems: _Problems,
) -> None:
    """Groups that are in two splits."""
    words = [str(s) for s in splits]
    first: dict[tuple[str, str], int] = {}
    for i, (group, split) in enumerate(zip(groups, words, strict=True)):
        first.setdefault((str(group), split), i)
    by_group: dict[str, list[int]] = {}
    for (group, _), i in first.items():
        by_group.setdefault(group, []).append(i)
    for places in by_group.values():
        for j in places[1:]:
            i = places[0]
            problems.lines.append(
                f"rows {rows[i][0]} and {rows[j][0]} are of one {what} in the splits {words[i]!r} and {words[j]!r}"
            )


def _copies_across(
    rows: Sequence[tuple[int, Row]],
    groups: npt.NDArray[np.str_],
    splits: npt.NDArray[np.str_],
    twins: npt.NDArray[np.int64],
    problems: _Problems,
) -> None:
    """Near-copies of two groups that are in two splits."""
    words = [str(s) for s in splits]
    for i, j in twins:
        if words[i] != words[j] and groups[i] != groups[j]:
            problems.lines.append(
                f"rows {rows[i][0]} and {rows[j][0]} are near-copies in the splits {words[i]!r} and {words[j]!r}"
            )


def _groups(rows: Sequence[tuple[int, Row]]) -> npt.NDArray[np.str_]:
    """The patient of each row; a row without one is nobody else's."""
    return np.array([f"p:{row['patient']}" if row.get("patient") else f"r:{n:08d}" for n, row in rows])


def load_labels(path: Path) -> LabelledData:
    """A LABELS.csv, checked.

    Returns
    -------
    LabelledData
        Classes in the order of the alphabet. Groups are patients, joined where they share a near-copy. Without a column
        "split" every row is of the training split.

    Raises
    ------
    InputError
        ``DataProblems`` with every line that is wrong: columns, missing or unusable images, duplicate rows, one class
        only, patients or near-copies in two splits.
    """
    return _labelled(path, _table(path, LABEL_COLUMNS, OPTIONAL))


def _labelled(path: Path, rows: Sequence[tuple[int, Row]]) -> LabelledData:
    problems = _Problems(path)
    for number, row in rows:
        if not row["label"]:
            problems.add(number, "label is empty")
    images = _images(path.parent, rows, problems)
    splits = _splits(rows, problems)
    train = np.ones(len(rows), dtype=np.bool_) if splits is None else splits == TRAIN
    words = np.array([row["label"] for _, row in rows])
    classes = tuple(str(c) for c in np.unique(words))
    of_training = np.unique(words[train])
    if len(of_training) == 1:
        problems.lines.append(f"all training rows have one label, {str(of_training[0])!r}: two classes are needed")
    problems.stop()
    stack, groups = np.stack(images), _groups(rows)
    twins = near_twins(stack)
    if splits is not None:
        _leaks(rows, groups, splits, "patient", problems)
        _copies_across(rows, groups, splits, twins, problems)
        lacking = sorted(set(classes) - {str(c) for c in of_training})
        problems.lines += [f"label {c!r} is in no training row" for c in lacking]
        problems.stop()
    labels = np.searchsorted(np.array(classes), words).astype(np.int64)
    return LabelledData(stack, labels, joined(groups, twins), train, classes)


def load_slices(path: Path) -> SegmentationData:
    """A table of outlined slices, checked; a mask that is left empty is unknown.

    Returns
    -------
    SegmentationData
        Volumes are numbered as they come. Held out are those of which the column "split" does not say "train"; none
        without it. Patients are those of a column "patient".

    Raises
    ------
    InputError
        ``DataProblems`` with every line that is wrong.
    """
    rows = _table(path, SLICE_COLUMNS, OPTIONAL)
    problems = _Problems(path)
    images = _images(path.parent, rows, problems)
    splits = _splits(rows, problems)
    masks = np.zeros((len(rows), 2, SIDE, SIDE), dtype=np.bool_)
    drawn = np.zeros((len(rows), 2), dtype=np.bool_)
    for i, (number, row) in enumerate(rows):
        if not row["volume"]:
            problems.add(number, "volume is empty")
        for k, column in enumerate(("lung_mask", "infection_mask")):
            if row[column] and images[i].any():  # else the image's own line says what is wrong
                drawn[i, k] = True
                read = partial(read_mask, path.parent / row[column], path.parent / row["path"])
                masks[i, k] = _attempt(number, f"{column} {row[column]}", read, problems, masks[i, k])
    if not drawn.any():
        problems.lines.append("no row has a mask")
    problems.stop()
    names = list(dict.fromkeys(row["volume"] for _, row in rows))
    volumes = np.array([names.index(row["volume"]) for _, row in rows], dtype=np.int64)
    _one_patient_each(rows, problems)
    held: tuple[int, ...] = ()
    stack = np.stack(images)
    if splits is not None:
        _volume_leaks(rows, splits, near_twins(stack), problems)
        held = tuple(sorted({int(v) for v in volumes[splits != TRAIN]}))
    problems.stop()
    patients = np.array([row["patient"] for _, row in rows]) if "patient" in rows[0][1] else None
    return SegmentationData(stack, masks, volumes, held, drawn, patients)


def _one_patient_each(rows: Sequence[tuple[int, Row]], problems: _Problems) -> None:
    """Volumes whose rows name two patients; a row that names none is of its volume's."""
    first: dict[str, tuple[int, str]] = {}
    for number, row in rows:
        if patient := row.get("patient", ""):
            at, other = first.setdefault(row["volume"], (number, patient))
            if other != patient:
                problems.add(number, f"has another patient than row {at} of the same volume")


def _volume_leaks(
    rows: Sequence[tuple[int, Row]], splits: npt.NDArray[np.str_], twins: npt.NDArray[np.int64], problems: _Problems
) -> None:
    """Volumes, patients and near-copies that are in two splits; each pair is told once."""
    named = {row["volume"]: row["patient"] for _, row in rows if row.get("patient")}
    volumes = np.array([row["volume"] for _, row in rows])
    patients = np.array([f"p:{named[v]}" if v in named else f"v:{v}" for v in volumes])
    _leaks(rows, volumes, splits, "volume", problems)
    across = {v for v in np.unique(volumes) if len(np.unique(splits[volumes == v])) > 1}
    whole = np.array([v not in across for v in volumes])
    mine = [row for row, asked in zip(rows, whole, strict=True) if asked]
    _leaks(mine, patients[whole], splits[whole], "patient", problems)
    _copies_across(rows, patients, splits, twins, problems)


@dataclass(frozen=True, slots=True)
class ScanData:
    """Labelled slices of scans: ``labelled`` rows, and the scan of each row, int [n]."""

    labelled: LabelledData
    scans: npt.NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """As ``LabelledData``'s, of all slices: which are taken of a scan may depend on the device."""
        return digest_of([self.scans], [self.labelled.fingerprint])


def load_scans(path: Path) -> ScanData:
    """A table of the slices of labelled scans, checked as a LABELS.csv; without patients, each scan is one's own.

    Raises
    ------
    InputError
        ``DataProblems``, also where the rows of a scan differ in label, patient or split.
    """
    rows = _table(path, SCAN_COLUMNS, OPTIONAL)
    problems = _Problems(path)
    first: dict[str, tuple[int, Row]] = {}
    for number, row in rows:
        if not row["scan"]:
            problems.add(number, "scan is empty")
            continue
        at, other = first.setdefault(row["scan"], (number, row))
        for column in ("label", "patient", "split"):
            if row.get(column) != other.get(column):
                problems.add(number, f"has another {column} than row {at} of the same scan")
    problems.stop()
    whose = [(n, {**row, "patient": row.get("patient") or f"scan {row['scan']}"}) for n, row in rows]
    names = list(first)
    scans = np.array([names.index(row["scan"]) for _, row in rows], dtype=np.int64)
    return ScanData(_labelled(path, whose), scans)
