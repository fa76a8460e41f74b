"""Searches a written object for values that identified the original one; part of the independent audit.

It knows nothing of the recipe: from the original it takes what Table E.1-1 calls identifying, and looks for it in
every value and in the raw bytes of the written header. Short and common words are compared as whole values only,
so that a station called CT does not condemn every CT.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicomnode.deid import table
from dicomnode.deid.text_audit import everyday, is_allowed

TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
DATE_VRS = frozenset({"DA", "DT"})
BYTE_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
MIN_NAME = 3  # letters of a name that a cleaned text may not have, whatever else the word means
MIN_WORD = 4  # shorter words occur by chance
MIN_SUBSTRING = 6  # from here on a needle inside a longer word counts too
MIN_RAW_DIGITS = 12  # the raw header holds UIDs of 39 digits: six given digits occur in one of 3000 of them by chance
BYTES_SEARCHED = 1 << 16  # of a binary value: lookup tables beyond it hold no text

# Attributes whose values number a person, a visit or an order, by the Standard's own naming.
_ID_KEYWORD = re.compile(r"(ID|IDs|Number|Identifier|UniqueID)$")
_WORD = re.compile(r"[^\W_]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
_MULTIBYTE = ("shift_jis", "iso2022_jp", "euc_kr", "gb18030", "iso8859_5", "iso8859_7", "cp1255", "iso8859_6")
Path = tuple[int, ...]


def elements(ds: Dataset, prefix: Path = ()) -> Iterator[tuple[Path, DataElement]]:
    """Every element at every depth with its path of tags and item numbers."""
    for element in ds:
        path = (*prefix, int(element.tag))
        yield path, element
        if element.VR == "SQ":
            for number, item in enumerate(element.value or ()):
                yield from elements(item, (*path, number))


def values(element: DataElement) -> list[Any]:
    """The values of an element as a list; empty where there is none."""
    value = element.value
    if value is None or value in ("", b""):
        return []
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]


@functools.cache
def common_words() -> frozenset[str]:
    """Words that identify nobody: the vocabulary, its units, vendors and defined terms, in lower case."""
    return table.data_words("vocabulary.txt", "units.txt", "common-words.txt")


def _is_common(text: str) -> bool:
    """Whether every longer word of ``text`` is a common one. Numbers never are."""
    words = _WORD.findall(text.casefold())
    return all(word in common_words() or (len(word) < MIN_WORD and not word.isdigit()) for word in words)


def _may_stay(text: str) -> bool:
    """Whether cleaning may leave a text whole, so that finding it proves nothing. Names are searched for by word."""
    return all(_is_common(word) or is_allowed(word) or word in everyday() for word in _WORD.findall(text.casefold()))


def _squash(text: str) -> str:
    return "".join(_WORD.findall(text.casefold()))


@dataclass(slots=True)
class Needles:
    """What must not occur in the written object. All in lower case."""

    words: set[str] = field(default_factory=set)  # of names
    names: set[str] = field(default_factory=set)  # of names too, the common words among them
    ids: set[str] = field(default_factory=set)  # without separators
    texts: set[str] = field(default_factory=set)  # whole values
    dates: set[str] = field(default_factory=set)  # eight digits, three orders
    uids: set[str] = field(default_factory=set)
    kept_uids: set[str] = field(default_factory=set)  # by an option: what they begin with is known with them

    @classmethod
    def of(cls, originals: Iterable[Dataset], kept: frozenset[int], pseudonym: str) -> Needles:
        """From every identifying element of the original's data sets, less the tags that an option keeps."""
        needles = cls()
        for original in originals:
            for path, element in elements(original):
                needles._add(element, path[-1] in kept)
        needles.words = {word for word in needles.words if len(word) >= MIN_WORD and not _is_common(word)}
        needles.ids = {one for one in needles.ids if len(one) >= MIN_WORD and not _is_common(one)}
        needles.texts = {text for text in needles.texts if len(text) >= MIN_WORD and not _may_stay(text)}
        needles.uids = {uid for uid in needles.uids if not any(uid in kept_uid for kept_uid in needles.kept_uids)}
        for found in (needles.words, needles.ids, needles.texts):
            found -= {pseudonym.casefold(), _squash(pseudonym)}
        return needles

    def _add(self, element: DataElement, kept: bool) -> None:
        tag = int(element.tag)
        if element.VR == "UI":
            found = {uid for one in values(element) if (uid := str(one).strip("\0 ")) and not is_public_uid(uid)}
            (self.kept_uids if kept else self.uids).update(found)
            return
        row = table.by_tag().get(tag)
        if element.VR != "PN" and (row is None or kept):
            return
        for one in values(element):
            if element.VR in DATE_VRS:
                self.dates.update(_date_forms(str(one)))
            elif element.VR in TEXT_VRS:
                self._add_text(element, str(one))
            elif element.VR in BYTE_VRS and isinstance(one, bytes):
                self._add_text(element, one[:BYTES_SEARCHED].decode("latin-1").strip("\0 "))

    def _add_text(self, element: DataElement, text: str) -> None:
        self.texts.add(" ".join(text.casefold().split()))
        if element.VR == "PN":
            self.words.update(_WORD.findall(text.casefold()))
            self.names.update(word for word in _LETTERS.findall(text.casefold()) if len(word) >= MIN_NAME)
        elif _ID_KEYWORD.search(element.keyword):
            self.ids.add(_squash(text))

    def raw(self) -> set[bytes]:
        """The longer needles as they would stand in the bytes of a file, ASCII in lower case."""
        out = {uid.encode("ascii", "ignore") for uid in self.uids if len(uid) > MIN_SUBSTRING}
        for needle in self.words | self.texts:
            short = MIN_RAW_DIGITS if needle.isdecimal() else MIN_SUBSTRING
            if len(needle) < short and needle.isascii():
                continue
            encodings = ("utf-8",) if needle.isascii() else ("utf-8", "latin-1", *_MULTIBYTE)
            for encoding in encodings:
                try:
                    out.add(needle.encode(encoding))
                except UnicodeEncodeError:
                    continue
        return {one for one in out if len(one) >= MIN_WORD}


