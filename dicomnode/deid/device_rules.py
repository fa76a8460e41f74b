"""Where known devices write text: rectangles by manufacturer, model, size and the like, and ultrasound regions.

The rules lie in ``config/deid/device-rules.csv``; ``python -m dicomnode.deid.device_rules SRC DST`` regenerates that
file from the recipe ``deid.dicom`` of the deid package (MIT; most rules come from CTP of RSNA). A rule only ever adds
rectangles; an image without one is examined all the same. Sources: deid 0.4.13, PS3.3 C.8.5.5 (US regions).
"""

from __future__ import annotations

import csv
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from dicomnode.deid import table
from dicomnode.deid.rectangles import Rectangle, outside

_HEAD = ("label", "conditions", "rectangles")
_AND, _OR, _CONTAINS, _EQUALS = " & ", " / ", "~", "="
# Names and values in the source that no object has, and what they are meant to be.
_CORRECTIONS = {"Manfacturer": "Manufacturer", "Manufacture": "Manufacturer"}
_MODALITIES = {"MRI": "CR", "PET/CT": "PT", "Other": "OT"}
_COORDINATES = re.compile(r"^(ctp)?coordinates\s+(\d+\s*,\s*\d+\s*,\s*\d+\s*,\s*\d+)\s*$")
_TERM = re.compile(r"^(contains|equals)\s+(\w+)\s+(.+)$")
_RECOGNISED_BY = frozenset({"Manufacturer", "ManufacturerModelName", "ImplementationVersionName"})


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Where all ``conditions`` hold, of each at least one (keyword, operator, values), ``rectangles`` are text."""

    label: str
    conditions: tuple[tuple[tuple[str, str, tuple[str, ...]], ...], ...]
    rectangles: tuple[Rectangle, ...]

    def applies(self, ds: Dataset) -> bool:
        """Whether the object comes from the device that the rule is about."""
        return all(any(_holds(ds, *term) for term in terms) for terms in self.conditions)


def _values(ds: Dataset, keyword: str) -> list[str]:
    meta = getattr(ds, "file_meta", None)
    value = ds.get(keyword) if keyword in ds or meta is None else meta.get(keyword)
    if value is None:
        return []
    if isinstance(value, (str, int, float)):
        return [str(value).strip().casefold()]
    return [str(one).strip().casefold() for one in value]


def _holds(ds: Dataset, keyword: str, operator: str, wanted: tuple[str, ...]) -> bool:
    values = _values(ds, keyword)
    if operator == _EQUALS:
        return any(value == one for value in values for one in wanted)
    joined = "\\".join(values)
    return any(one in joined for one in wanted)


@functools.cache
def rules() -> tuple[DeviceRule, ...]:
    """Every rule of the file."""
    return tuple(
        DeviceRule(
            cells["label"],
            tuple(tuple(_parsed(term) for term in terms.split(_OR)) for terms in cells["conditions"].split(_AND)),
            tuple(Rectangle(*(int(edge) for edge in one.split())) for one in cells["rectangles"].split(";")),
        )
        for cells in csv.DictReader(table.data_lines("device-rules.csv"))
    )


def _parsed(term: str) -> tuple[str, str, tuple[str, ...]]:
    match = re.match(r"(\w+)([~=])(.*)", term)
    assert match is not None  # the file is ours
    return match[1], match[2], tuple(one.casefold() for one in match[3].split("|"))


def rectangles_for(ds: Dataset, rows: int, columns: int) -> tuple[Rectangle, ...]:
    """What the rules and the ultrasound regions blank in an image of that size. ``ds`` is the original header."""
    known = () if _is_primary_slice(ds) else rules()
    found = [one for rule in known if rule.applies(ds) for one in rule.rectangles]
    found += outside_regions(ds, rows, columns)
    return tuple(sorted({r for r in (one.clipped(rows, columns) for one in found) if r.area}))


def _is_primary_slice(ds: Dataset) -> bool:
    """Reconstructions of CT, MR, PT, NM: rules go by words like "enhancement" there and would blank anatomy."""
    slices = _values(ds, "Modality")[:1] in (["ct"], ["mr"], ["pt"], ["nm"])
    return slices and "primary" in _values(ds, "ImageType")[1:2]


def outside_regions(ds: Dataset, rows: int, columns: int) -> tuple[Rectangle, ...]:
    """Everything beside the ultrasound regions (0018,6011); nothing where they are absent or lie outside the image."""
    regions = []
    for item in ds.get("SequenceOfUltrasoundRegions") or ():
        try:
            left, top = int(item.RegionLocationMinX0), int(item.RegionLocationMinY0)
            right, bottom = int(item.RegionLocationMaxX1), int(item.RegionLocationMaxY1)
        except (AttributeError, TypeError, ValueError):
            return ()
        regions.append(Rectangle(top, left, bottom + 1, right + 1).clipped(rows, columns))
    regions = [region for region in regions if region.area]
    return outside(regions, rows, columns) if regions else ()


def _source_rules(lines: Iterable[str]) -> Iterator[tuple[str, list[str], list[Rectangle]]]:
    """Label, conditions and rectangles of each rule of a deid recipe that has rectangles."""
    label, conditions, found = "", [], []  # type: tuple[str, list[str], list[Rectangle]]
    for raw in [*lines, "LABEL end"]:
        line = raw.strip()
        if line.startswith(("LABEL", "%")):
            if found and any(name in terms for name in _RECOGNISED_BY for terms in conditions):
                yield label, conditions, found
            label, conditions, found = " ".join(line[5:].split("#")[0].split()), [], []
        elif match := _COORDINATES.match(line):
            x, y, third, fourth = (int(number) for number in match[2].split(","))
            right, bottom = (x + third, y + fourth) if match[1] else (third, fourth)
            found.append(Rectangle(y, x, bottom, right))
        elif line and not line.startswith("#"):
            conditions.append(_condition(line))


def _condition(line: str) -> str:
    """``+ contains A b || equals C d`` as ``A~b / C=d``."""
    terms = []
    for part in line.removeprefix("+").split("||"):
        match = _TERM.match(part.strip())
        if match is None:
            continue  # "missing", "empty": of rules without rectangles
        keyword = _CORRECTIONS.get(match[2], match[2])
        value = _MODALITIES.get(match[3].strip(), match[3].strip()) if keyword == "Modality" else match[3].strip()
        terms.append(f"{keyword}{_CONTAINS if match[1] == 'contains' else _EQUALS}{value}")
    return _OR.join(terms)


def regenerate(source: Path, target: Path) -> int:
    """Write ``target`` (CSV) from a deid recipe; returns the number of rules."""
    written = set()
    with target.open("w", encoding="utf-8", newline="") as out:
        out.write("# Where devices write text: rectangles as 'top left bottom right', the ends excluded.\n")
        out.write("# From deid/data/deid.dicom of the deid package 0.4.13, Copyright (c) 2016-2022 Vanessa Sochat,\n")
        out.write("# MIT License (https://github.com/pydicom/deid/blob/master/LICENSE); many come from RSNA's CTP.\n")
        out.write("# Regenerate: python -m dicomnode.deid.device_rules SRC DST\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_HEAD)
        for label, conditions, found in _source_rules(source.read_text("utf-8").splitlines()):
            row = (label, _AND.join(conditions), ";".join(" ".join(map(str, one)) for one in found))
            if row[1:] not in written:
                written.add(row[1:])
                writer.writerow(row)
    return len(written)


if __name__ == "__main__":
    print(f"{regenerate(Path(sys.argv[1]), Path(sys.argv[2]))} rules")  # noqa: T201 (a command)
