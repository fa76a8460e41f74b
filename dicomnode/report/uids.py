"""Deterministic UIDs of what the node sends, so that a resend is the same object and never a second one.

Pure functions: ``namespace`` is the caller's secret (it keeps the UIDs of two sites apart and cannot be guessed
back). Form ``2.25.`` + 128 bits, PS3.5 B.2. Nothing is read from clocks, files or random sources.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum

UUID_BITS = 128


class Kind(StrEnum):
    """What the node sends back; each kind has its own series in the query study."""

    SR = "sr"
    CONTACT_SHEET = "contact-sheet"
    PDF = "pdf"

    @property
    def series_number(self) -> int:
        """Series Number of the kind, a constant of the conformance statement."""
        return {Kind.SR: 9901, Kind.CONTACT_SHEET: 9910, Kind.PDF: 9912}[self]


def _derived(namespace: str, *parts: str) -> str:
    # Length before each part: ("ab", "c") and ("a", "bc") must not meet.
    message = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)
    digest = hmac.new(namespace.encode(), message, hashlib.sha256).digest()
    return f"2.25.{int.from_bytes(digest[: UUID_BITS // 8], 'big')}"


def series_uid(study_uid: str, kind: Kind, *, namespace: str) -> str:
    """Series Instance UID of one kind of object in one study: every answer to that study joins the same series."""
    return _derived(namespace, "series", study_uid, kind.value)


def instance_uid(answer_id: str, sop_class_uid: str, *, namespace: str) -> str:
    """SOP Instance UID of an answer as one SOP class.

    The class is part of the derivation: the same UID under another SOP Class would be illegal (PS3.5 section 9).
    """
    return _derived(namespace, "instance", answer_id, sop_class_uid)


def subject_uid(pseudonym: str) -> str:
    """Subject UID (121028) of a repository patient; the pseudonym is public already, so no secret is needed."""
    return _derived("subject", pseudonym)
