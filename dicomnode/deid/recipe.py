"""Compiles Table E.1-1, the profile and its options into a recipe for the ``deid`` package.

The recipe is checked before it is used, because ``deid`` skips what it does not understand and lets the value
through. Which of X, Z and D applies follows the attribute's type in the object's IOD, so that the result stays
valid. It never reads an image. Sources: PS3.15 Annex E (profile, options), PS3.16 CID 7050 (codes), PS3.3 (types).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag

from dicomnode.deid import iod, safe_private, table
from dicomnode.deid.options import PROFILE, Option, parse
from dicomnode.deid.site import SiteAction, SiteRecipe, SiteRule, load
from dicomnode.deid.table import Row
from dicomnode.deid.text import terms
from dicomnode.errors import DeidError, SettingsError

TEXT_VRS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
TIMEZONE_OFFSET = 0x00080201
_PATIENT_ID = 0x00100020
_PATIENT_NAME = 0x00100010
# Its text is prose about an earlier de-identification; ours replaces it.
_EARLIER_METHODS = (0x00120063, 0x00120064)
_COMMAND_META_DIRECTORY = (0x0000, 0x0002, 0x0004)  # groups that are not part of an image's data set


class Action(StrEnum):
    """What happens to an element; the names of functions are those the engine defines for ``deid``."""

    KEEP = "keep"
    REMOVE = "remove"
    BLANK = "blank"
    DUMMY = "dummy"
    UID = "uid"
    PID = "pid"
    SHIFT = "shift"
    CLEAN = "clean"
    AGE = "age"
    TIMEZONE = "timezone"
    TERM = "term"


# Lists that decide what a text keeps, and the types that decide what an attribute becomes.
WORD_FILES = (
    "iod-types.json", "vocabulary.txt", "everyday-en.txt", "everyday-es.txt", "word-parts.txt", "word-endings.txt",
    "surnames.txt", "lower-case-words.txt", "units.txt", "counted-words.txt", "terms.txt", "name-cues.txt",
)  # fmt: skip
# Functions that the engine defines for REPLACE and ADD rules.
FUNCTIONS = frozenset(
    {"blank", "dummy", "uid", "pid", "shift", "clean", "age", "timezone", "term", "methods", "identity"}
)
_RULE_FIELD = re.compile(r"\([0-9A-F]{4},[0-9A-F]{4}\)|[A-Z][A-Za-z]+")
_DEID_ACTIONS = frozenset({"REMOVE", "REPLACE", "ADD"})  # the only ones used here, each tested against deid


def field_name(tag: int) -> str:
    """A tag as ``deid`` writes it: ``(0010,0020)``."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


@dataclass(frozen=True, slots=True)
class Rule:
    """Actions for one attribute by its type in the IOD: Type 1, Type 2, and Type 3 or not in the IOD."""

    type1: Action
    type2: Action
    type3: Action

    @classmethod
    def always(cls, action: Action) -> Rule:
        return cls(action, action, action)

    def action(self, kind: str) -> Action:
        return {"1": self.type1, "2": self.type2}.get(kind, self.type3)


def _basic(row: Row) -> Rule:
    """The cell of the Basic Profile, PS3.15 E.1: X remove, Z empty or dummy, D dummy, U new UID, U* nested UIDs."""
    cell = set(row.basic.split("/"))
    if "U" in cell:
        return Rule.always(Action.UID)
    if "U*" in cell:
        return Rule.always(Action.KEEP)  # the sequence stays, each UID in it has its own rule
    if cell == {"X"}:
        return Rule.always(Action.REMOVE)
    if row.vr == "SQ":  # a made-up item would be worse than none
        return Rule(Action.BLANK, Action.BLANK, Action.REMOVE)
    dummy, blank = Action.DUMMY, Action.BLANK
    return Rule(
        type1=dummy,
        type2=blank if "Z" in cell else dummy,
        type3=Action.REMOVE if "X" in cell else blank if "Z" in cell else dummy,
    )


def _with_options(row: Row, options: frozenset[Option]) -> Rule:
    """The basic action, unless an option that is on has an entry. Where two have, the one that reveals less wins."""
    basic = _basic(row)
    cells = {option: cell for option, cell in row.columns.items() if option in options}
    if Option.MODIFIED_DATES in cells:
        if row.tag == TIMEZONE_OFFSET:
            return Rule.always(Action.TIMEZONE)
        by_vr = {"DA": Action.SHIFT, "DT": Action.SHIFT, "TM": Action.KEEP}
        return Rule.always(by_vr[row.vr]) if row.vr in by_vr else basic
    if "C" in cells.values():
        return Rule.always(Action.CLEAN) if row.vr in TEXT_VRS else basic
    if "K" in cells.values() and row.vr:
        special = Action.AGE if row.vr == "AS" else Action.TERM if row.keyword in terms() else Action.KEEP
        return Rule.always(special)
    return basic


