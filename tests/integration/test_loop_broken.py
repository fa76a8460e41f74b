"""A node with something broken: it says what, keeps what it receives, and works again once it is mended."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loop import HOST, cases, held, opened, reports, settled, spooled, wait_for

from dicomnode.archive.catalogue import StoredInstance
from dicomnode.archive.records import read_record
from dicomnode.domain import Pseudonym, PseudoUid, SliceRef
from dicomnode.node import packs_folder
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    with Pacs() as pacs:
        yield pacs


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped model pack."""
    return Path(shutil.copytree(packs_folder() / "cenet-xception", tmp_path_factory.mktemp("pack") / "copy"))


@pytest.fixture(scope="module")
def node(pacs: Pacs, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with cases and a search snapshot that is not started yet."""
    base = tmp_path_factory.mktemp("broken")
    findings = sample_repository(base / "repository", 4, slices=4, matrix=64)
    node = RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1, sections=f'[models]\npack = "{pack}"\n')
    done = node.run("index", "add", base / "repository", "--findings", findings)
    assert done.returncode == 0, done.stderr
    yield node
    node.stop()


@pytest.fixture(autouse=True)
def _stopped(node: RunningNode) -> Iterator[None]:
    """Each test starts the node itself; one that fails leaves none behind."""
    yield
    node.stop()


@pytest.fixture
def flipped() -> Iterator[object]:
    """Flips a bit in the middle of a file, and mends it at the end."""
    mended: list[tuple[Path, bytes]] = []

    def flip(path: Path) -> None:
        sound = path.read_bytes()
        mended.append((path, sound))
        middle = len(sound) // 2
        path.chmod(0o600)
        path.write_bytes(sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])

    yield flip
    for path, sound in mended:
        if path.exists():
            path.write_bytes(sound)


def refusal(node: RunningNode) -> tuple[int, str]:
    """Exit status of a ``serve`` that refuses, and the one line that it says."""
    done = node.run("serve")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def advice(node: RunningNode, check: str) -> str:
    """What ``doctor`` advises about a check that fails."""
    found = [c for c in node.json("doctor")["checks"] if c["check"] == check]
    assert [c["state"] for c in found] == ["fail"], found
    return str(found[0]["advice"])


def part_ready(node: RunningNode, part: str) -> bool:
    """What ``/readyz`` says of a part of the node; False while nobody answers."""
    body = node.get("/readyz")[1]
    return bool(body) and bool(json.loads(body)["parts"][part]["ready"])


def test_an_unknown_setting_stops_the_start_and_is_named(node: RunningNode):
    sound = node.settings.read_text("utf-8")
    node.settings.write_text(sound.replace("study_quiet_s", "study_quite_s"), "utf-8")
    code, line = refusal(node)
    node.settings.write_text(sound, "utf-8")
    assert code == 2
    assert "[dicom] study_quite_s: unknown setting" in line


@pytest.mark.parametrize("which", ["dicom", "web"])
def test_a_port_in_use_stops_the_start_and_is_named(node: RunningNode, which: str):
    port = node.dicom_port if which == "dicom" else node.web_port
    with socket.create_server((HOST, port)):
        code, line = refusal(node)
    assert code == 1
    assert str(port) in line
    assert "taken" in line or "in use" in line


@pytest.mark.parametrize(
    ("gone", "stays"), [("vault.key", "identified/vault.sqlite3"), ("identified/vault.sqlite3", "vault.key")]
)
def test_a_vault_without_its_key_and_a_key_without_its_vault_stop_the_start(node: RunningNode, gone: str, stays: str):
    path = node.var / gone
    aside = path.with_name("aside")
    path.rename(aside)
    code, line = refusal(node)
    assert not path.exists(), "none is made in its place"
    doctors = advice(node, "vault")
    aside.rename(path)
    assert code == 1
    assert Path(gone).name in line
    assert (node.var / stays).exists()
    assert doctors


def test_damaged_weights_leave_the_node_receiving_until_they_are_mended(
    node: RunningNode, pacs: Pacs, pack: Path, flipped
):
    flipped(pack / "weights.safetensors")
    node.launch()
    wait_for("the receiver", lambda: part_ready(node, "receiver"))
    study = sample_study(3, seed=951, patient_id="BROKEN-951", matrix=64)
    assert Workstation().send(study, HOST, node.dicom_port) == [0] * 3
    wait_for("a line in the log", lambda: '"code": "model-pack"' in node.log.read_text("utf-8"))
    assert node.get("/readyz")[0] == 503
    assert not part_ready(node, "model")
    assert "weights.safetensors" in node.log.read_text("utf-8")
    assert advice(node, "model")
    assert len(spooled(node)) == 3
    shutil.copyfile(packs_folder() / "cenet-xception" / "weights.safetensors", pack / "weights.safetensors")
    node.wait_ready(90)  # the supervisor has gone on trying
    wait_for("a report", lambda: reports(pacs.received, study[0].StudyInstanceUID))
    settled(node)
    assert node.stop() == 0


def test_damaged_vectors_are_named_and_the_study_is_answered_after_a_rebuild(node: RunningNode, pacs: Pacs, flipped):
    segment = sorted((node.var / "index" / "segments").glob("*.npy"))[0]
    flipped(segment)
    node.start()
    study = sample_study(3, seed=952, patient_id="BROKEN-952", matrix=64)
    assert Workstation().send(study, HOST, node.dicom_port) == [0] * 3
    (item,) = held(node, "failed")  # after half a minute of tries
    assert segment.name in node.log.read_text("utf-8")
    assert "index rebuild" in advice(node, "index")
    assert len(spooled(node)) == 3
    rebuilt = node.json("index", "rebuild")
    assert rebuilt["embedded"] >= 1, "what the segment held is embedded again"
    assert node.run("quarantine", "release", str(item.id)).returncode == 0
    answer = wait_for("a report", lambda: reports(pacs.received, study[0].StudyInstanceUID))[0]
    assert len(cases(answer)) >= 4
    assert node.json("index", "verify") == {"ok": True, "problems": []}
    settled(node)
    assert node.stop() == 0


def add_cases(node: RunningNode, patients: int, slices: int) -> None:
    """Enough cases for a snapshot: rows and vectors alone, the vectors drawn from a space of few dimensions."""
    parts = opened(node)
    rng = np.random.default_rng(7)
    axes = rng.standard_normal((6, parts.embedder.dim))
    known = parts.catalogue.known_instances(parts.catalogue.study_sources()[0][0])[0]
    like = read_record(parts.objects.path(known.path))
    for n in range(patients):
        study, patient = PseudoUid(f"2.25.{1000 + n}"), Pseudonym(f"DN-MADEUP{n:04d}")
        uids = [PseudoUid(f"2.25.{1000 + n}{s:04d}") for s in range(slices)]
        records = [replace(like, uid=uid, study_uid=study, series_uid=study, patient=patient) for uid in uids]
        parts.catalogue.add_study([StoredInstance(r, f"made-up/{r.uid}", "") for r in records], source="index-add")
        rows = (rng.standard_normal((slices, 6)) @ axes).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        parts.index.add([SliceRef(uid, study, study, patient) for uid in uids], rows)


def test_a_damaged_snapshot_is_named_and_the_search_goes_on_exactly(node: RunningNode, pacs: Pacs, flipped):
    add_cases(node, patients=250, slices=20)  # few patients leave the bound of the recall too wide, now and then
    assert node.json("index", "rebuild")["snapshot"]["recall"] >= 0.95
    (snapshot,) = [p for p in (node.var / "index" / "snapshots").iterdir() if p.is_dir()]
    flipped(snapshot / "index.mrpt")
    node.start()
    study = sample_study(3, seed=953, patient_id="BROKEN-953", matrix=64)
    assert Workstation().send(study, HOST, node.dicom_port) == [0] * 3
    answer = wait_for("a report", lambda: reports(pacs.received, study[0].StudyInstanceUID))[0]
    assert len(cases(answer)) >= 4
    assert snapshot.name in node.log.read_text("utf-8")
    assert "index rebuild" in advice(node, "index")
    settled(node)
    assert node.stop() == 0


def test_nothing_is_held_and_no_traceback_is_in_the_log(node: RunningNode):
    assert opened(node).quarantine.items(state="held") == []
    assert "Traceback" not in node.log.read_text("utf-8")
