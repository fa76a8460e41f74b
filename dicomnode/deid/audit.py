"""Independent audit of a de-identified file: reads it and the original anew and trusts nothing that was done.

It shares no code with the recipe and the engine, only the facts of Table E.1-1 and the word lists. Every element at
every depth, the file meta, the preamble, the raw header and the pixel bytes are checked (pixel_audit.py where pixels
were masked); one finding is enough to refuse the file. It never shows a value. Sources: PS3.15 Annex E, PS3.10 7.1.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomnode.deid import leaks, pixel_audit, private_audit, safe_private, table
from dicomnode.deid.options import Option
from dicomnode.deid.pixel_audit import UNSEEN, Masked, Seen
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.quiet import safe_error, silenced
from dicomnode.deid.site import SiteAction, SiteRecipe, SiteRule
from dicomnode.deid.table import Row
from dicomnode.deid.text_audit import NOTHING, is_clean, is_code, is_term, terms
from dicomnode.errors import DicomnodeError, QuarantineError

# File meta that a de-identified file may have (PS3.10 table 7.1-1); no AE titles, no private information.
FILE_META_ALLOWED = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_SUBJECT_TAGS = frozenset({0x00100010, 0x00100020})
_OFFSET_TAG = 0x00080201
_REMOVED_TAG, _METHOD_TAG, _CODES_TAG, _TEMPORAL_TAG = 0x00120062, 0x00120063, 0x00120064, 0x00280303
_OWN_TAGS = frozenset({_REMOVED_TAG, _METHOD_TAG, _CODES_TAG, _TEMPORAL_TAG})
_METHOD = re.compile(r"dicomnode: PS3\.15 Annex E, recipe [0-9a-f]{12}(, \d+ exceptions)?")
_PSEUDO_UID = re.compile(r"2\.25\.(0|[1-9]\d{0,38})")
_AGE = re.compile(r"(\d{3})([DWMY])")
# Value representations that could carry text but must not, PS3.5 table 6.2-1 (with ACR-NEMA's colons in TM).
_FORMS = {
    "DS": re.compile(r"[0-9eE.+\- ]*|[nN]a[nN]"),
    "IS": re.compile(r"[0-9+\- .]*"),
    "TM": re.compile(r"[0-9.: ]*(-[0-9.: ]*)?"),
}
_BLOCK = 1 << 20

# CID 7050: the profile, and the code of each option.
_PROFILE_CODE = "113100"
_CODES = {
    "113101": Option.PIXEL_DATA, "113105": Option.DESCRIPTORS, "113106": Option.FULL_DATES,
    "113107": Option.MODIFIED_DATES, "113108": Option.PATIENT, "113109": Option.DEVICE, "113110": Option.UIDS,
    "113111": Option.SAFE_PRIVATE, "113112": Option.INSTITUTION,
}  # fmt: skip


FURTHER = 5  # places that a refusal names beside the first


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Where a rule is broken (path of tags, or a part of the file) and which one. Never the value."""

    place: str
    rule: str


def _further(found: list[AuditFinding]) -> str:
    """Where else something was found: the first places, and how many there are."""
    places = list(dict.fromkeys(one.place for one in found[1:] if one.place != found[0].place))
    if not places:
        return ""
    left = f" and {len(places) - FURTHER} more places" if len(places) > FURTHER else ""
    return f"; and {', '.join(places[:FURTHER])}{left}"


