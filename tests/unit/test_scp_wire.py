"""The bytes written and read without a data set are those that pynetdicom writes and reads."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import dcmread
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from dicomnode.domain import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.scp.wire import DataPdu, StoreRequest, file_head, store_request, store_response

uids = st.integers(1, 10**20).map(lambda n: UID(f"1.2.{n}"))


@settings(max_examples=50, deadline=None)
@given(uids)
def test_the_head_of_a_file_is_what_pynetdicom_would_write(sop_uid: UID) -> None:
    meta = create_file_meta(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=sop_uid,
        transfer_syntax=ExplicitVRLittleEndian,
        implementation_uid=UID(IMPLEMENTATION_CLASS_UID),
        implementation_version=IMPLEMENTATION_VERSION_NAME,
    )
    head = file_head(CTImageStorage, sop_uid, ExplicitVRLittleEndian)
    assert head == b"\0" * 128 + b"DICM" + encode_file_meta(meta)
    assert dcmread(DicomBytesIO(head)).file_meta.MediaStorageSOPInstanceUID == sop_uid


@pytest.mark.filterwarnings("ignore")  # of pydicom, about the UID
@pytest.mark.parametrize("bad", ["", "1.2.é"])
def test_a_uid_that_is_none_makes_no_file(bad: str) -> None:
    with pytest.raises(ValueError, match=r"UID|ascii"):
        file_head(CTImageStorage, UID(bad), ExplicitVRLittleEndian)


@settings(max_examples=50, deadline=None)
@given(uids, st.integers(0, 65535), st.sampled_from([0x0000, 0x0110, 0x0124, 0xA700, 0xC000]))
def test_a_response_is_what_pynetdicom_would_send(sop_uid: UID, message_id: int, status: int) -> None:
    primitive = C_STORE()
    primitive.MessageID = primitive.MessageIDBeingRespondedTo = message_id
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = CTImageStorage, sop_uid
    primitive.Status = status
    message = C_STORE_RSP()
    message.primitive_to_message(primitive)
    ((_, expected),) = next(message.encode_msg(5, 16382)).presentation_data_value_list
    assert store_response(message_id, CTImageStorage, sop_uid, status) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 3, 255]), st.binary(min_size=1, max_size=40)), max_size=5))
def test_a_pdu_is_split_as_pynetdicom_splits_it(fragments: list[tuple[int, bytes]]) -> None:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [list(f) for f in fragments]  # type: ignore[misc]
    pdu = P_DATA_TF()
    pdu.from_primitive(primitive)
    found = DataPdu(bytearray(pdu.encode())).presentation_data_value_list
    assert [(context_id, bytes(data)) for context_id, data in found] == fragments


@pytest.mark.parametrize(
    "items",
    [
        b"\0\0\0",
        struct.pack(">IB", 1, 1),
        struct.pack(">IBB", 1, 1, 2),
        struct.pack(">IBB", 3, 1, 2),
        struct.pack(">IBB", 2**32 - 1, 1, 2),
        struct.pack(">IBB", 2, 1, 2) + b"\0",
    ],
)
def test_a_pdu_whose_lengths_do_not_add_up_is_refused(items: bytes) -> None:
    with pytest.raises(ValueError, match="P-DATA-TF"):
        DataPdu(bytearray(struct.pack(">BBI", 4, 0, len(items)) + items))


def request_bytes(sop_uid: UID, message_id: int = 7, priority: int = 2) -> bytes:
    """The command set of a C-STORE request as pynetdicom writes it."""
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = message_id, priority
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = CTImageStorage, sop_uid
    primitive.DataSet = io.BytesIO(b"12")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    ((_, command),) = next(message.encode_msg(5, 16382)).presentation_data_value_list
    return command[1:]


@settings(max_examples=50, deadline=None)
@given(uids, st.integers(0, 65535), st.integers(0, 2))
def test_a_store_request_is_read_as_pynetdicom_wrote_it(sop_uid: UID, message_id: int, priority: int) -> None:
    found = store_request(memoryview(request_bytes(sop_uid, message_id, priority)))
    assert found == StoreRequest(message_id, priority, CTImageStorage, sop_uid)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.binary(max_size=40))
def test_a_store_request_that_is_cut_or_goes_on_is_never_read_as_another(cut: int, more: bytes) -> None:
    whole = request_bytes(UID("1.2.3"))
    assert store_request(memoryview(whole[:cut] + more)) in (None, store_request(memoryview(whole)))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.replace(b"1.2.3\0", b"1.2.x\0"),  # no UID
        lambda c: c.replace(struct.pack("<HHIH", 0, 0x0800, 2, 1), struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)),
        lambda c: c.replace(struct.pack("<HHIH", 0, 0x0700, 2, 2), struct.pack("<HHIH", 0, 0x0700, 2, 9)),
        lambda c: c + struct.pack("<HHIH", 0, 0x0110, 2, 8),  # a second message ID
        lambda c: c + struct.pack("<HHIH", 8, 0x0018, 2, 8),  # not of the command group
        lambda c: c[:-2],
    ],
)
def test_a_store_request_that_is_not_plain_is_left_to_pynetdicom(change) -> None:
    command = request_bytes(UID("1.2.3"))
    assert change(command) != command
    assert store_request(memoryview(change(command))) is None


def test_another_command_is_left_to_pynetdicom() -> None:
    primitive = C_ECHO()
    primitive.MessageID, primitive.AffectedSOPClassUID = 1, UID("1.2.840.10008.1.1")
    message = C_ECHO_RQ()
    message.primitive_to_message(primitive)
    ((_, command),) = next(message.encode_msg(5, 16382)).presentation_data_value_list
    assert store_request(memoryview(command)[1:]) is None
