"""The workstation and the PACS speak real DICOM to each other, and the PACS misbehaves when told to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from subprocess import DEVNULL, PIPE

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import CTImageStorage, JPEGLSLossless, MRImageStorage

from dicomnode.errors import InputError, PeerError, PeerRefused
from dicomnode.testing import Pacs, Workstation, free_port, sample_study, write_study


@pytest.fixture
def pacs():
    with Pacs() as running:
        yield running


def send(pacs, instances):
    return Workstation(timeout=5).send(instances, pacs.host, pacs.port, pacs.ae_title)


def test_echo_is_answered(pacs):
    assert Workstation().echo(pacs.host, pacs.port, "PACS") == 0


def test_a_study_arrives_as_it_was_sent(pacs):
    study = sample_study(3, matrix=64)
    assert send(pacs, study) == [0, 0, 0]
    pacs.wait_for(3)
    assert [d.SOPInstanceUID for d in pacs.datasets()] == [d.SOPInstanceUID for d in study]
    assert pacs.datasets()[1].PixelData == study[1].PixelData


def test_files_and_compressed_objects_of_several_classes_go_over_one_association(pacs, tmp_path):
    paths = write_study(sample_study(1, matrix=64, transfer_syntax=JPEGLSLossless), tmp_path)
    assert send(pacs, [*paths, get_testdata_file("MR_small.dcm"), *sample_study(1, matrix=64)]) == [0, 0, 0]
    kinds = [(d.Modality, d.file_meta.TransferSyntaxUID == JPEGLSLossless) for d in pacs.datasets()]
    assert kinds == [("CT", True), ("MR", False), ("CT", False)]


def test_received_files_lie_in_the_given_folder_under_names_that_tell_nothing(tmp_path):
    with Pacs(folder=tmp_path / "in") as pacs:
        send(pacs, sample_study(2, matrix=64))
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["000001.dcm", "000002.dcm"]
    assert dcmread(tmp_path / "in" / "000001.dcm").Modality == "CT"


def test_a_refusing_pacs_rejects_and_takes_again_later(pacs):
    pacs.refuse = True
    with pytest.raises(PeerRefused):
        send(pacs, sample_study(1, matrix=64))
    with pytest.raises(PeerRefused):
        Workstation().echo(pacs.host, pacs.port, "PACS")
    pacs.refuse = False
    assert send(pacs, sample_study(1, matrix=64)) == [0]


def test_a_full_pacs_answers_a700_and_keeps_nothing(pacs):
    pacs.status = 0xA700
    assert send(pacs, sample_study(2, matrix=64)) == [0xA700, 0xA700]
    assert pacs.received == []


def test_a_warning_is_a_kept_object(pacs):
    pacs.status = 0xB000
    assert send(pacs, sample_study(1, matrix=64)) == [0xB000]
    assert len(pacs.received) == 1


def test_a_slow_pacs_answers_late(pacs):
    pacs.delay_s = 0.3
    begin = time.monotonic()
    assert send(pacs, sample_study(1, matrix=64)) == [0]
    assert time.monotonic() - begin >= 0.3


def test_a_pacs_of_few_classes_leaves_the_others_unsent():
    with Pacs(sop_classes=[MRImageStorage]) as pacs:
        ct, mr = sample_study(1, matrix=64)[0], sample_study(1, matrix=64, modality="MR")[0]
        assert send(pacs, [ct, mr]) == [0x0122, 0]
        assert [d.SOPClassUID for d in pacs.datasets()] == [MRImageStorage]
        assert ct.SOPClassUID == CTImageStorage


def test_waiting_ends_when_the_object_comes_or_when_time_is_up(pacs):
    with pytest.raises(TimeoutError, match="0 of 1"):
        pacs.wait_for(1, timeout=0.1)
    sender = threading.Timer(0.2, send, (pacs, sample_study(1, matrix=64)))
    sender.start()
    assert len(pacs.wait_for(1, timeout=10)) == 1
    sender.join()


def test_an_object_with_no_answer_has_no_status(pacs):
    pacs.delay_s = 2.5
    study = sample_study(2, matrix=64)
    assert Workstation(timeout=0.5).send(study, pacs.host, pacs.port, "PACS") == [None, None]


def test_nobody_listening_is_a_peer_error():
    with pytest.raises(PeerError):
        Workstation(timeout=2).send(sample_study(1, matrix=64), "127.0.0.1", free_port(), "PACS")


def test_a_taken_port_is_a_peer_error(pacs):
    with pytest.raises(PeerError, match="cannot be listened on"):
        Pacs(port=pacs.port).start()


def test_a_file_that_is_not_dicom_is_an_input_error(pacs, tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("hello")
    with pytest.raises(InputError, match="not a DICOM file"):
        send(pacs, [path])


def test_a_pacs_that_dies_is_waited_for_once(tmp_path):
    code = (
        "from dicomnode.testing import Pacs\n"
        "with Pacs() as pacs:\n    pacs.delay_s = 0.3\n    print(pacs.port, flush=True)\n"
        "    pacs.wait_for(2, timeout=60)\n    print('the first is answered', flush=True)\n    input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as dying:
        port = int(dying.stdout.readline())
        threading.Thread(target=lambda: dying.stdout.readline() and dying.kill(), daemon=True).start()
        began = time.monotonic()
        statuses = Workstation(timeout=4).send(sample_study(20, matrix=32), "127.0.0.1", port)
        waited = time.monotonic() - began
    answered = statuses.count(0)
    assert 0 < answered < 10
    assert statuses == [0] * answered + [None] * (20 - answered)
    assert waited < 3 * 4  # not once for each of the others
