"""Keeps what is safe in private blocks, for the Retain Safe Private Option (PS3.15 E.3.10).

An element stays where Table E.3.10-1 (or the site's recipe) lists its group, creator and place in the creator's block,
and its VR and number of values are the listed ones. Numbers pass; texts pass the cleaner; codes stay whole or not at
all; UIDs and dates are treated as everywhere else. Everything else goes, and creators of blocks that are empty then.
Blocks stay at their place, so that nothing that points to them breaks. Sources: PS3.5 7.8 (blocks), PS3.15 E.3.10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from dicomnode.deid.safe_private import Key, SafeElement
from dicomnode.deid.text import clean, clean_code

Treat = Callable[[DataElement], Any]  # gives the new value; empty: the element goes

_NUMBERS = frozenset({"FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
_TEXTS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_FIRST_BLOCK = 0x10  # (gggg,0010-00FF) name the creators of the blocks 10xx to FFxx


def keep_safe(
    ds: Dataset, safe: Mapping[Key, SafeElement], names: frozenset[str], treat: Mapping[str, Treat], *, little: bool
) -> int:
    """Reduce the private elements of ``ds`` to the safe ones, at every depth; returns how many stay.

    Parameters
    ----------
    names : frozenset of str
        Words that no text may have: persons' names in the object.
    treat : mapping
        By VR (UI, DA, DT, TM): what the recipe does with such a value. A VR that is not in it is not kept.
    little : bool
        Byte order of the file, for values that came as UN.
    """
    kept = 0
    creators = _creators(ds)
    used: set[int] = set()
    for tag in [int(tag) for tag in ds.keys() if int(tag) >> 16 & 1]:  # noqa: SIM118 (raw)
        block = (tag >> 8) & 0xFF
        entry = safe.get((tag >> 16, creators.get(tag >> 16 << 16 | block, ""), tag & 0xFF))
        if block < _FIRST_BLOCK or entry is None or not _is_kept(ds, tag, entry, names, treat, little):
            if tag not in creators:
                del ds[tag]
            continue
        kept += 1
        used.add(tag >> 16 << 16 | block)
    for tag, creator in creators.items():
        del ds[tag]
        if tag in used:
            ds[tag] = DataElement(tag, "LO", creator)
    for element in ds:
        if element.VR == "SQ":
            kept += sum(keep_safe(item, safe, names, treat, little=little) for item in element.value or ())
    return kept


def listed(ds: Dataset, tag: int, safe: Mapping[Key, SafeElement]) -> SafeElement | None:
    """The entry of ``safe`` that a private element of ``ds`` is, by its creator; None where it is none."""
    if not tag >> 16 & 1:
        return None
    creator = _creators(ds).get(tag >> 16 << 16 | (tag >> 8) & 0xFF, "")
    return safe.get((tag >> 16, creator, tag & 0xFF))


def _creators(ds: Dataset) -> dict[int, str]:
    """Creators by the tag of the element that names them."""
    found = {}
    for tag in [int(tag) for tag in ds.keys()]:  # noqa: SIM118 (raw)
        if tag >> 16 & 1 and _FIRST_BLOCK <= tag & 0xFFFF <= 0xFF:
            value = ds[tag].value
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
            found[tag] = text.strip("\0 ")
    return found


def _is_kept(
    ds: Dataset, tag: int, entry: SafeElement, names: frozenset[str], treat: Mapping[str, Treat], little: bool
) -> bool:
    """Whether the element is what the table says; its value is the treated one then."""
    element = _known(ds, tag, entry, little)
    if element is None or entry.vr != element.VR:
        return False
    if entry.vr == "SQ":
        ds[tag] = element
        return True
    held = element.value
    if held is None or held in ("", b"") or isinstance(held, bytes):
        return False
    values = list(held) if isinstance(held, (MultiValue, list, tuple)) else [held]
    treated = _treated(element, [str(one) for one in values], names, treat)
    if treated is None or not entry.fits(len(values)):
        return False
    element.value = held if entry.vr in _NUMBERS else treated[0] if len(treated) == 1 else treated
    ds[tag] = element
    return True


def _known(ds: Dataset, tag: int, entry: SafeElement, little: bool) -> DataElement | None:
    """The element with the listed VR where it came as UN: the sender's file may not say it (PS3.5 6.2.2).

    None where it cannot be read: in Implicit VR pydicom's own dictionary gives the VR, now and then another one.
    """
    try:
        element = ds[tag]
    except (ValueError, NotImplementedError):
        return None
    if element.VR != "UN" or not isinstance(element.value, bytes):
        return element
    if entry.vr == "SQ":
        return None  # an unread sequence is not looked into
    raw = RawDataElement(Tag(tag), entry.vr, len(element.value), element.value, 0, True, little)
    return convert_raw_data_element(raw, encoding=ds.original_character_set, ds=ds)


def _treated(
    element: DataElement, values: list[str], names: frozenset[str], treat: Mapping[str, Treat]
) -> list[str] | None:
    """The values as they may stay; None where one of them may not."""
    vr = element.VR
    if vr in _NUMBERS:
        return values
    if vr in ("DS", "IS"):
        return values if all(_DECIMAL.fullmatch(one.strip()) for one in values) else None
    if vr == "CS":
        return values if all(clean_code(one, names) for one in values) else None
    if vr in _TEXTS:
        cleaned = [clean(one, names) for one in values]
        return cleaned if all(cleaned) else None
    if vr not in treat:
        return None
    new = treat[vr](element)
    changed = [str(one) for one in new] if isinstance(new, (MultiValue, list, tuple)) else [str(new)]
    return changed if all(changed) else None
