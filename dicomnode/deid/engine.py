"""De-identifies one received image: gate, pixels, recipe applied by ``deid``, file written at once.

The header goes through ``deid`` with the rules of recipe.py; what its rules cannot say (private and unknown
elements, whole groups, file meta, preamble) is done here before. The pixel bytes are copied, unless pixel_mask.py
gives others. Whatever goes wrong, nothing is left at the destination. Sources: PS3.15 Annex E, PS3.10 7.1.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from deid.config import DeidRecipe
from deid.dicom.fields import DicomField, FieldsWithLookups
from deid.dicom.parser import DicomParser
from deid.logger import bot
from deid.utils import parse_value
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from dicomnode.deid import faces, gate, table
from dicomnode.deid.audit import Auditor
from dicomnode.deid.by_hand import NOTHING, ByHand
from dicomnode.deid.faces import Face
from dicomnode.deid.options import OPTION_CODES, PROFILE_CODE, Option
from dicomnode.deid.pixel_audit import Seen
from dicomnode.deid.pixel_mask import PixelCleaner, PixelOutcome
from dicomnode.deid.pixel_policy import PixelPolicy, text_of
from dicomnode.deid.private import keep_safe
from dicomnode.deid.pseudonym import Subject, pseudo_uid, shift_date, shift_datetime
from dicomnode.deid.quiet import safe_error, silenced
from dicomnode.deid.recipe import Recipe
from dicomnode.deid.result import COPIED, EXAMINED, MASKED, DeidResult
from dicomnode.deid.source import Source, open_source
from dicomnode.deid.text import clean, name_words, term
from dicomnode.deid.writing import file_meta, whole_file, write_object
from dicomnode.domain import OriginalUid, PseudoUid
from dicomnode.errors import DeidError, DicomnodeError

METHOD = "dicomnode: PS3.15 Annex E, recipe "  # and the first 12 digits of the recipe's hash
AGE_LIMIT = 90  # years; older patients are 090Y (45 CFR 164.514(b)(2)(i)(C): ages over 89)
_AGE = re.compile(r"(\d{3})([DWMY])")
_OFFSET = re.compile(r"[+-]\d{4}")
_TRAILING_PADDING = 0xFFFCFFFC
LAST_DIRECTORY_GROUP = 0x0004  # groups up to it are commands, file meta and DICOMDIR records, PS3.6
_BAD_NEWS = re.compile(r"(?:\x1b\[\d*m)*(?:WARNING|ERROR|FLAG|ABORT)\b")  # how deid begins such lines
_BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})

# Dummy values by VR (PS3.15 E.1, action D): of the right form, the same in every object.
DUMMIES: dict[str, Any] = {
    "AE": "ANONYMIZED", "AS": "000Y", "CS": "ANONYMIZED", "DA": "19000101", "DS": "0", "DT": "19000101000000",
    "FD": 0.0, "FL": 0.0, "IS": "0", "LO": "ANONYMIZED", "LT": "ANONYMIZED", "PN": "ANONYMIZED", "SH": "ANONYMIZED",
    "SL": 0, "SS": 0, "ST": "ANONYMIZED", "SV": 0, "TM": "000000", "UC": "ANONYMIZED", "UL": 0, "UR": "about:blank",
    "US": 0, "UT": "ANONYMIZED", "UV": 0,
}  # fmt: skip


class Deidentifier:
    """De-identifies files with one recipe and one key.

    Parameters
    ----------
    recipe : Recipe
        From ``compile_recipe``.
    uid_key : bytes
        The vault's key for pseudonymous UIDs (``Vault.uid_key``).
    fsync : bool
        Whether file and folder are synced before ``deidentify`` returns.
    audited : bool
        Whether the independent audit decides before the file gets its name. Only tests of the audit turn it off.
    unwanted : sequence of functions
        Which tags go before the recipe is applied; tests leave one out to prove the audit.
    pixels : PixelPolicy
        What is done about text in pixels, and about faces.
    """

    def __init__(
        self,
        recipe: Recipe,
        uid_key: bytes,
        *,
        fsync: bool = True,
        audited: bool = True,
        unwanted: Iterable[Callable[[int], bool]] | None = None,
        pixels: PixelPolicy | None = None,
    ) -> None:
        self.recipe = recipe
        self._uid_key = uid_key
        self._fsync = fsync
        self._pixels = PixelCleaner(pixels)
        self._auditor = Auditor(recipe.options, recipe.site) if audited else None
        self._unwanted = tuple(UNWANTED if unwanted is None else unwanted)

    def deidentify(self, src: Path, dst: Path, subject: Subject, by_hand: ByHand = NOTHING) -> DeidResult:
        """Write the de-identified copy of ``src`` to ``dst``, which appears whole and audited, or not at all.

        ``by_hand``: what a person who looked at its picture decided.

        Raises
        ------
        QuarantineError
            The gate, the recipe or the audit refuses the object; ``reason`` says why.
        DeidError
            The file could not be read or written: worth another try.
        """
        started = time.perf_counter()
        try:
            with silenced(), _DeidMessages(), contextlib.ExitStack() as stack:
                source = open_source(src)
                stack.callback(source.stream.close)
                gate.check(source)
                face = Face.NONE if by_hand.no_face else faces.judge(source)
                if self._pixels.policy.faces == "quarantine":
                    faces.refuse(face)
                dst.parent.mkdir(parents=True, exist_ok=True)
                pixels = self._pixels.clean(source, dst.parent, by_hand)
                stack.callback(pixels.close)
                result = self._write(source, pixels, dst, subject, face, by_hand)
                return replace(result, seconds=time.perf_counter() - started)
        except DicomnodeError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 (deid raises and exits with values in its text)
            raise safe_error(error) from None

    def _write(
        self, source: Source, pixels: PixelOutcome, dst: Path, subject: Subject, face: Face, by_hand: ByHand
    ) -> DeidResult:
        ds = source.ds
        features = faces.statement(face, text_of(ds, _FEATURES).upper(), no_face=by_hand.no_face)
        original = [OriginalUid(str(ds[name].value)) for name in _UID_KEYWORDS]
        modality, sop_class = str(ds.get("Modality") or ""), str(ds.SOPClassUID)
        functions = HeaderFunctions(self.recipe, self._uid_key, subject, pixels.clean, names_in(ds))
        expected = None if source.transfer_syntax.is_encapsulated else source.native_length()
        unwanted = self._unwanted
        if Option.SAFE_PRIVATE in self.recipe.options:
            functions.keep_safe_private(ds, little=source.transfer_syntax.is_little_endian)
            unwanted = tuple(judge for judge in unwanted if judge is not is_private)
        remove_unwanted(ds, unwanted)
        apply_recipe(ds, self.recipe, functions, sop_class)
        ds.file_meta = file_meta(ds, source)
        pixels.restate(ds)
        ds.pop(_FEATURES, None)
        if features:
            setattr(ds, _FEATURES, features)
        ds.preamble = b"\0" * 128
        with whole_file(dst, fsync=self._fsync) as (out, path):
            write_object(out, source, expected, pixels)
            out.flush()
            n_bytes = out.tell()
            if self._auditor is not None:
                asked = tuple(by_hand.in_frame(number) for number in range(1, source.frames() + 1))
                seen = Seen(asked if by_hand.masks else (), no_face=by_hand.no_face)
                self._auditor.check(source.path, path, subject, pixels.masked, examined=pixels.examined, seen=seen)
        instance, series, study = (PseudoUid(str(ds[name].value)) for name in _UID_KEYWORDS)
        return DeidResult(
            dst=dst,
            original_instance=original[0],
            original_series=original[1],
            original_study=original[2],
            instance=instance,
            series=series,
            study=study,
            sop_class=sop_class,
            modality=modality,
            transfer_syntax=str(ds.file_meta.TransferSyntaxUID),
            n_frames=source.frames(),
            n_bytes=n_bytes,
            recipe_sha256=self.recipe.sha256,
            seconds=0.0,
            face=face,
            pixels=MASKED if pixels.masked else EXAMINED if pixels.examined else COPIED,
        )


_FEATURES = "RecognizableVisualFeatures"
_UID_KEYWORDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def walk(ds: Dataset) -> Iterator[Dataset]:
    """The data set and every item below it, outermost first; elements come out converted, UN of known tags opened."""
    pending = [ds]
    while pending:
        here = pending.pop()
        yield here
        for element in here:
            if element.VR == "SQ":
                pending.extend(element.value or ())


def names_in(ds: Dataset) -> frozenset[str]:
    """Words of every person's name in the object, private elements included; in lower case."""
    names: list[str] = []
    pending = [ds]
    while pending:
        item = pending.pop()
        for tag in item.keys():  # noqa: SIM118 (raw: what is removed unread may be unreadable)
            vr = item.get_item(tag).VR
            if vr in (None, "UN") and not tag.is_private and dictionary_has_tag(tag):
                vr = dictionary_VR(tag)
            if vr == "PN":
                names += [str(one) for one in _values(item[tag])]
            elif vr == "SQ":
                pending.extend(item[tag].value or ())
    return name_words(names)


