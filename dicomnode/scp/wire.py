"""The few bytes that every stored object costs on the wire and in its file, read and written without a data set.

For 0.5 MB of pixels the general way through pydicom and pynetdicom costs more than the pixels themselves; what is here
is exactly what a C-STORE needs. Facts: PS3.8 9.3.5 (P-DATA-TF), PS3.7 9.3.1.2 (C-STORE-RSP), PS3.10 7.1 (file meta).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pydicom.uid import UID

from dicomnode.domain import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

P_DATA_TF = 0x04
IS_COMMAND, IS_LAST = 1, 2  # bits of the message control header, PS3.8 annex E.2
_PREAMBLE = b"\0" * 128 + b"DICM"
_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_PLAIN_UID = re.compile(rb"([0-9.]{1,64})\0?")
_PDU_HEADER, _PDV_HEADER, _ELEMENT_HEADER = 6, 5, 8
_NUMBERS = (0x0100, 0x0110, 0x0700, 0x0800)  # command field, message ID, priority, data set type
_US_BYTES = 2
_LOWEST_PRIORITY = 2

Fragment = tuple[int, memoryview]


class DataPdu:
    """A received P-DATA-TF PDU as views of its own bytes: nothing of it is copied. Used like pynetdicom's P_DATA."""

    __slots__ = ("presentation_data_value_list",)

    def __init__(self, data: memoryview | bytearray) -> None:
        """Split ``data``, a whole PDU, into (context id, control header and fragment).

        Raises
        ------
        ValueError
            The lengths of its items do not add up.
        """
        view, at = memoryview(data), _PDU_HEADER
        found: list[Fragment] = []
        while at < len(view):
            if len(view) - at < _PDV_HEADER + 1:
                raise ValueError("P-DATA-TF: an item is cut off")
            length, context_id = struct.unpack_from(">IB", view, at)
            end = at + 4 + length
            if length < 2 or end > len(view):
                raise ValueError("P-DATA-TF: an item's length is not possible")
            found.append((context_id, view[at + _PDV_HEADER : end]))
            at = end
        self.presentation_data_value_list: Sequence[Fragment] = found


def _padded(text: str, pad: bytes) -> bytes:
    value = text.encode("ascii")
    return value + pad * (len(value) % 2)


def _explicit(element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def _implicit(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def file_head(sop_class: UID, sop_uid: UID, transfer_syntax: UID) -> bytes:
    """Preamble and file meta information of a stored object.

    Raises
    ------
    ValueError
        A UID is empty or not of the characters that a UID has.
    """
    if not (sop_class and sop_uid and transfer_syntax):
        raise ValueError("a UID is empty")
    meta = b"".join(
        (
            struct.pack("<HH2sHI2s", 2, 1, b"OB", 0, 2, b"\0\1"),
            _explicit(0x02, b"UI", _padded(sop_class, b"\0")),
            _explicit(0x03, b"UI", _padded(sop_uid, b"\0")),
            _explicit(0x10, b"UI", _padded(transfer_syntax, b"\0")),
            _explicit(0x12, b"UI", _padded(IMPLEMENTATION_CLASS_UID, b"\0")),
            _explicit(0x13, b"SH", _padded(IMPLEMENTATION_VERSION_NAME, b" ")),
        )
    )
    return _PREAMBLE + _explicit(0x00, b"UL", struct.pack("<I", len(meta))) + meta


class StoreRequest(NamedTuple):
    """What a C-STORE request says before its data set."""

    message_id: int
    priority: int
    sop_class: str
    sop_uid: str


def store_request(command: memoryview) -> StoreRequest | None:
    """Read a whole command set (PS3.7 6.3.1: implicit VR little endian) that is a plain C-STORE request.

    None for every other command and for whatever is not as PS3.7 9.3.1.1 has it: pynetdicom judges those.
    """
    found: dict[int, bytes] = {}
    at = 0
    while at < len(command):
        if len(command) - at < _ELEMENT_HEADER:
            return None
        group, element, length = struct.unpack_from("<HHI", command, at)
        at += _ELEMENT_HEADER
        if group or element in found or length > len(command) - at:
            return None
        found[element] = bytes(command[at : at + length])
        at += length
    numbers = [int.from_bytes(found.get(e, b""), "little") for e in _NUMBERS if len(found.get(e, b"")) == _US_BYTES]
    uids = [_PLAIN_UID.fullmatch(found.get(e, b"")) for e in (0x0002, 0x1000)]
    if len(numbers) < len(_NUMBERS) or uids[0] is None or uids[1] is None:
        return None
    kind, message_id, priority, data_set = numbers
    if kind != _C_STORE_RQ or data_set == _NO_DATA_SET or priority > _LOWEST_PRIORITY:
        return None
    return StoreRequest(message_id, priority, uids[0][1].decode("ascii"), uids[1][1].decode("ascii"))


def store_response(message_id: int, sop_class: UID, sop_uid: UID, status: int) -> bytes:
    """A C-STORE response as the one fragment of its command set, control header first."""
    command = b"".join(
        (
            _implicit(0x0002, _padded(sop_class, b"\0")),
            _implicit(0x0100, struct.pack("<H", _C_STORE_RSP)),
            _implicit(0x0120, struct.pack("<H", message_id)),
            _implicit(0x0800, struct.pack("<H", _NO_DATA_SET)),
            _implicit(0x0900, struct.pack("<H", status)),
            _implicit(0x1000, _padded(sop_uid, b"\0")),
        )
    )
    head = bytes([IS_COMMAND | IS_LAST])
    return head + _implicit(0x0000, struct.pack("<I", len(command))) + command
