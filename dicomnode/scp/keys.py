"""From the identifier of a C-FIND request to conditions: which keys are served, and how their values match.

The one table ``KEYS`` is what is served and what docs/query.md shows. Never looks anything up, never repeats a value in
an error: it may name a patient. Facts: PS3.4 C.2.2.2 (matching), C.4.1 and C.6.2 (Study Root), PS3.5 6.2 (forms).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from dicomnode.archive.finding import ATTRIBUTES, Between, Condition, Level, Like, OneOf
from dicomnode.errors import InputError
from dicomnode.scp.status import IDENTIFIER_MISMATCH

MAX_VALUES = 1000  # of one key: a longer list of UIDs is no query but a mistake
MAX_LENGTH = 256  # characters of one value; PS3.5 6.2 allows 64 in a component of what is matched here

Matching = Literal["single", "uid", "text", "date", "time", "none"]
Pseudonymous = Callable[[str], Iterable[str]]
Match = OneOf | Like | Between


class IdentifierMismatch(InputError):
    """The identifier does not fit the SOP class: its level, or the unique keys above it."""

    code = "identifier"
    dimse_status = IDENTIFIER_MISMATCH


@dataclass(frozen=True, slots=True)
class Key:
    """A served key. ``kind``: U unique, R required, O optional (PS3.4 C.6.2.1); "none": returned, never matched."""

    keyword: str
    kind: Literal["U", "R", "O"]
    matching: Matching

    @property
    def level(self) -> Level:
        """Level it belongs to."""
        return ATTRIBUTES[self.keyword].level


KEYS: dict[str, Key] = {
    key.keyword: key
    for key in (
        Key("StudyInstanceUID", "U", "uid"),
        Key("StudyDate", "R", "date"),
        Key("StudyTime", "R", "time"),
        Key("AccessionNumber", "R", "text"),
        Key("PatientName", "R", "text"),
        Key("PatientID", "R", "text"),
        Key("StudyID", "R", "text"),
        Key("PatientSex", "O", "text"),
        Key("StudyDescription", "O", "text"),
        Key("ModalitiesInStudy", "O", "text"),
        Key("SOPClassesInStudy", "O", "uid"),
        Key("NumberOfStudyRelatedSeries", "O", "none"),
        Key("NumberOfStudyRelatedInstances", "O", "none"),
        Key("NumberOfPatientRelatedStudies", "O", "none"),
        Key("NumberOfPatientRelatedSeries", "O", "none"),
        Key("NumberOfPatientRelatedInstances", "O", "none"),
        Key("SeriesInstanceUID", "U", "uid"),
        Key("Modality", "R", "text"),
        Key("SeriesNumber", "R", "single"),
        Key("SeriesDescription", "O", "text"),
        Key("BodyPartExamined", "O", "text"),
        Key("Manufacturer", "O", "text"),
        Key("NumberOfSeriesRelatedInstances", "O", "none"),
        Key("SOPInstanceUID", "U", "uid"),
        Key("InstanceNumber", "R", "single"),
        Key("SOPClassUID", "O", "uid"),
        Key("Rows", "O", "single"),
        Key("Columns", "O", "single"),
        Key("NumberOfFrames", "O", "single"),
    )
}
UNIQUE = {Level.STUDY: "StudyInstanceUID", Level.SERIES: "SeriesInstanceUID", Level.IMAGE: "SOPInstanceUID"}
INSTANCE_UIDS = frozenset(UNIQUE.values())  # may be asked for as the hospital knows them
# Said in every answer, or about the request itself: neither keys nor unsupported.
ABOUT = frozenset({"SpecificCharacterSet", "QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability",
                   "TimezoneOffsetFromUTC"})  # fmt: skip
_WORDS = {
    "single": "single value",
    "uid": "single value, list of UID",
    "text": "single value, wild card",
    "date": "single value, range",
    "time": "single value, range",
    "none": "returned only",
}
_UID = re.compile(r"[0-9.]{1,64}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,12}")
_DATE = re.compile(r"[0-9]{8}|[0-9]{4}\.[0-9]{2}\.[0-9]{2}")
_TIME = re.compile(r"([01][0-9]|2[0-3])(:?[0-5][0-9](:?([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
_LARGEST = 2**31 - 1  # IS, PS3.5 6.2


@dataclass(frozen=True, slots=True)
class Query:
    """A request, read.

    Attributes
    ----------
    level : Level
    conditions : tuple of Condition
    wanted : frozenset of str
        Keywords to return.
    all_served : bool
        Whether every key is served as the request has it; else answers are FF01 (PS3.4 table C.4-1).
    """

    level: Level
    conditions: tuple[Condition, ...]
    wanted: frozenset[str]
    all_served: bool


def read_level(identifier: Dataset) -> Level:
    """Query/Retrieve Level of a request.

    Raises
    ------
    IdentifierMismatch
        It is missing or not one of Study Root.
    """
    values = _texts(identifier["QueryRetrieveLevel"]) if "QueryRetrieveLevel" in identifier else []
    if len(values) != 1 or values[0] not in Level.__members__:
        raise IdentifierMismatch("the level is not STUDY, SERIES or IMAGE", place="QueryRetrieveLevel")
    return Level[values[0]]


def read_query(
    identifier: Dataset, pseudonymous: Pseudonymous, *, relational: bool = False, others: frozenset[int] = frozenset()
) -> Query:
    """The query that an identifier asks.

    Parameters
    ----------
    identifier : Dataset
    pseudonymous : callable
        The UIDs under which the repository may know an instance UID as it was asked for.
    relational : bool
        Do without the unique keys of the levels above.
    others : frozenset of int
        Tags that somebody else serves.

    Raises
    ------
    IdentifierMismatch
        Level or unique keys are missing (A900).
    InputError
        A value has not the form its key needs (C000).
    """
    level = read_level(identifier)
    conditions: list[Condition] = []
    wanted: set[str] = set()
    all_served = True
    for element in identifier:
        keyword = keyword_for_tag(element.tag)
        if keyword in ABOUT or element.tag in others or element.tag.element == 0:  # 0: a group length
            continue
        key = KEYS.get(keyword)
        if key is None or key.level > level:
            all_served = False
            continue
        wanted.add(keyword)
        values = _texts(element)
        if not values:
            continue
        if key.matching == "none":
            all_served = False
            continue
        if (condition := _condition(key, values, pseudonymous)) is not None:
            conditions.append(condition)
    query = Query(level, tuple(conditions), frozenset(wanted), all_served)
    if not relational:
        _require_unique(identifier, level)
    return query


def _require_unique(identifier: Dataset, level: Level) -> None:
    """PS3.4 C.4.1.2.2.1: one value in the unique key of each level above."""
    for above in list(Level)[:level]:
        keyword = UNIQUE[above]
        if keyword not in identifier or len(_texts(identifier[keyword])) != 1:
            raise IdentifierMismatch(f"a query at {level.name} level needs one value of it", place=keyword)


def _texts(element: DataElement) -> list[str]:
    """The values of an element as text, without padding; none where it is of zero length.

    Raises
    ------
    InputError
        It is a sequence, bytes of an unknown kind, or too long.
    """
    value: Any = element.value
    if element.VR == "SQ" or isinstance(value, bytes):
        raise InputError("the value is not text", place=keyword_for_tag(element.tag))
    values = value if isinstance(value, MultiValue | list) else [value]
    texts = [text for v in values if (text := "" if v is None else str(v).strip(" \0"))]
    if len(texts) > MAX_VALUES or any(len(text) > MAX_LENGTH for text in texts):
        raise InputError("too many or too long values", place=keyword_for_tag(element.tag))
    return texts


def _condition(key: Key, values: list[str], pseudonymous: Pseudonymous) -> Condition | None:
    """The condition that a key's values mean; None where they mean everything."""
    if key.matching == "uid":
        return Condition(key.keyword, (_uids(key, values, pseudonymous),))
    matches = []
    for text in values:
        if (match := _match(key, text)) is None:
            return None
        matches.append(match)
    return Condition(key.keyword, tuple(matches))