def is_private(tag: int) -> bool:
    """Odd groups: private elements, their creators, and blocks whose creator is missing."""
    return bool(tag >> 16 & 1)


def is_unknown(tag: int) -> bool:
    """Public elements in neither pydicom's dictionary nor the table, group lengths, file meta, and padding."""
    if is_private(tag) or table.is_curve_or_overlay(tag):
        return False
    is_data = tag & 0xFFFF != 0 and tag >> 16 > LAST_DIRECTORY_GROUP and tag != _TRAILING_PADDING
    return not (is_data and (dictionary_has_tag(tag) or tag in table.by_tag()))


UNWANTED: tuple[Callable[[int], bool], ...] = (is_private, table.is_curve_or_overlay, is_unknown)


def remove_unwanted(ds: Dataset, unwanted: Iterable[Callable[[int], bool]]) -> None:
    """Delete, at every depth, the elements whose tag one of ``unwanted`` takes; their values are never read."""
    judges = tuple(unwanted)
    for item in walk(ds):
        for tag in [tag for tag in item.keys() if any(judge(int(tag)) for judge in judges)]:  # noqa: SIM118 (raw)
            del item[tag]


class HeaderFunctions:
    """The functions that the recipe names, for one object. ``deid`` calls them with the element as ``field``."""

    def __init__(
        self, recipe: Recipe, uid_key: bytes, subject: Subject, pixels_clean: bool, names: frozenset[str]
    ) -> None:
        self._recipe = recipe
        self._uid_key = uid_key
        self._subject = subject
        self._pixels_clean = pixels_clean
        self._names = names
        self._private_kept = 0

    def keep_safe_private(self, ds: Dataset, *, little: bool) -> None:
        """Reduce the private elements to the safe ones; the option is claimed only where one stays."""
        treat: dict[str, Callable[[DataElement], Any]] = {}
        options = self._recipe.options
        treat["UI"] = _same if Option.UIDS in options else self.lookup_uid
        if Option.MODIFIED_DATES in options:
            treat |= {"DA": self._shift, "DT": self._shift, "TM": _same}
        elif Option.FULL_DATES in options:
            treat |= dict.fromkeys(("DA", "DT", "TM"), _same)
        self._private_kept = keep_safe(ds, self._recipe.safe_private, self._names, treat, little=little)

    def lookup_uid(self, element: DataElement) -> Any:
        """Each UID of the element by its pseudonymous one."""
        return _each(element, lambda uid: pseudo_uid(self._uid_key, uid))

    def lookup(self) -> dict[str, Callable[..., Any]]:
        """By the names of ``recipe.FUNCTIONS``."""
        by_element = {
            "blank": _blank,
            "dummy": self._dummy,
            "uid": self.lookup_uid,
            "pid": lambda _: str(self._subject.pseudonym),
            "shift": self._shift,
            "clean": lambda element: _each(element, lambda text: clean(text, self._names)),
            "term": lambda element: _each(element, lambda text: term(element.keyword, text)),
            "age": lambda element: _each(element, _capped_age),
            "timezone": lambda element: _each(element, lambda text: text if _OFFSET.fullmatch(text) else ""),
        }
        functions = {name: _on_element(function) for name, function in by_element.items()}
        functions["methods"] = self._methods
        functions["identity"] = lambda **_: str(self._subject.pseudonym)
        return functions

    def _dummy(self, element: DataElement) -> Any:
        if element.VR == "UI":
            return self.lookup_uid(element)
        if element.VR == "SQ":
            return Sequence()
        return b"\0\0" if element.VR in _BINARY_VRS else DUMMIES[element.VR]

    def _shift(self, element: DataElement) -> Any:
        move = shift_datetime if element.VR == "DT" else shift_date
        return _each(element, lambda text: move(text, self._subject.days))

    def _methods(self, field: str, **_: Any) -> Any:
        if field == "LongitudinalTemporalInformationModified":
            return self._recipe.temporal
        if field == "DeidentificationMethod":
            exceptions = len(self._recipe.exceptions)
            return METHOD + self._recipe.sha256[:12] + (f", {exceptions} exceptions" if exceptions else "")
        applied = self._recipe.options if self._pixels_clean else self._recipe.options - {Option.PIXEL_DATA}
        applied = applied if self._private_kept else applied - {Option.SAFE_PRIVATE}
        profile = [] if self._recipe.exceptions else [PROFILE_CODE]  # with exceptions it is not that profile
        codes = [*profile, *sorted(OPTION_CODES[option] for option in applied)]
        return Sequence([_code_item(value, meaning) for value, meaning in codes])