def _beyond_table(options: frozenset[Option]) -> dict[int, Rule]:
    """Rules for attributes of pydicom's dictionary that the table does not list but whose VR can identify.

    UIDs of instances and frames of reference, dates, times and persons that the table's edition missed or left to
    other sections are treated like those that it lists.
    """
    removed = Rule.always(Action.REMOVE)
    dates = Rule.always(Action.SHIFT) if Option.MODIFIED_DATES in options else removed
    kept = Rule.always(Action.KEEP)
    by_vr = {"UI": Rule.always(Action.UID), "DA": dates, "DT": dates, "PN": removed, "AE": removed, "TM": removed}
    if Option.MODIFIED_DATES in options:
        by_vr["TM"] = kept
    if Option.FULL_DATES in options:
        by_vr |= {"DA": kept, "DT": kept, "TM": kept}
    if Option.UIDS in options:
        by_vr["UI"] = kept
    listed = table.by_tag()
    return {
        tag: by_vr[entry[0]]
        for tag, entry in DicomDictionary.items()
        if entry[0] in by_vr and tag not in listed and tag >> 16 not in _COMMAND_META_DIRECTORY
    }


@dataclass(frozen=True)
class Recipe:
    """The compiled rules, and what is told about them in each object.

    ``sha256`` names the recipe in records: it covers the rules, the options, the types and the word lists.
    """

    options: frozenset[Option]
    rules: Mapping[int, Rule]
    additions: tuple[str, ...]
    safe_private: Mapping[safe_private.Key, safe_private.SafeElement] = field(default_factory=dict)
    site: SiteRecipe = field(default_factory=SiteRecipe)
    sha256: str = field(default="")

    @property
    def temporal(self) -> str:
        """Value of (0028,0303) Longitudinal Temporal Information Modified, PS3.15 E.3.6."""
        if Option.FULL_DATES in self.options:
            return "UNMODIFIED"
        return "MODIFIED" if Option.MODIFIED_DATES in self.options else "REMOVED"

    @property
    def exceptions(self) -> tuple[str, ...]:
        """Where the site lets through more than the profile and its options: one line each, with its reason."""
        return self.site.exceptions

    def site_rule(self, tag: int) -> str:
        """The site's rule that decided about a public attribute, in words; empty where there is none."""
        rule = self.site.by_tag().get(tag)
        return rule.why if rule else ""

    def action(self, tag: int, sop_class: str) -> Action:
        """What happens to ``tag`` in an object of ``sop_class``."""
        rule = self.rules.get(tag)
        return rule.action(iod.attribute_type(sop_class, tag)) if rule else Action.KEEP

    def header(self, tags: Iterable[int], sop_class: str) -> list[dict[str, str]]:
        """The ``%header`` section of a deid recipe: one rule for each tag given, then what is added."""
        out = []
        for tag in sorted(tags):
            action = self.action(tag, sop_class)
            if action is Action.REMOVE:
                out.append({"action": "REMOVE", "field": field_name(tag)})
            elif action is not Action.KEEP:
                out.append({"action": "REPLACE", "field": field_name(tag), "value": f"func:{action.value}"})
        out += [{"action": "ADD", "field": keyword, "value": _ADDED[keyword]} for keyword in self.additions]
        return out

    def without(self, name: int | str) -> Recipe:
        """This recipe less one rule (tag) or addition (keyword): how tests prove the audit independent."""
        if isinstance(name, int):
            return replace(self, rules={tag: rule for tag, rule in self.rules.items() if tag != name})
        return replace(self, additions=tuple(keyword for keyword in self.additions if keyword != name))


_ADDED = {
    "PatientName": "func:identity",
    "PatientID": "func:identity",
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "func:methods",
    "DeidentificationMethodCodeSequence": "func:methods",
    "LongitudinalTemporalInformationModified": "func:methods",
}


# What reveals less has the higher number.
_STRENGTH = {
    Action.KEEP: 0, Action.TERM: 1, Action.AGE: 1, Action.TIMEZONE: 1, Action.SHIFT: 1, Action.CLEAN: 2,
    Action.DUMMY: 3, Action.UID: 3, Action.PID: 3, Action.BLANK: 4, Action.REMOVE: 5,
}  # fmt: skip
_SITE_RULES = {
    SiteAction.REMOVE: Rule.always(Action.REMOVE),
    SiteAction.BLANK: Rule(Action.DUMMY, Action.BLANK, Action.BLANK),
    SiteAction.CLEAN: Rule.always(Action.CLEAN),
    SiteAction.KEEP: Rule.always(Action.KEEP),
}