class Auditor:
    """Audits files against the profile with ``options``; see the module."""

    def __init__(self, options: Iterable[Option], site: SiteRecipe | None = None) -> None:
        self._options = frozenset(options)
        self._site = site or SiteRecipe()
        self._by_tag = {row.tag: self._expected(row) for row in table.rows()}
        for tag, rule in self._site.by_tag().items():
            self._by_tag[tag] = _site_word(rule, self._by_tag.get(tag, "any"))
        self._safe_private = self._site.safe_private(safe_private.elements())
        # Tags whose original value may stand in the result: kept or cleaned by an option that is on.
        loose = ("any", "cleaned", "age", "offset", "term")
        self._unsearched = frozenset(tag for tag, word in self._by_tag.items() if word in loose)

    def check(
        self,
        original: Path,
        written: Path,
        subject: Subject,
        masked: Masked = (),
        *,
        examined: bool = False,
        seen: Seen = UNSEEN,
    ) -> None:
        """Return when nothing was found.

        ``masked`` holds what was blanked in each frame, as (top, left, bottom, right); empty: the pixel bytes must be
        the original ones. ``examined``: the pixels may show text and are read here too. ``seen``: what a person asked.

        Raises
        ------
        QuarantineError
            Reason ``audit``: something was found, or a file could not be read to its end.
        """
        try:
            found = self.findings(original, written, subject, masked, examined=examined, seen=seen)
        except DicomnodeError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever stops the audit means that nothing was proved)
            cause = safe_error(error).line
            raise QuarantineError("audit", f"the audit could not be finished: {cause}") from None
        if found:
            first = found[0]
            more = _further(found)
            raise QuarantineError(
                "audit", f"{first.rule}{more}", place=first.place, advice="the de-identified copy was discarded"
            )

    def findings(
        self,
        original: Path,
        written: Path,
        subject: Subject,
        masked: Masked = (),
        *,
        examined: bool = False,
        seen: Seen = UNSEEN,
    ) -> list[AuditFinding]:
        """Everything that is wrong with ``written``, in the order of the file."""
        with silenced(), contextlib.ExitStack() as stack:
            before = stack.enter_context(_open(original))
            after = stack.enter_context(_open(written))
            needles = leaks.Needles.of(before.datasets(), self._unsearched, subject.pseudonym)
            if Option.UIDS in self._options:
                needles.uids.clear()
            found = list(_file_findings(after))
            found += self._element_findings(before.ds, after.ds, needles, subject)
            found += self._statement_findings(after.ds)
            found += _raw_findings(after, needles)
            found += [AuditFinding(*one) for one in seen.findings(before.ds, after.ds, masked)]
            if masked:
                found += _masked_findings(before, after, pixel_audit.compare(original, written, masked))
            else:
                found += _pixel_findings(before, after)
        if examined and not found and pixel_audit.reads(written, needles.words, needles.ids):
            found.append(AuditFinding("pixel data", "a name or an id of the original object can be read in them"))
        return found

    def _expected(self, row: Row) -> str:
        """What the table asks of an attribute, as one word; see ``_violation`` for what each word allows."""
        cells = {option: cell for option, cell in row.columns.items() if option in self._options}
        if Option.MODIFIED_DATES in cells:
            special = {"DA": "shifted", "DT": "shifted", "TM": "any"}.get(row.vr, "")
            if row.tag == _OFFSET_TAG:
                special = "offset"
            if special:
                return special
        elif "C" in cells.values():
            if row.vr in leaks.TEXT_VRS - {"AE", "CS", "PN", "UR"}:
                return "cleaned"
        elif "K" in cells.values() and row.vr:  # what the dictionary does not know is not kept
            return "age" if row.vr == "AS" else "term" if row.keyword in terms() else "any"
        if row.basic == "U":
            return "uid"
        if "U*" in row.basic:
            return "any"
        return "absent" if row.basic == "X" else "nothing"

    def _expected_of(self, element: DataElement) -> str:
        if int(element.tag) in (_METHOD_TAG, _CODES_TAG):
            return "absent"  # below the top level: not this node's statement
        if listed := self._by_tag.get(int(element.tag)):
            return listed
        dates_stay = bool({Option.MODIFIED_DATES, Option.FULL_DATES} & self._options)
        if element.VR in leaks.DATE_VRS:
            return "any" if Option.FULL_DATES in self._options else "shifted" if dates_stay else "absent"
        if element.VR == "TM":
            return "any" if dates_stay else "absent"
        return "absent" if element.VR in ("PN", "AE") else "any"

    def _element_findings(
        self, before: Dataset, after: Dataset, needles: leaks.Needles, subject: Subject
    ) -> Iterator[AuditFinding]:
        private: dict[leaks.Path, str] = {}
        if Option.SAFE_PRIVATE in self._options:
            private = dict(private_audit.violations(after, self._safe_private, is_clean, is_code))
        dates = {path: element for path, element in leaks.elements(before) if element.VR in leaks.DATE_VRS}
        for path, element in leaks.elements(after):
            tag = int(element.tag)
            is_private = bool(tag >> 16 & 1)
            rule = private.get(path, "") if is_private and Option.SAFE_PRIVATE in self._options else _tag_violation(tag)
            if not rule and is_private and any(leaks.name_in(str(one), needles) for one in _texts(element)):
                rule = "a private text has a word of a person's name"
            if not rule and tag in _SUBJECT_TAGS:
                rule = "" if str(element.value) == subject.pseudonym else "it is not the pseudonym"
            elif not rule and not (len(path) == 1 and tag in _OWN_TAGS):
                rule = self._violation(element, dates.get(path), needles, subject)
            if rule:
                yield AuditFinding(_place(path), rule)

    def _violation(
        self, element: DataElement, original_date: DataElement | None, needles: leaks.Needles, subject: Subject
    ) -> str:
        """The rule that one element breaks, or an empty string."""
        expected = self._expected_of(element)
        held = leaks.values(element) if element.VR != "SQ" else list(element.value or ())
        if expected == "absent":
            return "an attribute that the profile removes is there"
        if element.VR == "UI":
            kept = int(element.tag) in self._unsearched  # an option keeps it: UIDs of devices
            safe = kept or all(self._is_safe_uid(str(one), needles) for one in held)
            return "" if safe else "a UID was not replaced"
        if (form := _FORMS.get(element.VR)) and not all(form.fullmatch(str(one)) for one in held):
            return "a number or a time is something else"
        if expected == "nothing" and not all(_says_nothing(one) for one in held):
            return "an attribute that the profile empties has a value"
        if expected == "shifted" and not _is_shifted(element, original_date, subject.days):
            return "a date is not the original one moved by the patient's days"
        if expected == "cleaned" and not all(is_clean(str(one)) for one in held):
            return "a descriptive text has words outside the vocabulary"
        if expected == "age" and not all(_is_age(str(one)) for one in held):
            return "an age is not one, or over 89 years"
        if expected == "offset" and not all(re.fullmatch(r"[+-]\d{4}", str(one)) for one in held):
            return "not an offset from UTC"
        if expected == "cleaned" and any(leaks.name_in(str(one), needles) for one in held):
            return "a descriptive text has a word of a person's name"
        if expected == "term" and not all(is_term(element.keyword, str(one)) for one in held):
            return "a characteristic of the patient is none of its terms"
        if expected in ("cleaned", "shifted", "nothing"):
            return ""
        kind = leaks.first_leak(element, needles)
        return f"it holds {kind} of the original object" if kind else ""

    def _is_safe_uid(self, uid: str, needles: leaks.Needles) -> bool:
        if Option.UIDS in self._options or leaks.is_public_uid(uid) or not uid:
            return True
        return _PSEUDO_UID.fullmatch(uid) is not None and uid not in needles.uids

    def _statement_findings(self, ds: Dataset) -> Iterator[AuditFinding]:
        """What the object says about its own de-identification, PS3.15 E.1.1 and E.3.6."""
        if ds.get("PatientIdentityRemoved") != "YES":
            yield AuditFinding(_place((_REMOVED_TAG,)), "it must say YES")
        count = len(self._site.exceptions)
        said = _METHOD.fullmatch(str(ds.get("DeidentificationMethod", "")))
        if not said or (said[1] or "") != (f", {count} exceptions" if count else ""):
            yield AuditFinding(_place((_METHOD_TAG,)), "it must name this node's recipe and nothing else")
        codes = {str(item.get("CodeValue", "")) for item in ds.get("DeidentificationMethodCodeSequence", [])}
        known = (set() if count else {_PROFILE_CODE}) | {
            code for code, option in _CODES.items() if option in self._options
        }
        if not any(element.tag.is_private for _, element in leaks.elements(ds)):
            known.discard("113111")  # nothing private was kept: nothing to claim
        optional = {"113101"}  # claimed for objects whose pixels are known to be clean
        if not known - optional <= codes <= known:
            yield AuditFinding(_place((_CODES_TAG,)), "the codes are not those of the profile and its options")
        state = "MODIFIED" if Option.MODIFIED_DATES in self._options else "REMOVED"
        state = "UNMODIFIED" if Option.FULL_DATES in self._options else state
        if ds.get("LongitudinalTemporalInformationModified") != state:
            yield AuditFinding(_place((_TEMPORAL_TAG,)), f"it must say {state}")
        for keyword in ("PatientID", "PatientName"):
            if keyword not in ds:
                yield AuditFinding(keyword, "the pseudonym is missing")


