"""What the node sends: files as they are, and errors that say whether another try makes sense."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from dicomnode.errors import InputError, PeerError, PeerRefused
from dicomnode.scu.send import Timeouts, accepts, echo, send_files

QUICK = Timeouts(connect=3, association=3, response=3)
CT = Path(get_testdata_file("CT_small.dcm"))
MR = Path(get_testdata_file("MR_small.dcm"))


class Peer(NamedTuple):
    port: int
    name: str = "archive"
    ae_title: str = "PACS"
    host: str = "127.0.0.1"


@pytest.fixture
def archive():
    """A storage SCP that answers with the statuses given and keeps what it got."""
    servers = []

    def start(*statuses: int, contexts=(CTImageStorage, Verification), calling=(), delay=None):
        got: list[bytes] = []
        left = list(statuses)

        def store(event):
            got.append(event.encoded_dataset(include_meta=False))
            if delay is not None:
                delay.wait(10)
            return left.pop(0) if left else 0

        ae = AE(ae_title="PACS")
        ae.require_calling_aet = list(calling)
        for context in contexts:
            ae.add_supported_context(context, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
        servers.append(server)
        return Peer(server.socket.getsockname()[1]), got

    yield start
    for server in servers:
        server.shutdown()


def data_set_bytes(path: Path) -> bytes:
    return path.read_bytes()[144 + dcmread(path).file_meta.FileMetaInformationGroupLength :]


def test_a_file_and_bytes_arrive_exactly_as_they_are(archive):
    peer, got = archive()
    send_files([CT, CT.read_bytes()], peer, "NODE", QUICK)
    assert got == [data_set_bytes(CT)] * 2


def test_a_file_larger_than_a_pdu_arrives_whole(archive, tmp_path):
    peer, got = archive()
    ds = dcmread(CT)
    ds.NumberOfFrames = 40
    ds.PixelData = ds.PixelData * 40
    ds.save_as(tmp_path / "large.dcm")
    send_files([tmp_path / "large.dcm"], peer, "NODE", QUICK)
    assert got == [data_set_bytes(tmp_path / "large.dcm")]


def test_an_echo_is_answered(archive):
    peer, _ = archive()
    assert 0 < echo(peer, "NODE", QUICK) < 3


def test_what_a_peer_accepts_is_asked_without_sending(archive):
    peer, got = archive(contexts=(EnhancedSRStorage, Verification))
    assert accepts(peer, "NODE", EnhancedSRStorage, QUICK)
    assert not accepts(peer, "NODE", ComprehensiveSRStorage, QUICK)
    bare, _ = archive(contexts=(EnhancedSRStorage,))  # not even C-ECHO
    assert not accepts(bare, "NODE", ComprehensiveSRStorage, QUICK)
    assert got == []


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0111, 0x0107])
def test_success_warnings_and_duplicates_count_as_delivered(archive, status):
    peer, got = archive(status)
    send_files([CT], peer, "NODE", QUICK)
    assert len(got) == 1


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0110, 0x0213])
def test_a_temporary_status_is_worth_another_try(archive, status):
    peer, _ = archive(status)
    with pytest.raises(PeerError, match=f"archive.*{status:04X}") as error:
        send_files([CT], peer, "NODE", QUICK)
    assert not isinstance(error.value, PeerRefused)


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0xC123, 0x0122, 0x0124, 0x0117])
def test_a_final_status_is_a_refusal(archive, status):
    peer, _ = archive(status)
    with pytest.raises(PeerRefused, match=f"archive.*{status:04X}"):
        send_files([CT], peer, "NODE", QUICK)


def test_what_a_peer_refuses_does_not_hold_back_the_rest(archive):
    peer, got = archive(0xA900)
    with pytest.raises(PeerRefused, match=r"refused 2 of 4.*(A900).*MR Image Storage not accepted") as error:
        send_files([CT, MR, CT, CT], peer, "NODE", QUICK)
    assert len(got) == 3
    assert dcmread(CT).SOPInstanceUID not in str(error.value)
    assert dcmread(CT).PatientID not in str(error.value)


def test_a_peer_that_accepts_nothing_refuses(archive):
    peer, _ = archive(contexts=(Verification,))
    with pytest.raises(PeerRefused, match="CT Image Storage not accepted"):
        send_files([CT], peer, "NODE", QUICK)


def test_a_closed_port_is_worth_another_try():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for call in (lambda p: echo(p, "NODE", QUICK), lambda p: send_files([CT], p, "NODE", QUICK)):
        with pytest.raises(PeerError, match=f"archive cannot be reached at 127.0.0.1 port {port}") as error:
            call(Peer(port))
        assert not isinstance(error.value, PeerRefused)


def test_a_host_without_an_address_is_worth_another_try():
    with pytest.raises(PeerError, match="cannot be reached"):
        echo(Peer(104, host="no.such.host.invalid"), "NODE", QUICK)


def test_a_port_that_says_nothing_is_worth_another_try():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PeerError, match="did not answer"):
        echo(Peer(silent.getsockname()[1]), "NODE", Timeouts(connect=1, association=1, response=1))


def test_a_peer_that_does_not_know_us_is_worth_another_try_once_it_does(archive):
    peer, _ = archive(calling=["SOMEBODY"])
    with pytest.raises(PeerError, match="reason 3") as error:
        echo(peer, "NODE", QUICK)
    assert not isinstance(error.value, PeerRefused)
    assert "register our AE title" in error.value.advice


def test_a_peer_that_answers_too_late_is_worth_another_try(archive):
    never = threading.Event()
    peer, _ = archive(delay=never)
    with pytest.raises(PeerError, match="timed out or aborted"):
        send_files([CT, CT], peer, "NODE", Timeouts(connect=2, association=2, response=0.5))
    never.set()


def test_more_kinds_of_object_than_an_association_can_carry_need_two(archive):
    peer, got = archive(contexts=(Verification, CTImageStorage))
    items = []
    for number in range(130):
        ds = dcmread(CT)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = f"1.2.826.0.1.99999.{number}"
        ds.SOPInstanceUID = generate_uid()
        out = io.BytesIO()
        ds.save_as(out)
        items.append(out.getvalue())
    with pytest.raises(PeerRefused, match="refused 130 of 131"):
        send_files([*items, CT], peer, "NODE", QUICK)
    assert len(got) == 1


def test_files_that_cannot_be_sent_are_found_before_anything_is_sent(archive, tmp_path):
    peer, got = archive()
    (tmp_path / "text.dcm").write_text("not DICOM")
    (tmp_path / "meta-only.dcm").write_bytes(
        CT.read_bytes()[: 144 + dcmread(CT).file_meta.FileMetaInformationGroupLength]
    )
    for name, line in (
        ("text.dcm", "not a DICOM file"),
        ("meta-only.dcm", "no data set"),
        ("gone.dcm", "cannot be read"),
    ):
        with pytest.raises(InputError, match=line):
            send_files([CT, tmp_path / name], peer, "NODE", QUICK)
    assert got == []
