"""Table E.1-1 of PS3.15 Annex E: which attribute each option of the profile removes, keeps or replaces.

The facts lie in ``config/deid/e1-1.csv``; ``python -m dicomnode.deid.table SRC DST`` regenerates that file from a
JSON copy of the table. Nothing here decides what happens to an element: recipe.py and audit.py each read the
table in their own way. Source: DICOM PS3.15 Annex E, Table E.1-1 (edition in the head of the file).
"""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from dicomnode.deid.options import Option
from dicomnode.errors import DeidError

PRIVATE_ROW = "(GGGG,EEEE) WHERE GGGG IS ODD"


# Columns of the table in the JSON copy. The last two options have codes in CID 7050 but no column.
_COLUMNS = {
    Option.SAFE_PRIVATE: "rtnSafePrivOpt",
    Option.UIDS: "rtnUIDsOpt",
    Option.DEVICE: "rtnDevIdOpt",
    Option.INSTITUTION: "rtnInstIdOpt",
    Option.PATIENT: "rtnPatCharsOpt",
    Option.FULL_DATES: "rtnLongFullDatesOpt",
    Option.MODIFIED_DATES: "rtnLongModifDatesOpt",
    Option.DESCRIPTORS: "cleanDescOpt",
    Option.STRUCTURED: "cleanStructContOpt",
    Option.GRAPHICS: "cleanGraphOpt",
}
_HEAD = ("tag", "keyword", "vr", "basic", *(option.value for option in _COLUMNS))


@dataclass(frozen=True, slots=True)
class Row:
    """One attribute of the table.

    ``basic`` is the cell of the Basic Profile ("X", "Z/D", "X/Z/U*" ...); ``columns`` holds "K" (keep) or "C"
    (clean) for each option with an entry. ``vr`` is empty where pydicom's dictionary does not know the attribute.
    """

    tag: int
    keyword: str
    vr: str
    basic: str
    columns: dict[Option, str]


def data_file(name: str) -> Traversable:
    """A file of ``config/deid``: from the installed wheel, or from the checkout beside the package.

    Raises
    ------
    DeidError
        The file is in neither place.
    """
    packaged = resources.files("dicomnode").joinpath("_config", "deid", name)
    if packaged.is_file():
        return packaged
    checkout = Path(__file__).resolve().parents[2] / "config" / "deid" / name
    if checkout.is_file():
        return checkout
    raise DeidError("a data file of the package is missing", place=f"config/deid/{name}", advice="install it again")


def data_lines(name: str) -> Iterator[str]:
    """Lines of a data file without comments (``#``) and empty lines, stripped."""
    for line in data_file(name).read_text("utf-8").splitlines():
        text = line.split("#", 1)[0].strip()
        if text:
            yield text


def data_words(*names: str) -> frozenset[str]:
    """The words of data files that are lists of words, in lower case."""
    return frozenset(word for name in names for line in data_lines(name) for word in line.casefold().split())


@functools.cache
def rows() -> tuple[Row, ...]:
    """Every row with a tag of its own; the three group rows (private, curves, overlays) apply by group number."""
    table = []
    for cells in csv.DictReader(data_lines("e1-1.csv")):
        columns = {option: cells[option.value] for option in _COLUMNS if cells[option.value]}
        table.append(Row(int(cells["tag"], 16), cells["keyword"], cells["vr"], cells["basic"], columns))
    return tuple(table)


@functools.cache
def by_tag() -> dict[int, Row]:
    """The rows by tag number ``0xGGGGEEEE``."""
    return {row.tag: row for row in rows()}


def is_curve_or_overlay(tag: int) -> bool:
    """Groups 50xx (curves) and 60xx (overlays); the table names three of their attributes, we treat them whole."""
    return (tag >> 24) in (0x50, 0x60)


def _number(tag: str) -> int | None:
    """``(0010,0020)`` as a number; None for the rows that stand for a group of attributes."""
    digits = tag[1:5] + tag[6:10]
    try:
        return int(digits, 16)
    except ValueError:
        return None


def _csv_rows(source_rows: Iterable[dict[str, str | None]]) -> list[list[str]]:
    out = []
    for row in source_rows:
        number = _number(str(row["tag"]))
        if number is None:
            continue
        head = [f"{number:08X}", row["keyword"] or "", row["vr"] or "", str(row["basicProfile"])]
        out.append([str(cell) for cell in head] + [str(row.get(column) or "") for column in _COLUMNS.values()])
    return sorted(out)


def regenerate(source: Path, target: Path) -> int:
    """Write ``target`` (CSV) from ``source`` (JSON with ``note`` and ``rows``); returns the number of rows."""
    table = json.loads(source.read_text("utf-8"))
    lines = _csv_rows(table["rows"])
    with target.open("w", encoding="utf-8", newline="") as out:
        out.write("# DICOM PS3.15 Annex E, Table E.1-1; facts of the Standard.\n")
        out.write(f"# {table['note'].split(' Column keys')[0]}\n")
        out.write("# Regenerate: python -m dicomnode.deid.table SRC.json DST.csv\n")
        out.write("# Rows for groups (private, 50xx, 60xx) are applied by group number and are not listed.\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_HEAD)
        writer.writerows(lines)
    return len(lines)


if __name__ == "__main__":
    print(f"{regenerate(Path(sys.argv[1]), Path(sys.argv[2]))} rows")  # noqa: T201 (a command)