@dataclass(slots=True)
class _Opened:
    """A file as the auditor reads it. ``head`` is where the pixel element begins; None when it was inflated."""

    ds: FileDataset
    stream: BinaryIO
    size: int
    head: int | None

    def datasets(self) -> list[Dataset]:
        """The data set, and from the file meta the one attribute that identifies: the instance's UID."""
        meta = Dataset()
        if self.ds.file_meta and "MediaStorageSOPInstanceUID" in self.ds.file_meta:
            meta.add(self.ds.file_meta["MediaStorageSOPInstanceUID"])
        return [self.ds, meta]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Opened]:
    with path.open("rb") as stream:
        ds = dcmread(stream, stop_before_pixels=True)
        head: int | None = stream.tell()
        size = stream.seek(0, os.SEEK_END)
        if ds.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            stream.seek(0)
            ds, head = dcmread(stream), None
        yield _Opened(ds, stream, size, head)


def _place(path: leaks.Path) -> str:
    """``(0008,1140)[0](0008,1155)``."""
    return "".join(f"({step >> 16:04X},{step & 0xFFFF:04X})" if step > 0xFFFF else f"[{step}]" for step in path)


def _tag_violation(tag: int) -> str:
    group = tag >> 16
    if group % 2:
        return "a private attribute is there"
    if 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:
        return "a curve or an overlay is there"
    if group <= 0x0006 or tag & 0xFFFF == 0 or tag == 0xFFFCFFFC:
        return "an attribute that is no part of an image is there"
    if not dictionary_has_tag(tag) and tag not in table.by_tag():
        return "an unknown attribute is there"
    return ""


