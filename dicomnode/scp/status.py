"""Status codes the node answers with, and reasons for rejecting an association.

DIMSE statuses: PS3.7 annex C, PS3.4 tables B.2-1 and C.4-1. Rejections: PS3.8 table 9-21, as (result, source, reason).
"""

from __future__ import annotations

from typing import NamedTuple

SUCCESS = 0x0000  # PS3.7 C.1.1
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.14
NOT_AUTHORISED = 0x0124  # PS3.7 C.5.13
OUT_OF_RESOURCES = 0xA700  # PS3.4 tables B.2-1 and C.4-1
CANNOT_UNDERSTAND = 0xC000  # PS3.4 table B.2-1; "unable to process" in table C.4-1
IDENTIFIER_MISMATCH = 0xA900  # PS3.4 table C.4-1
CANCELLED = 0xFE00  # PS3.4 table C.4-1
PENDING = 0xFF00  # PS3.4 table C.4-1: a match, all optional keys served
PENDING_UNSERVED_KEYS = 0xFF01  # PS3.4 table C.4-1: a match, some optional key is not served


class Rejection(NamedTuple):
    """An A-ASSOCIATE-RJ: result, source, reason (PS3.8 table 9-21)."""

    result: int
    source: int
    reason: int


CALLING_AE_TITLE_NOT_RECOGNISED = Rejection(1, 1, 3)
CALLED_AE_TITLE_NOT_RECOGNISED = Rejection(1, 1, 7)
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2)  # transient: the peer may try again
