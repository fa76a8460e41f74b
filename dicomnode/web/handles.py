"""Opaque names of cases in URLs: bound to one result, made and read without a table, worth nothing elsewhere.

AES-SIV (RFC 5297) of the study's row with the result as associated data: the same case has the same name within a
result and another in every other, and a name that was not made here does not open. Part of the study's UID goes in, so
that a row given to another study after a removal does not make an old name lead there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

QUERY = "query"  # the handle of the query itself
KEY_BYTES = 32
_CONTENT = struct.Struct(">Q6s")
_LENGTH = 40  # characters: base64 of 16 bytes of tag and 14 of content


def _mark(study: str) -> bytes:
    return hashlib.sha256(study.encode()).digest()[:6]


class Handles:
    """Makes and opens handles.

    Parameters
    ----------
    key : bytes
        32 bytes; the same in every web process of the node.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESSIV(key)

    def make(self, result_id: str, row: int, study: str) -> str:
        """The handle of a study within a result."""
        sealed = self._cipher.encrypt(_CONTENT.pack(row, _mark(study)), [result_id.encode()])
        return base64.urlsafe_b64encode(sealed).decode()

    def open(self, result_id: str, handle: str) -> Named | None:
        """What a handle names; None where it was not made for this result."""
        if len(handle) != _LENGTH:
            return None
        try:
            sealed = base64.b64decode(handle.encode("ascii"), altchars=b"-_", validate=True)
            row, mark = _CONTENT.unpack(self._cipher.decrypt(sealed, [result_id.encode()]))
        except (InvalidTag, binascii.Error, UnicodeEncodeError):
            return None
        return Named(row, mark)


class Named:
    """A study's row, and a mark that its UID must have."""

    __slots__ = ("_mark", "row")

    def __init__(self, row: int, mark: bytes) -> None:
        self.row = row
        self._mark = mark

    def is_of(self, study: str) -> bool:
        """Whether the row still holds the study that the handle was made for."""
        return _mark(study) == self._mark