def _code_item(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _on_element(function: Callable[[DataElement], Any]) -> Callable[..., Any]:
    return lambda field, **_: function(field.element)


def _same(element: DataElement) -> Any:
    return element.value


def _blank(element: DataElement) -> Any:
    return Sequence() if element.VR == "SQ" else element.empty_value


def _each(element: DataElement, function: Callable[[str], str]) -> Any:
    """``function`` on each value of the element; empty values stay out."""
    value = element.value
    if value is None or value == "":
        return ""
    if isinstance(value, bytes):
        return b""  # a text VR that was not decoded is not understood: drop it
    changed = [function(str(one)) for one in _values(element)]
    return changed[0] if len(changed) == 1 else changed


def _values(element: DataElement) -> list[Any]:
    value = element.value
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]


def _capped_age(text: str) -> str:
    match = _AGE.fullmatch(text.strip())
    if not match:
        return ""
    return f"{AGE_LIMIT:03d}Y" if match[2] == "Y" and int(match[1]) >= AGE_LIMIT else match[0]


class _HeaderParser(DicomParser):  # type: ignore[misc]  # deid ships no types
    """``deid``'s parser without the ways in which it fails open, keeps data sets, or takes quadratic time."""

    fields: Any  # empty until get_fields, then FieldsWithLookups; DicomParser's name

    def get_fields(self, expand_sequences: bool = True) -> FieldsWithLookups:
        """Every element at every depth.

        ``deid``'s own function keeps each data set for ever (``functools.cache``), skips some elements, and looks
        each one up in a list: 30,000 elements of an enhanced multi-frame object take it minutes.
        """
        if not self.fields:
            fields: dict[str, DicomField] = {}
            pending: list[tuple[str, Dataset]] = [("", self.dicom)]
            while pending:
                prefix, item = pending.pop()
                for element in item:
                    uid = f"{prefix}{element.tag!s}"
                    fields[uid] = DicomField(element, element.keyword, uid)
                    if element.VR == "SQ":
                        pending.extend((f"{uid}__{index}__", child) for index, child in enumerate(element.value or ()))
            self.fields = FieldsWithLookups(fields)
        return self.fields

    def get_child_fields(self, field: DicomField) -> list[str]:
        """Fields below a sequence; ``deid`` searches every field for them, below a single value too."""
        return cast(list[str], super().get_child_fields(field)) if field.element.VR == "SQ" else []

    @property
    def excluded_from_deletion(self) -> list[str]:
        """None: the recipe has one rule a tag (``recipe.lint_header``), so no removal collides with another rule."""
        return []

    def add_field(self, field: DicomField | str, value: str) -> None:
        """Set the value that the rule gives; ``deid`` keeps the original where a function returns None."""
        new = parse_value(item=self.lookup, value=value, field=field, dicom=self.dicom, funcs={})
        keyword_or_uid = field if isinstance(field, str) else field.uid
        if new is None:
            raise DeidError("a rule gave no value")
        if not isinstance(field, str):
            self.fields[keyword_or_uid].element.value = new
            return
        tag = tag_for_keyword(keyword_or_uid)
        assert tag is not None  # lint_header knows the keywords
        self.dicom[tag] = DataElement(tag, dictionary_VR(tag), new)


class _DeidMessages:
    """While open, ``deid`` prints nothing; on leaving, what it noted is forgotten. A warning becomes an error."""

    def __enter__(self) -> None:
        self._level = bot.level
        bot.level = 0  # deid.logger.message.QUIET
        bot.history.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        bot.level = self._level
        noted = any(_BAD_NEWS.match(line) for line in bot.history)
        bot.history.clear()
        if noted and kind is None:
            raise DeidError("deid could not apply a rule as it stands")


def apply_recipe(ds: Dataset, recipe: Recipe, functions: HeaderFunctions, sop_class: str) -> None:
    """Run the rules for the tags that occur in ``ds``, at every depth, with ``deid``; changes ``ds``."""
    ds.filename = None  # deid would take it for a path to show
    present = {int(element.tag) for item in walk(ds) for element in item}
    header = recipe.header((tag for tag in recipe.rules if tag in present), sop_class)
    parser = _HeaderParser(ds, recipe=DeidRecipe({"format": "dicom", "header": header}), disable_skip=True)
    for name, function in functions.lookup().items():
        parser.define(name, function)
    parser.parse()
