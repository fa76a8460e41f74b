"""Table E.3.10-1 of PS3.15: private attributes known to be safe, by group, creator and element.

The facts lie in ``config/deid/e3-10-1.csv``; ``python -m dicomnode.deid.safe_private SRC DST`` regenerates that file.
Nothing here decides what happens to an element: private.py keeps, private_audit.py judges, each in its own way.
Source: DICOM PS3.15 E.3.10, Table E.3.10-1 (edition in the head of the file).
"""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dicomnode.deid import table

DATA = "e3-10-1.csv"
_HEAD = ("group", "element", "creator", "vr", "vm", "name")
Key = tuple[int, str, int]  # group, creator, low byte of the element


@dataclass(frozen=True, slots=True)
class SafeElement:
    """One attribute: ``(group, xxelement)`` of a creator's block, with its VR and how many values it may have."""

    group: int
    element: int
    creator: str
    vr: str
    vm: str
    name: str

    @property
    def key(self) -> Key:
        return self.group, self.creator, self.element

    def fits(self, count: int) -> bool:
        """Whether the attribute may have ``count`` values (PS3.5 6.4: 1, 3, 3-4, 1-n)."""
        least, _, most = self.vm.partition("-")
        return int(least) <= count and (most == "n" or count <= int(most or least))


@functools.cache
def elements() -> dict[Key, SafeElement]:
    """The table by group, creator and element."""
    found = {}
    for cells in csv.DictReader(table.data_lines(DATA)):
        one = SafeElement(
            int(cells["group"], 16),
            int(cells["element"], 16),
            cells["creator"],
            cells["vr"],
            cells["vm"],
            cells["name"],
        )
        found[one.key] = one
    return found


def regenerate(source: Path, target: Path) -> int:
    """Write ``target`` from a CSV with the columns Group, Element (``xx1a``), Private Creator, VR, VM, Meaning."""
    with source.open(encoding="utf-8", newline="") as lines:
        rows = _rows(csv.DictReader(lines))
    with target.open("w", encoding="utf-8", newline="") as out:
        out.write("# DICOM PS3.15 E.3.10, Table E.3.10-1, Safe Private Attributes; facts of the Standard.\n")
        out.write(
            "# Source: the rows that The Cancer Imaging Archive's table of private tags marks as in the Standard's\n"
        )
        out.write("# table (IsInDICOMRetainSafePrivateTags); it does not tell the edition. An attribute that a later\n")
        out.write("# edition adds is removed.\n")
        out.write("# Regenerate: python -m dicomnode.deid.safe_private SRC.csv DST.csv\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_HEAD)
        writer.writerows(rows)
    return len(rows)


def _rows(source: Iterable[dict[str, str]]) -> list[list[str]]:
    kept = (row for row in source if row["Rtn. Safe Priv. Opt."] == "keep")
    return sorted(
        [row["Group"].upper(), row["Element"][2:].upper(), row["Private Creator"], row["VR"], row["VM"], row["Meaning"]]
        for row in kept
    )


if __name__ == "__main__":
    print(f"{regenerate(Path(sys.argv[1]), Path(sys.argv[2]))} rows")  # noqa: T201 (a command)