def _says_nothing(value: object) -> bool:
    if isinstance(value, bytes):
        return not value.strip(b"\0")
    return not isinstance(value, Dataset) and str(value) in NOTHING


def _is_shifted(element: DataElement, original: DataElement | None, days: int) -> bool:
    moved = [str(one) for one in leaks.values(element)]
    if not any(moved):
        return True
    source = [str(one) for one in leaks.values(original)] if original is not None else []
    pairs = zip(moved, source, strict=True) if len(moved) == len(source) else None
    return pairs is not None and all(after in ("", _moved(before, days)) for after, before in pairs)


def _moved(value: str, days: int) -> str | None:
    """The date of a DA or DT value moved by ``days``, with whatever follows it; None where it is no date."""
    try:
        date = datetime.datetime.strptime(value[:8], "%Y%m%d").date()  # noqa: DTZ007 (a calendar date has no zone)
        return date.fromordinal(date.toordinal() + days).strftime("%4Y%m%d").rjust(8, "0") + value[8:].strip()
    except (ValueError, OverflowError):
        return None


def _site_word(rule: SiteRule, now: str) -> str:
    """What a site's rule asks of an attribute, as one word of ``Auditor._expected``; ``now``: without the rule."""
    if rule.action is SiteAction.REMOVE:
        return "absent"
    if rule.action is SiteAction.BLANK:
        return now if now == "absent" else "nothing"
    if rule.action is SiteAction.CLEAN:
        return "cleaned" if rule.exception or now in ("any", "age", "term", "offset") else now
    return "any" if rule.exception else now


def _texts(element: DataElement) -> list[object]:
    return leaks.values(element) if element.VR in leaks.TEXT_VRS and element.tag.element > 0xFF else []


def _is_age(text: str) -> bool:
    match = _AGE.fullmatch(text)
    return match is not None and (match[2] != "Y" or int(match[1]) <= 90)  # 090Y stands for all over 89


