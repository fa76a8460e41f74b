"""A DICOM client that can stop at any byte: PDUs written by hand, no library that would finish them politely.

Facts: PS3.8 9.3 (PDUs), PS3.7 9.3 and annex E (commands).
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom.dsutils import encode

HOST = "127.0.0.1"
VERIFICATION = "1.2.840.10008.1.1"
APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
IMPLEMENTATION = b"1.2.826.0.1.3680043.9.3811.1"
MAX_LENGTH = 16384
ACCEPTED, REJECTED, DATA, RELEASED = 2, 3, 4, 6  # types of the PDUs that may come back
LOCAL_LIMIT_EXCEEDED = b"\x00\x02\x03\x02"  # A-ASSOCIATE-RJ: transient, by the presentation provider (table 9-21)
ECHO_ID, STORE_ID = 1, 3  # presentation contexts
RELEASE_REQUEST = b"\x05\x00\x00\x00\x00\x04" + bytes(4)
ECHO_RQ, STORE_RQ = 0x0030, 0x0001
NO_DATA_SET, DATA_SET = 0x0101, 0x0001


def _item(kind: int, data: bytes) -> bytes:
    return bytes([kind, 0]) + len(data).to_bytes(2, "big") + data


def _pdu(kind: int, data: bytes) -> bytes:
    return bytes([kind, 0]) + len(data).to_bytes(4, "big") + data


def _context(number: int, sop_class: str, syntax: str) -> bytes:
    return _item(0x20, bytes([number, 0, 0, 0]) + _item(0x30, sop_class.encode()) + _item(0x40, syntax.encode()))


def association_request(calling: str = "WORKSTATION", called: str = "DICOMNODE") -> bytes:
    """A-ASSOCIATE-RQ for C-ECHO and CT storage (PS3.8 9.3.2)."""
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    contexts = _context(ECHO_ID, VERIFICATION, ImplicitVRLittleEndian)
    contexts += _context(STORE_ID, CTImageStorage, ExplicitVRLittleEndian)
    user = _item(0x50, _item(0x51, MAX_LENGTH.to_bytes(4, "big")) + _item(0x52, IMPLEMENTATION))
    return _pdu(1, b"\x00\x01\x00\x00" + titles + bytes(32) + _item(0x10, APPLICATION_CONTEXT) + contexts + user)


def data_pdu(context: int, data: bytes, *, command: bool, last: bool) -> bytes:
    """P-DATA-TF with one fragment (PS3.8 9.3.5 and annex E.2)."""
    value = bytes([context, command | last << 1]) + data
    return _pdu(4, len(value).to_bytes(4, "big") + value)


def _command(elements: Dataset) -> bytes:
    body = encode(elements, is_implicit_vr=True, is_little_endian=True)
    assert body is not None
    return b"\x00\x00\x00\x00\x04\x00\x00\x00" + len(body).to_bytes(4, "little") + body


def echo_request() -> bytes:
    """C-ECHO-RQ (PS3.7 9.3.5)."""
    ds = Dataset()
    ds.AffectedSOPClassUID = VERIFICATION
    ds.CommandField, ds.MessageID, ds.CommandDataSetType = ECHO_RQ, 1, NO_DATA_SET
    return data_pdu(ECHO_ID, _command(ds), command=True, last=True)


def store_request() -> bytes:
    """C-STORE-RQ of an instance whose data set is to follow (PS3.7 9.3.1)."""
    ds = Dataset()
    ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID = CTImageStorage, generate_uid()
    ds.CommandField, ds.MessageID, ds.Priority, ds.CommandDataSetType = STORE_RQ, 1, 0, DATA_SET
    return data_pdu(STORE_ID, _command(ds), command=True, last=True)


class Client:
    """A TCP connection to the node; closed at the end without a word."""

    def __init__(self, port: int, timeout: float = 30.0) -> None:
        self.body = b""  # of the PDU received last
        self.socket = socket.create_connection((HOST, port), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of these bytes."""
        self.socket.sendall(data)

    def receive(self) -> int:
        """Read one PDU; its type, 0 where the node has closed the connection."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0
        self.body = self._exactly(int.from_bytes(head[2:], "big"))
        return head[0]

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                part = self.socket.recv(length - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                break
            data += part
        return data

    def associate(self) -> int:
        """Ask for an association; the type of the answer."""
        self.send(association_request())
        return self.receive()

    def wait_closed(self, seconds: float) -> bool:
        """Whether the node closes the connection in time."""
        self.socket.settimeout(seconds)
        try:
            while self.receive():
                continue
        except TimeoutError:
            return False
        return True


def echo_once(port: int) -> int:
    """Association, C-ECHO, release. The type of the PDU that ended it early, ``RELEASED`` where all went well."""
    with Client(port) as client:
        if (answer := client.associate()) != ACCEPTED:
            return answer
        client.send(echo_request())
        if (answer := client.receive()) != DATA:
            return answer
        client.send(RELEASE_REQUEST)
        return client.receive()
