"""The audit of private attributes that the Retain Safe Private Option leaves; it shares no code with what keeps them.

It reads the written object alone: each private element has to be one of the safe ones by group, creator and place in
the block, with the VR and number of values listed, and hold nothing but numbers, cleaned words or codes; a creator has
to be one of the list and own an element. Dates, times and UIDs are judged with all others (audit.py). Source: PS3.15
E.3.10, PS3.5 7.8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomnode.deid import leaks
from dicomnode.deid.safe_private import Key, SafeElement

_KEPT_VRS = frozenset(
    {"CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL"}
    | {"US", "UT", "UV"}
)
_CLEANED = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
_CREATOR = "a private creator is not one of the safe ones, or owns nothing"
_NOT_SAFE = "a private attribute is not one of the safe ones"


def violations(
    ds: Dataset,
    safe: Mapping[Key, SafeElement],
    is_clean: Callable[[str], bool],
    is_code: Callable[[str], bool],
    prefix: leaks.Path = (),
) -> Iterator[tuple[leaks.Path, str]]:
    """Path and broken rule of each private element that may not be there, or not so, at every depth."""
    for element in ds:
        path = (*prefix, int(element.tag))
        if element.tag.group % 2:
            rule = _rule(ds, element, safe, is_clean, is_code)
            if rule:
                yield path, rule
        if element.VR == "SQ":
            for number, item in enumerate(element.value or ()):
                yield from violations(item, safe, is_clean, is_code, (*path, number))


def _rule(
    ds: Dataset,
    element: DataElement,
    safe: Mapping[Key, SafeElement],
    is_clean: Callable[[str], bool],
    is_code: Callable[[str], bool],
) -> str:
    group, number = element.tag.group, element.tag.element
    if number <= 0xFF:
        creators = {creator for listed, creator, _ in safe if listed == group}
        owns = any(tag.group == group and tag.element >> 8 == number for tag in ds.keys())  # noqa: SIM118 (raw)
        good = number >= 0x10 and element.VR == "LO" and element.value in creators and owns
        return "" if good else _CREATOR
    owner = ds.get((group, number >> 8))
    entry = safe.get((group, str(owner.value), number & 0xFF)) if owner is not None else None
    if entry is None:
        return _NOT_SAFE
    if entry.vr != element.VR or element.VR not in _KEPT_VRS:
        return "a private attribute has another VR than the safe one"
    held = [str(one) for one in leaks.values(element)] if element.VR != "SQ" else []
    least, _, most = entry.vm.partition("-")
    if held and (len(held) < int(least) or (most != "n" and len(held) > int(most or least))):
        return "a private attribute has more or fewer values than the safe one"
    if element.VR in ("DS", "IS") and not all(re.fullmatch(r"[0-9eE.+-]+", one.strip()) for one in held):
        return "a private number is something else"
    if element.VR == "CS" and not all(is_code(one) for one in held):
        return "a private code has words outside the vocabulary"
    if element.VR in _CLEANED and not all(is_clean(one) for one in held):
        return "a private text has words outside the vocabulary"
    return ""
