"""``deid --explain``: what happens to each attribute of one file, at every depth, and to its pixels, and by which rule.

It never shows a value, nor a name that comes from the file (private creators). Sources: PS3.15 Table E.1-1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from dicomnode.deid import device_rules, faces, gate, iod, pixel_policy, table
from dicomnode.deid.engine import is_private, is_unknown
from dicomnode.deid.options import Option
from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.deid.private import listed
from dicomnode.deid.quiet import silenced
from dicomnode.deid.recipe import Action, Recipe, field_name
from dicomnode.deid.source import Source, open_source
from dicomnode.errors import InputError, QuarantineError
from dicomnode.models.headers import READ_ERRORS

WORDS = {
    Action.KEEP: "keep",
    Action.REMOVE: "remove",
    Action.BLANK: "blank (emptied)",
    Action.DUMMY: "dummy (replaced by a fixed value)",
    Action.UID: "uid (replaced by a keyed UID; UIDs of the Standard stay)",
    Action.PID: "pid (replaced by the pseudonym)",
    Action.SHIFT: "shift (date moved by the patient's days)",
    Action.CLEAN: "clean (only words of the vocabulary stay)",
    Action.AGE: "age (over 89 becomes 90)",
    Action.TIMEZONE: "timezone (kept if it is an offset from UTC)",
    Action.TERM: "term (only a known term stays)",
}
_OWN_RULES = {
    0x00100010: "rule of this node: the pseudonym stands for name and id",
    0x00100020: "rule of this node: the pseudonym stands for name and id",
    0x00120063: "rule of this node: its own statement replaces an earlier one",
    0x00120064: "rule of this node: its own statement replaces an earlier one",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """One attribute: ``depth`` 0 is the object itself; ``rule`` names a row of Table E.1-1 or a rule of this node."""

    depth: int
    tag: str
    keyword: str
    name: str
    vr: str
    action: str
    rule: str

    @property
    def line(self) -> str:
        """For people; indented by depth."""
        return f"{'  ' * self.depth}{self.tag} {self.name}: {WORDS[Action(self.action)]} [{self.rule}]"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain_file(recipe: Recipe, path: Path) -> Iterator[Explained]:
    """Each attribute of a file in its order; what a removed sequence holds goes with it and is not listed.

    Raises
    ------
    InputError
        If the file is not DICOM, or damaged.
    """
    try:
        with silenced():
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            if not ds:
                raise InputError("the file holds no attribute that can be read", place=str(path))
            yield from _explain(recipe, ds, str(ds.get("SOPClassUID") or ""), 0)
    except (InvalidDicomError, RecursionError, *READ_ERRORS) as exc:
        raise InputError(f"not DICOM, or damaged ({type(exc).__name__})", place=str(path)) from None


def explain_pixels(path: Path, policy: PixelPolicy) -> str:
    """What happens to the pixels of a file, judged by its header alone, in one line.

    Where the whole object is held whatever its attributes become, that is the line.

    Raises
    ------
    InputError
        If the file is not DICOM, or damaged.
    """
    try:
        with silenced():
            source = open_source(path)
            with source.stream:
                if refused := _refused(source, policy):
                    return refused
                return f"Pixel Data: {_of_pixels(source.ds, policy)}"
    except QuarantineError as exc:
        raise InputError(exc.line, place=str(path)) from None


def _refused(source: Source, policy: PixelPolicy) -> str:
    try:
        gate.check(source)
        if policy.faces == "quarantine":
            faces.refuse(faces.judge(source))
    except QuarantineError as refused:
        return f"The object is held, nothing of it is written [{refused.reason}: {refused.line}]"
    return ""


def _of_pixels(ds: pydicom.Dataset, policy: PixelPolicy) -> str:
    try:
        looked_at = pixel_policy.must_look(ds, policy)
    except QuarantineError as refused:
        return f"the object is held [{refused.reason}: {refused.line}]"
    setting = f'[deid] pixels = "{policy.mode}", {pixel_policy.text_of(ds, "Modality") or "no modality"}'
    if not looked_at:
        rule = "slices as acquired" if pixel_policy.is_acquired(ds) else "the object says that nothing is burned in"
        return f"copied as they are, nobody looks for text [{setting}: {rule}]"
    try:
        places = len(device_rules.rectangles_for(ds, int(ds.Rows), int(ds.Columns)))
    except (AttributeError, TypeError, ValueError):
        places = 0
    by_rule = f"{places} places are blanked by what is known of the device or its regions; " if places else ""
    return f"{by_rule}examined, text that is found is blanked, and the object held where some stays [{setting}]"


def _explain(recipe: Recipe, ds: pydicom.Dataset, sop_class: str, depth: int) -> Iterator[Explained]:
    for element in ds:
        tag = int(element.tag)
        action, rule = rule_of(recipe, tag, sop_class)
        if safe := listed(ds, tag, recipe.safe_private):
            action, rule = Action.KEEP, f"Table E.3.10-1 or the site's recipe, {safe.name}: if its value passes"
        name = "Private Attribute" if is_private(tag) else element.name
        keyword = "" if is_private(tag) else element.keyword
        yield Explained(depth, field_name(tag), keyword, name, element.VR, action.value, rule)
        if element.VR == "SQ" and action is not Action.REMOVE:
            for item in element.value or ():
                yield from _explain(recipe, item, sop_class, depth + 1)


def rule_of(recipe: Recipe, tag: int, sop_class: str) -> tuple[Action, str]:
    """What happens to an attribute in an object of ``sop_class``, and why."""
    if is_private(tag):
        return Action.REMOVE, "Table E.1-1, private attributes: X"
    if table.is_curve_or_overlay(tag):
        return Action.REMOVE, "Table E.1-1, curves (50xx) and overlays (60xx): X; groups go whole"
    if is_unknown(tag):
        return Action.REMOVE, "rule of this node: neither the dictionary nor Table E.1-1 knows it"
    action = recipe.action(tag, sop_class)
    if why := recipe.site_rule(tag):
        return action, why
    row = table.by_tag().get(tag)
    if tag in _OWN_RULES:
        return action, _OWN_RULES[tag]
    if row is None:
        if tag in recipe.rules:
            return action, "not in Table E.1-1; UIDs, dates, times and persons are treated like those in it"
        return action, "not in Table E.1-1"
    cells = [f"{option.value}: {cell}" for option, cell in row.columns.items() if option in recipe.options]
    said = ", ".join([f"basic: {row.basic}", *cells])
    kind = iod.attribute_type(sop_class, tag)
    note = f"; Type {kind} in this IOD" if "/" in row.basic and not cells else ""
    return action, f"Table E.1-1, {row.keyword or field_name(tag)}: {said}{note}"


def departures(recipe: Recipe, basic: Recipe) -> dict[str, list[str]]:
    """Where a recipe does otherwise than the Basic Profile alone: why -> keywords, for those who answer for it.

    ``why`` is the option whose column of the table says so, or ``rule of this node``.
    """
    found: dict[str, list[str]] = {}
    for tag, rule in sorted(recipe.rules.items()):
        if rule == basic.rules.get(tag) or recipe.site_rule(tag):
            continue
        row = table.by_tag().get(tag)
        options = [option for option in (row.columns if row else ()) if option in recipe.options]
        if row is None and {Option.MODIFIED_DATES, Option.FULL_DATES, Option.UIDS} & recipe.options:
            why = "beyond the table, as those in it"
        else:
            why = " and ".join(option.value for option in options) or "rule of this node"
        found.setdefault(why, []).append(_keyword(tag))
    return found


def _keyword(tag: int) -> str:
    row = table.by_tag().get(tag)
    return pydicom.datadict.keyword_for_tag(tag) or (row.keyword if row else "") or field_name(tag)
