"""LABELS.csv for evaluation: rows of labelled images, checked; every problem is one clear line.

Columns ``path`` and ``label`` are needed, ``patient`` is optional (else each image is a patient of its own), others are
kept for controls and selections. A wrong file stops the evaluation; a wrong image is skipped, named and counted. Never
changes a file. Images are read by the product's own ``prepare_file``: DICOM, PNG, JPEG, WebP.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicomnode.csvrows import read_csv
from dicomnode.errors import InputError
from dicomnode.models.preprocess import prepare_file

NEEDED = ("path", "label")
TRAINED_ON = "a pack that was trained on images asked about here looks better than it is: measure it on others"
METADATA = ("width", "height", "source_format", "source_mode")  # columns that the metadata control reads
KNOWN = frozenset({*NEEDED, "patient", "split", *METADATA})
NAMED = 5  # files named in a line; the rest is counted

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes
    ----------
    path : where it is. ``label`` : its class. ``group`` : whose it is, "" where nobody else's.
    number : line in its file, from 2 (the header is line 1).
    columns : every other column as text.
    profile : what a graded protocol compares (``lesion``: infected fraction of six regions of the lung).
    """

    path: Path
    label: str
    group: str = ""
    number: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    profile: tuple[float, ...] = ()

    @property
    def cluster(self) -> str:
        """Its patient, else the image itself."""
        return self.group or f"file:{self.path}"


@dataclass(slots=True)
class Checks:
    """What was found on the way.

    Attributes
    ----------
    notes : lines that change no figure, or say which exclusion took care of them.
    skipped : reason -> files that could not be used; the figures are of fewer images than asked for.
    """

    notes: list[str] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)

    def skip(self, path: Path, reason: str) -> None:
        self.skipped.setdefault(reason, []).append(path)

    @property
    def failed(self) -> int:
        """Number of images that were skipped."""
        return sum(len(paths) for paths in self.skipped.values())

    def lines(self) -> list[str]:
        """Every note, and one line a reason for the skipped files."""
        out = list(self.notes)
        for reason, paths in sorted(self.skipped.items()):
            named = ", ".join(str(p) for p in paths[:NAMED]) + (" ..." if len(paths) > NAMED else "")
            out.append(f"skipped: {len(paths)} images: {reason}: {named}")
        return out


def read_rows(path: Path, checks: Checks, *, needed: Sequence[str] = NEEDED) -> list[Row]:
    """Rows of a labels file, duplicates once.

    Parameters
    ----------
    path : the CSV file; image paths in it are absolute or relative to its own folder.
    checks : takes the notes.
    needed : columns without which the file is refused.

    Raises
    ------
    InputError
        No such file, not CSV, a column missing or there twice, a row with more cells than the header, no rows, an
        empty path or label, one image with two labels, or a column that seems to mean ``patient``.
    """
    records, names = _records(path)
    lacking = [c for c in needed if c not in names]
    if lacking:
        found = ", ".join(names) or "none"
        raise InputError(f"column {lacking[0]!r} is missing (columns: {found})", place=str(path))
    unused = [c for c in names if c not in KNOWN]
    if "patient" not in names and (meant := difflib.get_close_matches("patient", map(str.casefold, unused), 1, 0.8)):
        written = next(c for c in unused if c.casefold() == meant[0])
        line = (
            f"column {written!r} is not known and looks like 'patient', without which a patient's own images are hits"
        )
        raise InputError(line, place=str(path), advice="call it 'patient', or leave it out")
    if unused:
        checks.notes.append(f"{path}: column {', '.join(map(repr, unused))} is not known and not used")
    rows: dict[Path, Row] = {}
    twice = 0
    for number, record in records:
        if not record["path"] or not record["label"]:
            raise InputError("a row has no path or no label", place=f"{path}:{number}")
        row = Row(
            path=path.parent / record["path"],
            label=record["label"],
            group=record.get("patient", ""),
            number=number,
            columns={k: v for k, v in record.items() if k not in (*NEEDED, "patient")},
        )
        before = rows.setdefault(row.path, row)
        if before is row:
            continue
        if (before.label, before.group) != (row.label, row.group):
            line = f"the same image as in line {before.number} with another label or patient"
            raise InputError(line, place=f"{path}:{number}")
        twice += 1
    if not rows:
        raise InputError("holds no rows", place=str(path))
    if twice:
        checks.notes.append(f"{path}: {twice} duplicate rows, each image is used once")
    return list(rows.values())


def _records(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    if not path.is_file():
        raise InputError("no such labels file", place=str(path))
    table = read_csv(path)
    if table.problems:
        more = f" (and {len(table.problems) - 1} more)" if len(table.problems) > 1 else ""
        raise InputError(f"{table.problems[0]}{more}", place=str(path))
    rows = [(number, {k: v for k, v in row.items() if k}) for number, row in table.rows]
    return rows, [name for name in table.names if name]


def check_pair(index: Sequence[Row], queries: Sequence[Row], checks: Checks, place: str = "") -> None:
    """Checks of index and queries together.

    A patient or image on both sides is no error here, because its own rows are closed to each of its queries; but a
    model trained on one side has then seen the patients of the other, so a line says it.

    Raises
    ------
    InputError
        The index has one class only, or no query has a label that the index has.
    """
    classes = Counter(r.label for r in index)
    if len(classes) < 2:
        only = next(iter(classes), "none")
        raise InputError(f"the index has one class only ({only!r}): every answer would be right", place=place)
    strangers = sorted({r.label for r in queries} - set(classes))
    if len(strangers) == len({r.label for r in queries}):
        raise InputError(f"no query has a label of the index; labels of the queries: {strangers}", place=place)
    if strangers:
        checks.notes.append(f"label {', '.join(map(repr, strangers))} is not in the index: its queries are not counted")
    both = sorted({r.group for r in index if r.group} & {r.group for r in queries if r.group})
    if both:
        line = f"{len(both)} patients are in both index and queries: their rows are closed to their own queries"
        checks.notes.append(line)  # which they are is not said: the column may hold a hospital's numbers
    same = {r.path.resolve() for r in index} & {r.path.resolve() for r in queries}
    if same:
        checks.notes.append(f"{len(same)} images are in both index and queries: closed to themselves")


def prepared(rows: Sequence[Row], checks: Checks) -> Iterator[tuple[Row, Pixels]]:
    """Each row that can be used with its pixels, float32 [224, 224] in 0..1; the others go to ``checks``."""
    for row in rows:
        try:
            if not row.path.is_file():
                checks.skip(row.path, "no such file")
            elif row.path.stat().st_size == 0:
                checks.skip(row.path, "the file is empty")
            else:
                yield row, prepare_file(row.path).pixels
        except InputError as exc:
            checks.skip(row.path, exc.line)
        except OSError as exc:
            checks.skip(row.path, exc.strerror or type(exc).__name__)


def numbers(rows: Sequence[Row], column: str) -> npt.NDArray[np.float64]:
    """A column as numbers, NaN where it holds none; float64 [n]."""

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return float("nan")

    return np.array([number(r.columns.get(column, "")) for r in rows], dtype=np.float64)