def is_public_uid(uid: str) -> bool:
    """UIDs of the Standard itself and of HL7's registry of code systems identify no object."""
    return uid.startswith(("1.2.840.10008.", "2.16.840.1.113883.6."))


def _date_forms(text: str) -> set[str]:
    match = _DATE.match(text)
    if not match:
        return set()
    year, month, day = match.groups()
    return {year + month + day, day + month + year, month + day + year}


def name_in(text: str, needles: Needles) -> bool:
    """Whether a cleaned text has a word of a person's name in the original."""
    return not needles.names.isdisjoint(_WORD.findall(text.casefold()))


def first_leak(element: DataElement, needles: Needles) -> str:
    """What kind of original value the element holds, or an empty string."""
    if element.VR in TEXT_VRS:
        for one in values(element):
            if kind := _leak_in_text(str(one), needles):
                return kind
    elif element.VR in BYTE_VRS and isinstance(element.value, bytes):
        return _leak_in_text(element.value[:BYTES_SEARCHED].decode("latin-1"), needles)
    elif element.VR in ("DS", "IS"):
        if any(str(one) in needles.ids and len(str(one)) >= MIN_SUBSTRING for one in values(element)):
            return "an identifier"
    elif element.VR == "UI" and any(str(one) in needles.uids for one in values(element)):
        return "an original UID"
    return ""


def _leak_in_text(value: str, needles: Needles) -> str:
    text = " ".join(value.casefold().split())
    squashed = _squash(text)
    words = set(_WORD.findall(text))
    if any(uid in text for uid in needles.uids):
        return "an original UID"
    if any(word in words or (len(word) >= MIN_SUBSTRING and word in squashed) for word in needles.words):
        return "a name"
    if any(one == squashed or (len(one) >= MIN_SUBSTRING and one in squashed) for one in needles.ids):
        return "an identifier"
    if any(one == text or (len(one) >= MIN_SUBSTRING and one in text) for one in needles.texts):
        return "an identifying text"
    digits = "".join(character for character in text if character.isdigit())
    if any(date in digits for date in needles.dates):
        return "an original date"
    return ""
