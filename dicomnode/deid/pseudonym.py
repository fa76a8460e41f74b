"""Pseudonymous UIDs and shifted dates: pure functions of a key and a value.

They keep no state and read no file, so that worker processes can import them cheaply; the key comes from the
vault. Sources: PS3.5 B.2 (UIDs under 2.25), PS3.15 E.1.1 (no unkeyed hashes) and E.3.6 (modified dates).
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from dataclasses import dataclass

from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid

# UIDs that name things of the Standard or a published code system, never an object of a hospital:
# DICOM's own root (PS3.6 annex A) and HL7's registered external code systems (SNOMED CT, LOINC ...).
WELL_KNOWN_ROOTS = ("1.2.840.10008.", "2.16.840.1.113883.6.")

_DATE = re.compile(r"\d{8}")  # PS3.5 6.2, DA; the older dotted form is refused
# PS3.5 6.2, DT: a full date, then optional time, fraction and zone. Partial dates are refused.
_DATETIME = re.compile(r"(\d{8})((?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)")


@dataclass(frozen=True, slots=True)
class Subject:
    """A patient as the repository knows them: pseudonym, and how many days every date moves (negative: back)."""

    pseudonym: Pseudonym
    days: int


def keyed_digest(key: bytes, domain: str, value: str) -> bytes:
    """HMAC-SHA256 of ``value`` under ``key``; ``domain`` keeps uses of one key apart."""
    return hmac.new(key, f"{domain}\0{value}".encode(), hashlib.sha256).digest()


def is_well_known(uid: str) -> bool:
    """Whether the UID is part of the Standard or of a published code system."""
    return uid.startswith(WELL_KNOWN_ROOTS)


def pseudo_uid(key: bytes, original: OriginalUid | str) -> PseudoUid:
    """``2.25.`` and the first 128 bits of the keyed hash; well-known UIDs are returned as they are."""
    uid = str(original).strip("\0 ")
    if not uid or is_well_known(uid):
        return PseudoUid(uid)
    return PseudoUid(f"2.25.{int.from_bytes(keyed_digest(key, 'uid', uid)[:16], 'big')}")


def shift_date(value: str, days: int) -> str:
    """A DA value moved by ``days``; empty where the value is not one whole valid date."""
    text = value.strip()
    if not _DATE.fullmatch(text):
        return ""
    try:
        moved = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:])) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def shift_datetime(value: str, days: int) -> str:
    """A DT value with its date moved by ``days``, time and zone kept; empty where the date is not whole and valid."""
    match = _DATETIME.fullmatch(value.strip())
    if not match:
        return ""
    date = shift_date(match[1], days)
    return date + match[2] if date else ""
