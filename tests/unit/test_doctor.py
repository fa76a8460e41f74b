"""Each check of the doctor: the thing is broken for real, and the advice says how to mend it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders import JPEG2000LosslessDecoder

from dicomnode import doctor
from dicomnode.doctor import CHECKS, Diagnosis, State, examine, route
from dicomnode.domain import Pseudonym, PseudoUid, SliceRef
from dicomnode.node import Node, packs_folder
from dicomnode.telemetry.heartbeat import beat
from dicomnode.testing import Pacs, free_port, sample_study, write_study


def one(node: Node, check: str) -> Diagnosis:
    (found,) = examine(node, check)
    assert found.check == check
    assert "\n" not in found.line
    return found


def failure(node: Node, check: str) -> Diagnosis:
    found = one(node, check)
    assert found.state is State.FAIL, found
    assert found.advice
    return found


def add_vectors(node: Node, study: str = "2.25.1") -> None:
    refs = [SliceRef(PseudoUid(f"{study}.{n}"), PseudoUid(study), PseudoUid(study), Pseudonym("DN-A")) for n in (1, 2)]
    vectors = np.eye(2, node.embedder.dim, dtype=np.float32)
    node.index.add(refs, vectors)


def test_a_sound_node_has_nothing_to_mend(make_node, tmp_path):
    with Pacs() as pacs:
        node = make_node(tmp_path, pacs)
        _ = node.vault, node.catalogue
        found = list(examine(node))
    assert {d.check for d in found} == {name for name, _ in CHECKS}
    assert [d for d in found if d.state is State.FAIL] == []


def test_a_node_before_its_first_start_has_nothing_to_mend_and_examining_makes_nothing(node):
    for check in ("data_dir", "permissions", "disk", "clock", "vault", "decoders", "ports"):
        assert one(node, check).state in (State.OK, State.WARN)
    assert not node.data_dir.exists()


def test_sign_in_without_a_user_is_told_with_the_command_that_adds_one(make_node, tmp_path):
    node = make_node(tmp_path, web={"auth": {"method": "users"}})
    found = one(node, "sign-in")
    assert (found.state, found.advice) == (State.WARN, "dicomnode user add NAME --admin")
    assert not node.data_dir.exists()
    node.users.add("anna", "correct horse battery")
    assert one(node, "sign-in").state is State.OK


def test_passwords_that_would_cross_a_network_in_clear_are_told(make_node, tmp_path):
    web = {"auth": {"method": "users"}, "host": "0.0.0.0", "public_url": "http://cases.hospital.example"}
    node = make_node(tmp_path, web=web)
    node.users.add("anna", "correct horse battery")
    assert "TLS" in one(node, "sign-in").advice


LAN = "10.0.0.21"
READING = {"name": "reading", "ae_title": "READING1", "host": LAN, "port": 104}


def warnings(node: Node) -> str:
    found = [d for d in examine(node, "settings") if d.state is not State.OK]
    assert all(d.state is State.WARN and d.advice for d in found)
    return "\n".join(d.line for d in found)


def test_settings_that_contradict_nothing_are_right(node):
    assert one(node, "settings").state is State.OK


def test_a_peer_elsewhere_cannot_reach_a_node_on_loopback(make_node, tmp_path):
    assert "reading can never reach the node" in warnings(make_node(tmp_path, dicom={"peers": [READING]}))
    assert warnings(make_node(tmp_path, dicom={"peers": [READING], "host": "0.0.0.0"})) == ""


def test_a_link_that_leads_readers_to_their_own_machine_is_told(make_node, tmp_path):
    dicom = {"peers": [{**READING, "results": True}], "host": "0.0.0.0"}
    assert "the link in reports for reading would lead to 127.0.0.1" in warnings(make_node(tmp_path, dicom=dicom))
    web = {"public_url": "https://cases.hospital.example"}
    assert warnings(make_node(tmp_path, dicom=dicom, web=web)) == ""


def test_peers_that_share_an_ae_title_are_told(make_node, tmp_path):
    peers = [{"name": n, "ae_title": "PACS", "port": 104} for n in ("one", "two")]
    assert "peers one, two have the same AE title PACS" in warnings(make_node(tmp_path, dicom={"peers": peers}))


def test_a_relative_data_folder_is_told_by_where_it_is(make_node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = make_node(tmp_path, node={"data_dir": "here"})
    assert f"'here' is relative: here it is {tmp_path / 'here'}" in warnings(node)
    assert one(node, "data_dir").line == str(tmp_path / "here")


def test_whether_a_node_runs_on_the_folder_is_told(node):
    assert one(node, "node").line == f"no node is running on {node.data_dir}"
    beat(node.runtime, "receiver-0", state="serving", ready=True)
    assert one(node, "node").line == f"running on {node.data_dir}: receiver-0"


def test_a_data_folder_where_a_file_stands_is_named(make_node, tmp_path):
    (tmp_path / "file").write_text("")
    found = failure(make_node(tmp_path / "file"), "data_dir")
    assert str(tmp_path / "file") in found.line
    assert "[node] data_dir" in found.advice


def test_a_data_folder_on_a_file_system_that_takes_nothing_is_named(make_node):
    assert "/proc" in failure(make_node(Path("/proc/dicomnode")), "data_dir").line


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_data_folder_of_another_user_is_named(make_node, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "chmod" in failure(make_node(tmp_path / "var"), "data_dir").advice
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(("what", "mode", "advice"), [("identified", 0o755, "700"), ("vault.key", 0o640, "600")])
def test_what_others_can_read_is_named_with_the_command_that_closes_it(node, what, mode, advice):
    _ = node.vault
    (node.data_dir / what).chmod(mode)
    found = failure(node, "permissions")
    assert found.advice == f"chmod {advice} {node.data_dir / what}"
    (node.data_dir / what).chmod(int(advice, 8))
    assert one(node, "permissions").state is State.OK


def test_a_key_that_lies_elsewhere_is_looked_at_too(make_node, tmp_path):
    key = tmp_path / "key"
    key.write_text("00" * 32)
    key.chmod(0o644)
    assert str(key) in failure(make_node(tmp_path, vault={"key_file": str(key)}), "permissions").advice


def test_a_disk_with_little_room_is_a_warning_and_with_less_a_failure(node, monkeypatch):
    monkeypatch.setattr(doctor, "WARN_FREE_BYTES", 1 << 60)
    assert one(node, "disk").state is State.WARN
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 60)
    assert "A700" in failure(node, "disk").advice


def test_a_clock_behind_the_nodes_own_files_is_named(node):
    _ = node.catalogue
    ahead = time.time() + 3600
    os.utime(node.data_dir / "catalogue.sqlite3", (ahead, ahead))
    found = failure(node, "clock")
    assert "behind" in found.line
    assert "NTP" in found.advice


def test_a_clock_that_was_never_set_is_named(node, monkeypatch):
    monkeypatch.setattr(doctor, "EARLIEST", time.time() + 3600)
    assert "timedatectl" in failure(node, "clock").advice


def test_a_vault_without_its_key_is_named(make_node, tmp_path):
    _ = make_node(tmp_path).vault
    (tmp_path / "var" / "vault.key").unlink()
    found = failure(make_node(tmp_path), "vault")
    assert "its key is not" in found.line
    assert "restore the key" in found.advice


def test_a_key_without_its_vault_is_named(make_node, tmp_path):
    _ = make_node(tmp_path).vault
    for part in (tmp_path / "var" / "identified").glob("vault.sqlite3*"):
        part.unlink()
    assert "restore the vault" in failure(make_node(tmp_path), "vault").advice


def test_the_key_of_another_vault_and_a_damaged_vault_are_named(make_node, tmp_path):
    _ = make_node(tmp_path).vault
    key = tmp_path / "var" / "vault.key"
    right = key.read_text()
    key.write_text("11" * 32)
    assert failure(make_node(tmp_path), "vault").advice
    key.write_text(right)
    (tmp_path / "var" / "identified" / "vault.sqlite3").write_bytes(b"damage" * 5000)
    assert "cannot be read" in failure(make_node(tmp_path), "vault").line


def test_a_transfer_syntax_that_cannot_be_decoded_is_named(node, monkeypatch):
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    found = failure(node, "decoders")
    assert "JPEG 2000" in found.line
    assert "pip install" in found.advice


def fresh_model(make_node, tmp_path, pack: Path) -> Node:
    """A node that loads its own pack."""
    return make_node(tmp_path, models={"pack": str(pack)})


def test_a_pack_with_one_flipped_bit_is_named(make_node, tmp_path):
    pack = shutil.copytree(packs_folder() / "cenet-xception", tmp_path / "pack")
    with (pack / "weights.safetensors").open("r+b") as f:
        f.seek(-100, os.SEEK_END)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))
    found = failure(fresh_model(make_node, tmp_path, pack), "model")
    assert "weights.safetensors" in found.line


def test_a_pack_that_is_not_there_is_named(make_node, tmp_path):
    found = failure(fresh_model(make_node, tmp_path, tmp_path / "absent"), "model")
    assert found.advice == "known packs: cenet-xception"


def test_a_catalogue_that_is_damaged_is_named_with_what_to_do(make_node, tmp_path):
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "catalogue.sqlite3").write_bytes(b"damage" * 5000)
    node = fresh_model(make_node, tmp_path, packs_folder() / "cenet-xception")
    for check in ("model", "index"):
        found = failure(node, check)
        assert "catalogue" in found.line
        assert "restore it from a copy" in found.advice


def test_a_damaged_vector_segment_is_named_and_rebuild_is_advised(node):
    add_vectors(node)
    assert one(node, "index").state is State.FAIL  # vectors of a study that the catalogue does not know
    (segment,) = [p for p in (node.data_dir / "index").rglob("*") if p.is_file() and p.stat().st_size > 2000]
    data = bytearray(segment.read_bytes())
    data[-5] ^= 1
    segment.write_bytes(data)
    found = failure(node, "index")
    assert segment.stem in found.line
    assert found.advice == "dicomnode index rebuild"


@pytest.mark.parametrize("which", ["dicom", "web"])
def test_a_port_that_another_program_holds_is_named(make_node, tmp_path, which):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = failure(make_node(tmp_path, **{which: {"port": port}}), "ports")
    assert f"[{which}] port {port}" in found.line
    assert f"set [{which}] port" in found.advice


def test_a_port_that_this_node_serves_is_right(make_node, tmp_path):
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        node = make_node(tmp_path, dicom={"port": own.getsockname()[1]})
        beat(node.runtime, "receiver-0", state="serving", ready=True)
        assert one(node, "ports").state is State.OK


def test_an_address_that_this_machine_has_not_is_named(make_node, tmp_path):
    found = failure(make_node(tmp_path, dicom={"host": "192.0.2.1"}), "ports")  # RFC 5737: nobody's
    assert "[dicom] host" in found.advice


def test_a_peer_that_is_down_is_named_with_what_to_look_at(make_node, tmp_path):
    pacs = Pacs(port=free_port())  # never started
    found = failure(make_node(tmp_path, pacs), "peers")
    assert "pacs-1" in found.line
    assert "its PACS" in found.advice


def test_a_peer_that_does_not_know_us_is_named(make_node, tmp_path):
    with Pacs() as pacs:
        node = make_node(tmp_path, pacs)
        assert one(node, "peers").state is State.OK
        pacs.refuse = True
        found = failure(node, "peers")
    assert "DICOMNODE" in found.advice


def test_a_node_whose_results_nobody_takes_is_warned(node):
    found = one(node, "peers")
    assert found.state is State.WARN
    assert "results = true" in found.advice


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, ["de-identified", "searched with", "kept in the repository and answered"]),
        ({"BurnedInAnnotation": "YES"}, ["held in quarantine"]),
        (
            {"RescaleSlope": None, "RescaleIntercept": None},
            ["de-identified", "could not be searched", "alone would be held as not-searchable: none of its slices"],
        ),
    ],
)
def test_the_way_of_a_file_is_told_beforehand(node, tmp_path, attributes, said):
    (file,) = write_study(sample_study(1, matrix=64, **attributes), tmp_path / "study")
    found = list(route(node, file))
    assert len(found) == len(said)
    for diagnosis, words in zip(found, said, strict=True):
        assert words in diagnosis.line
        assert "PHANTOM-0001" not in diagnosis.line + diagnosis.advice


HELD = "sent to DICOMNODE, a study of such images alone would be held as not-searchable: "


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"Modality": "US"}, "US objects hold no CT or MR slices"),
        ({"Modality": "DOE^JANE"}, "such objects hold no CT or MR slices"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizers are passed over"),
        (
            {"SeriesDescription": "Dose Report", "ImageType": ["DERIVED", "SECONDARY"]},
            "a screen of dose or protocol data",
        ),
    ],
)
def test_a_file_whose_study_would_be_held_by_its_headers_is_told_so(node, tmp_path, attributes, why):
    (file,) = write_study(sample_study(1, matrix=64, **attributes), tmp_path / "study")
    passed, held = route(node, file)
    assert (passed.state, passed.line) == (State.OK, "would be de-identified")
    assert held.state is State.FAIL
    assert held.line == f"{HELD}{why}; its de-identified copy would stay in the repository"
    assert "answer_rejected" in held.advice
    assert not node.data_dir.exists()


def test_an_ultrasound_file_is_not_said_to_be_searched_or_answered(node):
    told = list(route(node, Path(get_testdata_file("examples_rgb_color.dcm", download=False))))
    assert [d.state for d in told] == [State.OK, State.FAIL]
    assert "could be searched" not in str(told) and "answered" not in told[1].line


def test_what_would_be_held_follows_what_each_title_is_for(make_node, tmp_path):
    titles = [{"title": role.upper(), "role": role} for role in ("query", "index")]
    settings = {"dicom": {"ae_titles": titles}, "retrieval": {"answer_rejected": True}}
    (file,) = write_study(sample_study(1, matrix=64, Modality="US"), tmp_path / "study")
    _, query, index = route(make_node(tmp_path, **settings), file)
    assert (query.state, index.state) == (State.WARN, State.FAIL)
    assert "QUERY" in query.line and "would be answered as not-searchable: US objects" in query.line
    assert "stay in the repository" not in query.line
    assert "INDEX" in index.line and "would be held as not-searchable" in index.line
    assert "answer_rejected" not in index.advice


def test_a_modality_that_the_model_was_taught_is_searched_and_a_broken_pack_named(make_node, tmp_path):
    pack = tmp_path / "pack"
    shutil.copytree(packs_folder() / "cenet-xception", pack)
    manifest = json.loads((pack / "manifest.json").read_text("utf-8"))
    manifest["about"]["taught"] = [{"modality": "CT", "region": ""}, {"modality": "US", "region": ""}]
    (pack / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    node = make_node(tmp_path, models={"pack": str(pack)})
    (file,) = write_study(sample_study(1, matrix=64, Modality="US"), tmp_path / "study")
    assert [d.state for d in route(node, file)] == [State.OK] * 3
    (pack / "manifest.json").write_text("{", "utf-8")
    *_, told = route(node, file)
    assert told.state is State.FAIL
    assert str(pack) in told.line


def test_the_way_of_a_file_that_is_no_dicom_ends_in_quarantine(node, tmp_path):
    (tmp_path / "x.dcm").write_bytes(b"no")
    (found,) = route(node, tmp_path / "x.dcm")
    assert found.state is State.FAIL
