"""The vault's key renewed, ids merged and consent withdrawn around a running node, by its own commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loop import HOST, opened, reports, settled, subjects, wait_for
from pydicom.dataset import Dataset

from dicomnode.domain import OriginalUid
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

pytestmark = pytest.mark.integration

FIRST, SECOND, LATER = "VAULT-FIRST-1", "VAULT-SECOND-2", "VAULT-LATER-3"


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with Pacs() as pacs:
        yield pacs


@pytest.fixture
def node(tmp_path: Path, pacs: Pacs) -> Iterator[RunningNode]:
    findings = sample_repository(tmp_path / "repository", 2, slices=3, matrix=64)
    with RunningNode(tmp_path / "node", pacs, quiet_s=0.5, receivers=1, log_level="debug") as node:
        assert node.run("index", "add", tmp_path / "repository", "--findings", findings).returncode == 0
        yield node


def study(patient: str, seed: int, slices: int = 3) -> list[Dataset]:
    return sample_study(slices, seed=seed, patient_id=patient, name=f"{patient}^Name", matrix=64)


def send(node: RunningNode, pacs: Pacs, images: list[Dataset], count: int = 1) -> Dataset:
    """Send a study; its newest report, of ``count`` that the PACS has then."""
    assert Workstation().send(images, HOST, node.dicom_port) == [0] * len(images)
    uid = str(images[0].StudyInstanceUID)
    found = wait_for("a report", lambda: (r := reports(pacs.received, uid)) and len(r) >= count and r)
    settled(node)
    return max(found, key=lambda report: int(report.InstanceNumber))


def done(node: RunningNode, *words: str) -> str:
    result = node.run(*words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_node_under_a_new_key_knows_its_patients_and_studies(node: RunningNode, pacs: Pacs) -> None:
    known = study(FIRST, 31, slices=4)
    report = send(node, pacs, known[:3])
    refused = node.run("vault", "rotate")
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    pseudonym = opened(node).vault.pseudonym_for("", FIRST, create=False)
    before = opened(node).vault.uid(OriginalUid(known[0].StudyInstanceUID))
    key = (node.var / "vault.key").read_text()
    node.stop()
    assert "epoch 2" in done(node, "vault", "rotate")
    assert (node.var / "vault.key").read_text() != key
    node.launch()
    node.wait_ready()
    studies = node.json("index", "status")["studies"]

    again = send(node, pacs, known, 2)  # one image more: a new answer in the same series, after the old one

    assert node.json("index", "status")["studies"] == studies
    assert opened(node).catalogue.patient_of(before) == pseudonym
    assert len(opened(node).catalogue.known_instances(before)) == 4
    assert again.SeriesInstanceUID == report.SeriesInstanceUID
    assert again.SOPInstanceUID != report.SOPInstanceUID
    assert again.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    told = done(node, "reidentify", str(pseudonym), "--reason", "test")
    assert told == f"\t{FIRST}\n"
    assert FIRST not in node.log.read_text("utf-8")


def test_merged_ids_are_no_cases_of_each_other_and_withdrawn_ones_of_nobody(node: RunningNode, pacs: Pacs) -> None:
    for patient, seed in ((FIRST, 41), (SECOND, 42)):
        send(node, pacs, study(patient, seed))
    parts = opened(node)
    first, second = (str(parts.vault.pseudonym_for("", p, create=False)) for p in (FIRST, SECOND))
    ids = ("--patient-id", FIRST, "--other-id", SECOND)
    assert node.run("vault", "merge", *ids).returncode == 1  # the worker runs
    node.stop()
    merged = node.json("vault", "merge", *ids)
    assert (merged["pseudonym"], merged["replaced"], merged["studies"]) == (first, [second], 1)
    node.launch()
    node.wait_ready()

    of_both = send(node, pacs, study(SECOND, 43))
    assert not {first, second} & set(subjects(of_both))
    other = send(node, pacs, study(LATER, 44))
    assert first in subjects(other)
    assert second not in subjects(other)

    removed = node.json("index", "remove", "--patient-id", SECOND)  # beside the running node, by any of the ids
    assert (removed["studies"], removed["ids"]) == (3, 2)
    after = send(node, pacs, study(LATER, 45))
    assert not {first, second} & set(subjects(after))
    needles = [first, second, FIRST, SECOND]
    for patient, seed in ((FIRST, 41), (SECOND, 42), (SECOND, 43)):
        for image in study(patient, seed):
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                original = OriginalUid(str(image[keyword].value))
                needles += [original, parts.vault.uid(original)]
    parts.close()
    node.stop()
    left = {p: p.read_bytes() for p in node.folder.rglob("*") if p.is_file() and p.parent.name != "audit"}
    assert [(needle, path.name) for path, data in left.items() for needle in needles if needle.encode() in data] == []
