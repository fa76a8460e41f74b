"""Counts what de-identification did to an object: for each attribute how often it was removed, emptied, replaced ...

The written file is compared with the original one, so that a report tells what happened and not what was meant to.
It never keeps, shows or returns a value: only keywords of the Standard and numbers. Private attributes, curves and
overlays, and what no dictionary knows, are counted under one word each, as their own names may identify. The words
follow the actions of PS3.15 E.1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomnode.deid import table
from dicomnode.deid.quiet import silenced
from dicomnode.deid.recipe import Action, Recipe

REMOVED, EMPTIED, REPLACED, SHIFTED, CLEANED, ADDED = "removed", "emptied", "replaced", "shifted", "cleaned", "added"
KEPT = "kept"  # only of attributes that Table E.1-1 lists: those are what an option lets stay
WORDS = (REMOVED, EMPTIED, REPLACED, SHIFTED, CLEANED, KEPT, ADDED)
PRIVATE, CURVE_OR_OVERLAY, UNKNOWN = "(private)", "(curve or overlay)", "(unknown)"
_BY_ACTION = {Action.SHIFT: SHIFTED, Action.CLEAN: CLEANED}


def changes_of(original: Path, written: Path, recipe: Recipe) -> dict[str, dict[str, int]]:
    """Keyword -> word of ``WORDS`` -> number of elements, at every depth.

    What stayed as it was is counted (``kept``) where the table lists it and it has a value.


    What a removed or emptied sequence held went with it and is not counted again. Pixel data are not looked at.

    Raises
    ------
    Exception
        Whatever pydicom raises on a file that cannot be read; its text may quote a value.
    """
    found: Counter[tuple[str, str]] = Counter()
    with silenced():
        before, after = (dcmread(path, stop_before_pixels=True) for path in (original, written))
        pending: list[tuple[Dataset, Dataset]] = [(before, after)]
        sop_class = str(before.get("SOPClassUID") or "")
        while pending:
            old, new = pending.pop()
            for element in old:
                tag = int(element.tag)
                word = _word(element, new.get(tag), recipe, sop_class)
                if word:
                    found[name_of(tag), word] += 1
                elif element.VR == "SQ":
                    pending.extend(zip(element.value or (), new[tag].value or (), strict=True))
                elif tag in table.by_tag() and not element.is_empty:
                    found[name_of(tag), KEPT] += 1
            for key in new.keys():  # noqa: SIM118 (raw)
                if key not in old:
                    found[name_of(int(key)), ADDED] += 1
    changes: dict[str, dict[str, int]] = {}
    for (keyword, word), number in sorted(found.items()):
        changes.setdefault(keyword, {})[word] = number
    return changes


def name_of(tag: int) -> str:
    """The keyword of the dictionary or the table, else one word for the kind of attribute."""
    if tag >> 16 & 1:
        return PRIVATE
    if table.is_curve_or_overlay(tag):
        return CURVE_OR_OVERLAY
    row = table.by_tag().get(tag)
    return keyword_for_tag(tag) or (row.keyword if row else "") or UNKNOWN


def _word(old: DataElement, new: DataElement | None, recipe: Recipe, sop_class: str) -> str:
    """What became of an element; an empty string where it is what it was."""
    if new is None:
        return REMOVED
    if new.VR == "SQ":
        before, after = len(old.value or ()), len(new.value or ())
        return "" if before == after else REPLACED if after else EMPTIED
    if _same(old.value, new.value):
        return ""
    if new.is_empty:
        return EMPTIED
    return _BY_ACTION.get(recipe.action(int(old.tag), sop_class), REPLACED)


def _same(old: object, new: object) -> bool:
    """Equal, or not numbers alike (NaN), or both nothing."""
    return old == new or (not old and not new and not isinstance(old, (int, float))) or repr(old) == repr(new)
