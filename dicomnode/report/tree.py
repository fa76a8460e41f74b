"""A Structured Report as indented lines of text, for a terminal: one line a content item, concept and value.

Works on any SR, also damaged or unknown ones: what is missing shows as "?". Never changes the data set. The lines hold
what the report holds, so print them to the person who owns it, never to a log. Value types: PS3.3 table C.17.3-7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.errors import InputError

INDENT = "  "
MISSING = "?"
VALUE_WIDTH = 400  # of text values; a whole report body in one item would flood the terminal


def _printable(value: object) -> str:
    """On one line and without what a terminal would obey."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 3] + "..."


def _attribute(item: Dataset, keyword: str) -> str:
    value = item.get(keyword)
    return MISSING if value is None or value == "" else _printable(value)


def _code(item: Dataset, keyword: str, *, with_value: bool = True) -> str:
    sequence = item.get(keyword)
    if not sequence:
        return MISSING
    code = sequence[0]
    value = code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue") or MISSING
    meaning = _attribute(code, "CodeMeaning")
    if not with_value and meaning != MISSING:
        return meaning
    scheme = code.get("CodingSchemeDesignator")
    return f"{meaning} ({_printable(f'{scheme} {value}' if scheme else value)})"


def _numeric(item: Dataset) -> str:
    measured = item.get("MeasuredValueSequence")
    if not measured:
        return _code(item, "NumericValueQualifierCodeSequence", with_value=False)
    units = (measured[0].get("MeasurementUnitsCodeSequence") or [Dataset()])[0].get("CodeValue", "")
    number = _attribute(measured[0], "NumericValue")
    return number if units in ("", "1") else f"{number} {_printable(units)}"


def _reference(item: Dataset) -> str:
    sequence = item.get("ReferencedSOPSequence")
    if not sequence:
        return MISSING
    sop = sequence[0]
    name = UID(sop.get("ReferencedSOPClassUID") or "").name
    frames = sop.get("ReferencedFrameNumber")
    suffix = "" if frames is None else f" frame {_printable(frames)}"
    return f"{_printable(name) or MISSING} {_attribute(sop, 'ReferencedSOPInstanceUID')}{suffix}"


def _coordinates(item: Dataset) -> str:
    points = item.get("GraphicData")
    if points is None:
        points = item.get("ReferencedSamplePositions") or item.get("ReferencedTimeOffsets") or MISSING
    return f"{item.get('GraphicType') or item.get('TemporalRangeType') or MISSING} {_printable(points)}"


_VALUE: dict[str, Callable[[Dataset], str]] = {
    "TEXT": lambda item: _attribute(item, "TextValue"),
    "CODE": lambda item: _code(item, "ConceptCodeSequence"),
    "NUM": _numeric,
    "DATETIME": lambda item: _attribute(item, "DateTime"),
    "DATE": lambda item: _attribute(item, "Date"),
    "TIME": lambda item: _attribute(item, "Time"),
    "UIDREF": lambda item: _attribute(item, "UID"),
    "PNAME": lambda item: _attribute(item, "PersonName"),
    "COMPOSITE": _reference,
    "IMAGE": _reference,
    "WAVEFORM": _reference,
    "SCOORD": _coordinates,
    "SCOORD3D": _coordinates,
    "TCOORD": _coordinates,
    "TABLE": lambda item: f"{item.get('NumberOfTableRows', MISSING)} x {item.get('NumberOfTableColumns', MISSING)}",
}


def _line(item: Dataset) -> str:
    if "ReferencedContentItemIdentifier" in item:  # a by-reference relationship has no content of its own
        return f"see item {_printable(item.ReferencedContentItemIdentifier)}"
    kind = _attribute(item, "ValueType")
    concept = _code(item, "ConceptNameCodeSequence", with_value=False)
    if kind == "CONTAINER":
        return "container" if concept == MISSING else concept
    value = _VALUE[kind](item) if kind in _VALUE else MISSING
    return f"{kind.lower()}: {value}" if concept == MISSING else f"{concept}: {value}"


def _walk(item: Dataset, depth: int) -> Iterator[str]:
    yield INDENT * depth + _line(item)
    for child in item.get("ContentSequence") or []:
        yield from _walk(child, depth + 1)


def sr_tree(ds: Dataset) -> list[str]:
    """The content tree, one line an item, children indented by two spaces.

    Parameters
    ----------
    ds : Dataset
        Any Structured Report, of this node or of another system.

    Raises
    ------
    InputError
        When the object has no content tree, so is not a Structured Report.
    """
    if "ValueType" not in ds and "ContentSequence" not in ds:
        raise InputError("this object is not a Structured Report", place="ValueType (0040,A040)")
    return list(_walk(ds, 0))