def _file_findings(opened: _Opened) -> Iterator[AuditFinding]:
    opened.stream.seek(0)
    if opened.stream.read(128).strip(b"\0"):
        yield AuditFinding("preamble", "it is not zero")
    meta = opened.ds.file_meta
    for tag in sorted({int(tag) for tag in meta.keys()} - FILE_META_ALLOWED):  # noqa: SIM118 (raw tags)
        yield AuditFinding(_place((tag,)), "it does not belong in the file meta of a de-identified file")
    if meta.get("MediaStorageSOPInstanceUID") != opened.ds.get("SOPInstanceUID"):
        yield AuditFinding("(0002,0003)", "it is not the SOP Instance UID")
    if not _PSEUDO_UID.fullmatch(str(meta.get("ImplementationClassUID", ""))):
        yield AuditFinding("(0002,0012)", "it is not this node's")
    if not re.fullmatch(r"DICOMNODE[A-Z0-9_]{0,7}", str(meta.get("ImplementationVersionName", ""))):
        yield AuditFinding("(0002,0013)", "it is not this node's")


def _raw_findings(opened: _Opened, needles: leaks.Needles) -> Iterator[AuditFinding]:
    """The bytes of the header as they lie on disk, whatever pydicom made of them."""
    opened.stream.seek(0)
    raw = opened.stream.read(opened.head if opened.head is not None else -1).lower()
    if any(needle in raw for needle in needles.raw()):
        yield AuditFinding("header bytes", "they hold a value of the original object")


def _pixel_findings(before: _Opened, after: _Opened) -> Iterator[AuditFinding]:
    """The pixel element is the original one, complete, and nothing follows it."""
    if before.head is None or after.head is None:
        names = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
        if any(before.ds.get(name) != after.ds.get(name) for name in names):
            yield AuditFinding("pixel data", "they differ from the original ones")
        return
    source, result = _pixel_value(before), _pixel_value(after)
    if result is None or source is None:
        yield AuditFinding("pixel data", "they are missing or damaged")
        return
    (start, end), (first, last) = source, result
    if last != after.size:
        yield AuditFinding("end of file", "there are bytes after the pixel data")
    native = not after.ds.file_meta.TransferSyntaxUID.is_encapsulated
    needed = get_expected_length(after.ds) if native else end - start
    if not needed <= last - first <= end - start or not _same_bytes(before.stream, start, after.stream, first, last):
        yield AuditFinding("pixel data", "they differ from the original ones")


def _masked_findings(before: _Opened, after: _Opened, rule: str) -> Iterator[AuditFinding]:
    """Of a masked image: what ``pixel_audit.compare`` says, the header's word, and the file's end."""
    if rule:
        yield AuditFinding("pixel data", rule)
    if after.ds.get("BurnedInAnnotation") != "NO":
        yield AuditFinding("(0028,0301)", "it must say NO after masking")
    if before.ds.get("LossyImageCompression") == "01" and after.ds.get("LossyImageCompression") != "01":
        yield AuditFinding("(0028,2110)", "pixels that were compressed with loss stay so")
    value = _pixel_value(after) if after.head is not None else None
    if after.head is not None and (value is None or value[1] != after.size):
        yield AuditFinding("end of file", "the pixel data are damaged, or there are bytes after them")


def _pixel_value(opened: _Opened) -> tuple[int, int] | None:
    """Where the pixel value begins and ends, its delimiter included; None where the element is not whole."""
    stream, syntax = opened.stream, opened.ds.file_meta.TransferSyntaxUID
    order = "little" if syntax.is_little_endian else "big"
    assert opened.head is not None
    stream.seek(opened.head)
    head = stream.read(8 if syntax.is_implicit_VR else 12)
    number = functools.partial(int.from_bytes, byteorder="little" if order == "little" else "big")
    if len(head) < 8 or number(head[:2]) << 16 | number(head[2:4]) not in _PIXEL_TAGS:
        return None
    start, length = stream.tell(), number(head[-4:])
    if length != 0xFFFFFFFF:
        return (start, start + length) if start + length <= opened.size else None
    while len(item := stream.read(8)) == 8:
        if item[:4] == b"\xfe\xff\xdd\xe0":
            return start, stream.tell()
        if item[:4] != b"\xfe\xff\x00\xe0":
            return None
        stream.seek(number(item[4:]), os.SEEK_CUR)
    return None


def _same_bytes(one: BinaryIO, start: int, other: BinaryIO, first: int, last: int) -> bool:
    one.seek(start)
    other.seek(first)
    left = last - first
    while left > 0:
        size = min(_BLOCK, left)
        if one.read(size) != other.read(size):
            return False
        left -= size
    return True
