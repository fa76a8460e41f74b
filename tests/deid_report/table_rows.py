"""What Table E.1-1 of PS3.15 demands of each attribute, read from its CSV, and what became of one attribute.

Imports nothing of dicomnode, so that a fault of the engine's or the auditor's reading of the table cannot hide here.
Sources: PS3.15 E.1 (X, Z, D, U, K, C), E.3 (options), ``config/deid/e1-1.csv`` (the table).
"""

from __future__ import annotations

import csv
import datetime
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

TABLE = Path(__file__).resolve().parents[2] / "config" / "deid" / "e1-1.csv"
MODIFIED, FULL = "retain-longitudinal-modified-dates", "retain-longitudinal-full-dates"
CLEANING = ("clean-descriptors", "retain-patient-characteristics", "retain-device-identity")
TEXTS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
TIMEZONE = 0x00080201
# Kept where they hold a term of theirs, emptied where they hold anything else (docs/deid.md).
TERMS = frozenset({"PatientSex", "SmokingStatus", "PatientSexNeutered", "EthnicGroup", "PatientSize", "PatientWeight"})
NOT_IN_IMAGES = (0x0000, 0x0002, 0x0004)  # groups of commands, file meta and DICOMDIR records


@functools.cache
def rows() -> dict[int, dict[str, str]]:
    """The rows of the table by tag, those of groups that no image's data set has left out."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    table = {int(row["tag"], 16): row for row in csv.DictReader(lines)}
    return {tag: row for tag, row in table.items() if tag >> 16 not in NOT_IN_IMAGES}


def allowed(tag: int, options: frozenset[str]) -> frozenset[str]:
    """What may become of a listed attribute: ``absent empty dummy uid shifted cleaned aged kept opened``.

    An entry C of an option comes before an entry K of another one, dates moved before dates kept: what reveals less
    wins. ``opened`` is a sequence that may stay while every UID in it is replaced (U*).
    """
    row = rows()[tag]
    cells = {option: row[option] for option in options if row.get(option)}
    vr = row["vr"]
    if MODIFIED in cells:
        if tag == TIMEZONE:
            return frozenset({"kept", "empty"})
        if vr in ("DA", "DT"):
            return frozenset({"shifted", "empty"})
        if vr == "TM":
            return frozenset({"kept"})
        return _basic(row)
    if "C" in cells.values():
        return frozenset({"cleaned", "empty"}) if vr in TEXTS else _basic(row)
    if "K" in cells.values() and vr:  # without a VR the dictionary cannot say what it is: not kept
        return frozenset({"aged"} if vr == "AS" else {"kept", "empty"} if row["keyword"] in TERMS else {"kept"})
    return _basic(row)


def _basic(row: dict[str, str]) -> frozenset[str]:
    outcomes: set[str] = set()
    for cell in row["basic"].split("/"):
        outcomes |= {"X": {"absent"}, "Z": {"empty", "dummy"}, "D": {"dummy"}, "U": {"uid"}, "U*": {"opened"}}[cell]
    if row["vr"] == "SQ" and "dummy" in outcomes:
        outcomes |= {"empty", "absent"}  # no item is made up (docs/deid.md)
    if row["vr"] == "UI" and "dummy" in outcomes:
        outcomes |= {"uid"}
    return frozenset(outcomes)


@dataclass(frozen=True)
class Fate:
    """What became of one attribute; ``wrong`` says it in words where the table does not allow it."""

    tag: int
    outcome: str
    wrong: str = ""


def values(element: DataElement | None) -> list[Any]:
    if element is None or element.value is None or element.value in ("", b""):
        return []
    held = element.value
    return list(held) if isinstance(held, (MultiValue, list, tuple)) else [held]


def fate(before: DataElement, after: DataElement | None, tag: int, options: frozenset[str], days: int) -> Fate:
    """Judge one planted attribute by its own column."""
    may = allowed(tag, options)
    outcome = _outcome(before, after, may, days)
    return Fate(tag, outcome, "" if outcome in may else f"{outcome}, allowed: {' '.join(sorted(may))}")


def _outcome(before: DataElement, after: DataElement | None, may: frozenset[str], days: int) -> str:
    if after is None:
        return "absent"
    old, new = values(before), values(after)
    if before.VR == "SQ":
        if not len(after.value):
            return "empty"
        return "kept" if "kept" in may else "opened"
    if not new or all(one == "" for one in new):
        return "empty"
    if "aged" in may:
        return "aged" if [str(one) for one in new] == [aged(str(one)) for one in old] else "wrong age"
    if "shifted" in may:
        return "shifted" if [str(one) for one in new] == [shifted(str(one), days) for one in old] else "wrong date"
    if [str(one) for one in new] == [str(one) for one in old]:
        return "kept"
    if before.VR == "UI":
        return "uid" if all(str(one).startswith("2.25.") for one in new) else "wrong UID"
    if "cleaned" in may:
        return "cleaned" if set(" ".join(map(str, new)).split()) < set(" ".join(map(str, old)).split()) else "rewritten"
    return "dummy"


def aged(text: str) -> str:
    """Ages over 89 years are 090Y (45 CFR 164.514(b)(2)(i)(C))."""
    return "090Y" if text.endswith("Y") and int(text[:3]) > 89 else text


def shifted(text: str, days: int) -> str:
    """A DA or DT value ``days`` later."""
    date = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8])) + datetime.timedelta(days=days)
    return f"{date:%Y%m%d}".zfill(8) + text[8:]


def at(ds: Dataset, path: tuple[int, ...]) -> Dataset | None:
    """The item at a path of tags and item numbers, or None where it is gone."""
    here: Any = ds
    for tag, number in zip(path[::2], path[1::2], strict=True):
        if tag not in here or here[tag].VR != "SQ" or len(here[tag].value) <= number:
            return None
        here = here[tag].value[number]
    return here  # type: ignore[no-any-return]