def _with_site(now: Rule, site: SiteRule) -> Rule:
    """The rule of an attribute with a site's own: the stronger of both, or the site's where it names its exception."""
    place, wanted = f"[deid] site_recipe, rule {site.number} ({site.attribute})", _SITE_RULES[site.action]
    pairs = [(now.type1, wanted.type1), (now.type2, wanted.type2), (now.type3, wanted.type3)]
    stronger = Rule(*(max(pair, key=_STRENGTH.__getitem__) for pair in pairs))
    weakens = any(_STRENGTH[old] > _STRENGTH[new] for old, new in pairs) and site.action in ("keep", "clean")
    if weakens and not site.exception:
        line = f"'{site.action}' lets through more than the profile does: it needs an exception with its reason"
        raise SettingsError(line, place=place, advice="name the exception or remove the rule")
    if site.exception and not weakens:
        raise SettingsError("an exception where nothing is weakened", place=place, advice="remove the exception")
    if not weakens and stronger == now:
        line = f"the profile and its options do what '{site.action}' asks, or more, without it"
        raise SettingsError(line, place=place, advice="remove the rule")
    return wanted if weakens else stronger


def compile_recipe(
    profile: str = PROFILE, options: Iterable[str] = (), site: SiteRecipe | Path | None = None
) -> Recipe:
    """The recipe for a profile and its options, with a site's own rules (or their file) on top, checked.

    Raises
    ------
    SettingsError
        As ``options.parse``; or a rule of the site weakens without an exception, or changes nothing.
    DeidError
        The compiled recipe does not pass ``preflight``.
    """
    chosen = parse(profile, options)
    rules = _beyond_table(chosen)
    rules |= {
        row.tag: _with_options(row, chosen) for row in table.rows() if row.tag >> 16 not in _COMMAND_META_DIRECTORY
    }
    rules[_PATIENT_ID] = rules[_PATIENT_NAME] = Rule.always(Action.PID)
    rules |= dict.fromkeys(_EARLIER_METHODS, Rule.always(Action.REMOVE))
    own = load(site, keeps_private=Option.SAFE_PRIVATE in chosen) if isinstance(site, Path) else site or SiteRecipe()
    for tag, rule in own.by_tag().items():
        rules[tag] = _with_site(rules.get(tag, Rule.always(Action.KEEP)), rule)
    safe = own.safe_private(safe_private.elements()) if Option.SAFE_PRIVATE in chosen else {}
    recipe = Recipe(chosen, rules, tuple(_ADDED), safe, own)
    preflight(recipe)
    return replace(recipe, sha256=_digest(recipe))


def _digest(recipe: Recipe) -> str:
    rules = {f"{tag:08X}": [rule.type1, rule.type2, rule.type3] for tag, rule in recipe.rules.items()}
    words = {name: table.data_file(name).read_text("utf-8") for name in WORD_FILES}
    private = sorted([*one.key, one.vr, one.vm] for one in recipe.safe_private.values())
    text = json.dumps(
        [sorted(recipe.options), rules, recipe.additions, private, recipe.exceptions, words], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def preflight(recipe: Recipe) -> None:
    """Refuse a recipe that ``deid`` would apply only in part.

    deid 0.4 prints a warning and goes on at an unknown or lower-case action, a misspelt field, and a function or
    variable that is not defined; it also treats ``values:`` and ``fields:`` specially.

    Raises
    ------
    DeidError
        Names the first rule that would not do what it says, or the attribute of the table without a rule.
    """
    for row in table.rows():
        if row.tag >> 16 not in _COMMAND_META_DIRECTORY and row.tag not in recipe.rules:
            raise DeidError("an attribute of Table E.1-1 has no rule", place=field_name(row.tag))
    for sop_class in ("", *iod.image_sop_classes()):
        lint_header(recipe.header(recipe.rules, sop_class))


def lint_header(header: list[dict[str, str]]) -> None:
    """Check each rule of a deid ``%header`` section; see ``preflight``."""
    seen = set()
    for rule in header:
        place = rule["field"]
        value = rule.get("value", "")
        if rule["action"] not in _DEID_ACTIONS:
            raise DeidError("the rule's action is not one that deid applies", place=place)
        if not _RULE_FIELD.fullmatch(place) or (place[0] != "(" and place not in _ADDED):
            raise DeidError("the rule's field is neither a tag nor a keyword that is added", place=place)
        if place[0] == "(" and not keyword_for_tag(int(place[1:5] + place[6:10], 16)) and rule["action"] != "REMOVE":
            raise DeidError("an attribute that the dictionary does not know can only be removed", place=place)
        if (rule["action"] == "REMOVE") == bool(value):
            raise DeidError("the rule has a value too many or too few", place=place)
        if value.startswith("func:") and value.removeprefix("func:") not in FUNCTIONS:
            raise DeidError("the rule's function is not defined", place=place)
        if ":" in value and not value.startswith("func:"):
            raise DeidError("the rule's value would be looked up, not written", place=place)
        if place in seen:
            raise DeidError("two rules for one field", place=place)
        seen.add(place)
