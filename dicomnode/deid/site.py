"""A site's own rules on top of the compiled recipe: ``[deid] site_recipe``, a TOML file.

A rule that strengthens (remove, blank, clean) needs no word. A rule that weakens (keep, or clean where the profile
removes) must name its ``exception``, which explaining, reports and the recipe's hash carry. The file is refused whole
where ``deid`` or this node would ignore a part of it in silence. It never weakens names of persons, UIDs, the pseudonym
or what describes the pixels. Source: PS3.15 E.1 (a profile may be made stricter), E.3.10 (private attributes).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword

from dicomnode.deid import safe_private, table
from dicomnode.deid.safe_private import SafeElement
from dicomnode.errors import SettingsError

TEXT_VRS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
# Frame of the object and this node's own statements: what the repository and the audit stand on.
_PROTECTED_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SpecificCharacterSet",
    "PatientID", "PatientName", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
_PROTECTED = frozenset(tag_for_keyword(keyword) for keyword in _PROTECTED_KEYWORDS)
_PROTECTED_GROUPS = frozenset({0x0028, 0x7FE0})  # image description and pixels
_NEVER_KEPT = frozenset({"AE", "PN", "SQ", "UI", "UN", "OB", "OW", "OF", "OD", "OL", "OV"})
_PRIVATE_KEPT = frozenset(
    {"CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "SH", "SL", "SS", "TM", "UI", "UL", "US"}
)  # as private.py can judge them
_FIELDS = frozenset({"attribute", "creator", "action", "exception", "vr", "vm"})
_TAG = re.compile(r"\(([0-9A-Fa-f]{4}),([0-9A-Fa-f]{4})\)")
_PRIVATE_TAG = re.compile(r"\(([0-9A-Fa-f]{4}),xx([0-9A-Fa-f]{2})\)")
_LONGEST_REASON = 200  # characters; it stands in every report


class SiteAction(StrEnum):
    """What a site's rule may ask for."""

    REMOVE = "remove"
    BLANK = "blank"
    CLEAN = "clean"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class SiteRule:
    """One rule: for a public attribute ``tag``, for a private one ``private`` (and ``tag`` 0)."""

    number: int
    attribute: str
    action: SiteAction
    exception: str
    tag: int = 0
    private: SafeElement | None = None

    @property
    def why(self) -> str:
        """For explaining and reports: which rule decided, and the reason of an exception."""
        reason = f", exception: {self.exception}" if self.exception else ""
        return f"site rule {self.number}: {self.action.value} {self.attribute}{reason}"


@dataclass(frozen=True, slots=True)
class SiteRecipe:
    """The rules of a site, in the order of the file."""

    rules: tuple[SiteRule, ...] = ()

    @property
    def exceptions(self) -> tuple[str, ...]:
        """One line for each rule that weakens."""
        return tuple(rule.why for rule in self.rules if rule.exception)

    def by_tag(self) -> dict[int, SiteRule]:
        return {rule.tag: rule for rule in self.rules if rule.private is None}

    def safe_private(self, listed: Mapping[safe_private.Key, SafeElement]) -> dict[safe_private.Key, SafeElement]:
        """The safe private attributes with the site's own added and those that it removes left out."""
        safe = dict(listed)
        for rule in self.rules:
            if rule.private is not None and rule.action is SiteAction.KEEP:
                safe[rule.private.key] = rule.private
            elif rule.private is not None:
                safe.pop(rule.private.key, None)
        return safe