def _uids(key: Key, values: list[str], pseudonymous: Pseudonymous) -> OneOf:
    if not all(_UID.fullmatch(v) for v in values):
        raise InputError("the value is not a UID", place=key.keyword)
    if key.keyword in INSTANCE_UIDS:
        values = [known for v in values for known in pseudonymous(v)]
    return OneOf(tuple(dict.fromkeys(values)))


def _match(key: Key, text: str) -> Match | None:
    """What one value matches; None: everything."""
    if key.matching == "single":
        if not _WHOLE.fullmatch(text) or abs(int(text)) > _LARGEST:
            raise InputError("the value is not a whole number", place=key.keyword)
        return OneOf((text,))
    if key.matching in ("date", "time"):
        return _range(key, text)
    if dictionary_VR(key.keyword) == "PN":
        text = text.rstrip("^= ")
    if not text.strip("*"):
        return None
    return Like(text) if "*" in text or "?" in text else OneOf((text,))


def _range(key: Key, text: str) -> Match:
    read = _date if key.matching == "date" else _time
    low, dash, high = (part.strip() for part in text.partition("-"))
    ends = [read(end) if end else "" for end in (low, high)]
    if None in ends or not any(ends):
        raise InputError(f"the value is not a {key.matching} or a range of them", place=key.keyword)
    first, last = (end or "" for end in ends)
    return Between(first, last) if dash else OneOf((first,))


def _date(text: str) -> str | None:
    """A DA as it is stored, None where it is none; also as ACR-NEMA wrote it, YYYY.MM.DD (PS3.5 6.2, note to DA)."""
    if not _DATE.fullmatch(text):
        return None
    plain = text.replace(".", "")
    try:
        datetime.date(int(plain[:4]), int(plain[4:6]), int(plain[6:]))
    except ValueError:
        return None
    return plain


def _time(text: str) -> str | None:
    """A TM without separators, None where it is none."""
    return text.replace(":", "") if _TIME.fullmatch(text) else None


def as_markdown() -> str:
    """The table of keys in docs/query.md."""
    lines = ["| level | key | tag | VR | kind | matching | in answers |", "|---|---|---|---|---|---|---|"]
    for level in Level:
        for key in (k for k in KEYS.values() if k.level is level):
            attribute = ATTRIBUTES[key.keyword]
            number = tag_for_keyword(key.keyword)
            assert number is not None
            tag = Tag(number)
            matching = _WORDS[key.matching]
            if attribute.column is None:
                matching = "every value matches" if attribute.unknown_matches else "no value matches"
            if attribute.any_case:
                matching += ", any case"
            said = "zero length" if attribute.column is None else _SAID.get(key.keyword, "as in the repository")
            place = f"({tag.group:04X},{tag.element:04X})"
            vr = dictionary_VR(key.keyword)
            lines.append(f"| {level.name} | {key.keyword} | {place} | {vr} | {key.kind} | {matching} | {said} |")
    return "\n".join(lines) + "\n"


_SAID = {
    **dict.fromkeys(INSTANCE_UIDS, "pseudonymous"),
    "PatientID": "pseudonym",
    "PatientName": "pseudonym",
    "StudyDate": "shifted",
    "StudyDescription": "cleaned",
    "SeriesDescription": "cleaned",
    "BodyPartExamined": "of the study's images",
    "Manufacturer": "of the study's images",
}