def load(path: Path, *, keeps_private: bool) -> SiteRecipe:
    """Read and check a site's file; ``keeps_private`` says whether ``retain-safe-private`` is on.

    Raises
    ------
    SettingsError
        The file cannot be read, or the first rule that would not do what it says: its number and why.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        line = f"the site's recipe cannot be read ({type(error).__name__})"
        raise SettingsError(line, place=str(path), advice="correct [deid] site_recipe or the file") from None
    if set(data) - {"rule"} or not isinstance(data.get("rule", []), list):
        raise _refused(str(path), "only [[rule]] tables are known")
    rules = tuple(_rule(path, number, cells, keeps_private) for number, cells in enumerate(data.get("rule", []), 1))
    seen: set[object] = set()
    for rule in rules:
        key = rule.private.key if rule.private else rule.tag
        if key in seen:
            raise _refused(_place(path, rule.number, rule.attribute), "an earlier rule is for the same attribute")
        seen.add(key)
    return SiteRecipe(rules)


def _place(path: Path, number: int, attribute: object) -> str:
    return f"{path}, rule {number}" + (f" ({attribute})" if attribute and isinstance(attribute, str) else "")


def _refused(place: str, line: str) -> SettingsError:
    return SettingsError(line, place=place, advice="see config/deid/example-site.toml")


def _rule(path: Path, number: int, cells: Any, keeps_private: bool) -> SiteRule:
    place = _place(path, number, cells.get("attribute") if isinstance(cells, dict) else None)
    if not isinstance(cells, dict) or not all(isinstance(value, str) for value in cells.values()):
        raise _refused(place, "each field is a text in quotes")
    if unknown := sorted(set(cells) - _FIELDS):
        raise _refused(place, f"unknown field '{unknown[0]}'")
    try:
        action = SiteAction(cells.get("action", ""))
    except ValueError:
        known = " ".join(one.value for one in SiteAction)
        raise _refused(place, f"the action is none of: {known}") from None
    exception = " ".join(cells.get("exception", "").split())
    if len(exception) > _LONGEST_REASON:
        raise _refused(place, f"the exception is longer than {_LONGEST_REASON} characters")
    attribute = cells.get("attribute", "")
    if match := _PRIVATE_TAG.fullmatch(attribute):
        return _private(place, number, cells, action, exception, match, keeps_private)
    if {"creator", "vr", "vm"} & set(cells):
        raise _refused(place, "creator, vr and vm are for private attributes, written (gggg,xxee)")
    return SiteRule(number, attribute, action, exception, _public(place, attribute, action))


def _public(place: str, attribute: str, action: SiteAction) -> int:
    """The tag of a public attribute that a rule may name."""
    match = _TAG.fullmatch(attribute)
    tag = int(match[1] + match[2], 16) if match else tag_for_keyword(attribute)
    if tag is not None and tag >> 16 & 1:
        raise _refused(place, "a private attribute is written (gggg,xxee), with its creator")
    if tag is None or not (dictionary_has_tag(tag) or tag in table.by_tag()):
        like = difflib.get_close_matches(attribute, [entry[4] for entry in DicomDictionary.values()], 1)
        meant = f": did you mean {like[0]}?" if like else ""
        raise _refused(place, f"the attribute is no keyword or tag of the dictionary{meant}")
    if tag in _PROTECTED or tag >> 16 in _PROTECTED_GROUPS or tag >> 16 <= 0x0006:
        raise _refused(place, "the repository stands on this attribute: no rule may change it")
    if table.is_curve_or_overlay(tag):
        raise _refused(place, "curves and overlays are always removed")
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
    if action is SiteAction.KEEP and (vr in _NEVER_KEPT or not vr):
        raise _refused(place, "names of persons, UIDs, sequences and bytes are never kept")
    if action is SiteAction.CLEAN and vr not in TEXT_VRS:
        raise _refused(place, "only texts can be cleaned")
    return tag


def _private(
    place: str,
    number: int,
    cells: dict[str, str],
    action: SiteAction,
    exception: str,
    match: re.Match[str],
    keeps_private: bool,
) -> SiteRule:
    group, element, creator = int(match[1], 16), int(match[2], 16), cells.get("creator", "").strip()
    if not group & 1:
        raise _refused(place, "a private attribute has an odd group")
    if not creator:
        raise _refused(place, "a private attribute needs its creator")
    if action not in (SiteAction.KEEP, SiteAction.REMOVE):
        raise _refused(place, "private attributes can be kept or removed")
    listed = safe_private.elements().get((group, creator, element))
    if action is SiteAction.REMOVE:
        if listed is None:
            raise _refused(place, "it is removed without a rule: Table E.3.10-1 does not list it")
        return SiteRule(number, cells["attribute"], action, exception, private=listed)
    if not keeps_private:
        raise _refused(place, "private attributes are kept with the option retain-safe-private only")
    if not exception:
        raise _refused(place, "what keeps needs an exception with its reason")
    if cells.get("vr") not in _PRIVATE_KEPT:
        raise _refused(place, f"vr is none of: {' '.join(sorted(_PRIVATE_KEPT))}")
    vm = cells.get("vm", "1")
    if not re.fullmatch(r"\d+(-(\d+|n))?", vm):
        raise _refused(place, "vm is a number, or two: 1, 3-4, 1-n")
    kept = SafeElement(group, element, creator, cells["vr"], vm, cells["attribute"])
    return SiteRule(number, cells["attribute"], action, exception, private=kept)
