"""The loop on real images: DCMTK sends a chest CT, DCMTK receives the report; commands and roles beside it."""

from __future__ import annotations

import csv
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loop import (
    HOST,
    Storescp,
    cases,
    children,
    concept,
    finding_codes,
    json_keys,
    opened,
    settled,
    spooled,
    storescu,
    subjects,
    wait_for,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from validators import VALIDATORS, NotInstalled

from dicomnode.testing import RunningNode, Workstation, sample_study

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("storescu") is None, reason="needs the Debian package dcmtk"),
]
LABELLED = 60
QUERY = "ct-chest-rider-64"
PRIOR_PATIENT = "A098752"


@dataclass
class Hospital:
    """A node with real cases, DCMTK as its PACS, and the studies that nobody has sent yet."""

    node: RunningNode
    pacs: Storescp
    chest: Path
    prior: Path
    images: Path


def labels(shared: Path, split: str) -> list[dict[str, str]]:
    with (shared / "covid-ct" / "labels.csv").open(newline="") as f:
        return [row for row in csv.DictReader(f) if row["split"] == split]


def set_prior_apart(folder: Path, target: Path) -> None:
    """Move one study of a patient with two studies out of the folder that will be indexed."""
    first = ""
    for path in sorted(p for p in folder.rglob("*.dcm")):
        ds = dcmread(path, stop_before_pixels=True)
        if ds.PatientID != PRIOR_PATIENT:
            continue
        first = first or ds.StudyInstanceUID
        if ds.StudyInstanceUID == first:
            target.mkdir(exist_ok=True)
            shutil.move(path, target / f"{ds.SOPInstanceUID[-12:]}.dcm")


@pytest.fixture(scope="module")
def hospital(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    base = tmp_path_factory.mktemp("hospital")
    data = base / "data"
    for archive in sorted((shared / "dicom").glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(data, filter="data")
    chest = data / QUERY
    chest.rename(base / "chest")
    prior = base / "prior"
    set_prior_apart(data / "tcia-covid-ny-sbu", prior)
    rows = labels(shared, "train")
    chosen = rows[:: len(rows) // LABELLED][:LABELLED]
    with (base / "LABELS.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("path", "label", "patient"))
        writer.writerows((shared / "covid-ct" / r["path"], r["label"], r["patient"]) for r in chosen)
    with Storescp(base / "pacs") as pacs, RunningNode(base / "node", pacs, quiet_s=1, receivers=1) as node:  # type: ignore[arg-type]
        added = node.json("index", "add", data, "--findings", shared / "dicom" / "findings.csv")
        assert added["studies"] == 21, added
        labelled = node.json("index", "add", base / "LABELS.csv")
        assert labelled["instances"] == LABELLED, labelled
        yield Hospital(node, pacs, base / "chest", prior, shared / "covid-ct")


def ask(hospital: Hospital, folder: Path) -> Dataset:
    """Send a study with storescu; the report that comes back to storescp."""
    files = sorted(folder.glob("*.dcm"))
    study = dcmread(files[0], stop_before_pixels=True).StudyInstanceUID
    storescu(hospital.node, *files)
    return dcmread(wait_for("a report of the study at storescp", lambda: hospital.pacs.of_study(study))[0])


@pytest.fixture(scope="module")
def report(hospital: Hospital) -> Dataset:
    return ask(hospital, hospital.chest)


def test_the_report_belongs_to_the_study_that_was_sent(hospital: Hospital, report: Dataset):
    original = dcmread(next(hospital.chest.glob("*.dcm")), stop_before_pixels=True)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
        assert report[keyword].value == original[keyword].value, keyword
    assert report.SeriesNumber == 9901
    assert report.SeriesInstanceUID != original.SeriesInstanceUID
    assert report.Modality == "SR"


def test_the_report_ranks_cases_of_other_patients_only(hospital: Hospital, report: Dataset):
    parts = opened(hospital.node)
    found = subjects(report)
    assert len(found) == 10
    assert len(set(found)) == 10, "one case a patient"
    ranks = [str(c.TextValue) for case in cases(report) for c in children(case, "DN-003")]
    assert [r.split()[0].rstrip(".") for r in ranks] == [str(n) for n in range(1, 11)] or all(
        str(n) in r for n, r in enumerate(ranks, 1)
    )
    own = parts.vault.pseudonym_for(parts.settings.node.default_issuer, str(report.PatientID), create=False)
    assert own is not None
    assert own not in found


def test_the_findings_of_the_cases_are_coded(hospital: Hospital, report: Dataset):
    schemes = {scheme for scheme, _ in finding_codes(report)}
    assert schemes
    assert schemes <= {"SCT", "I10C", "I9C", "99LABEL"}
    assert schemes & {"SCT", "99LABEL"}
    for item in (c for case in cases(report) for c in children(case, "DN-004")):
        assert item.ValueType in ("CODE", "TEXT")


@pytest.mark.parametrize("name", VALIDATORS)
def test_the_validators_find_no_error_in_the_report(hospital: Hospital, report: Dataset, name: str):
    path = hospital.pacs.of_study(report.StudyInstanceUID)[0]
    try:
        found = VALIDATORS[name]([path])
    except NotInstalled as missing:
        pytest.skip(str(missing))
    assert found == {path: []} or found == {path.resolve(): []}


def test_a_prior_study_never_lists_its_own_patient(hospital: Hospital):
    parts = opened(hospital.node)
    indexed = parts.catalogue.study_sources()
    sr = ask(hospital, hospital.prior)
    own = parts.vault.pseudonym_for(parts.settings.node.default_issuer, PRIOR_PATIENT, create=False)
    assert own in {patient for _, patient, _ in indexed}, "the patient's other study is in the repository"
    assert len(subjects(sr)) == 10
    assert own not in subjects(sr)


def test_a_labelled_image_is_answered_as_the_contract_says(hospital: Hospital, shared: Path):
    row = next(r for r in labels(shared, "val") if r["label"] == "COVID")
    before = hospital.node.json("index", "status")
    answer = hospital.node.json("query", hospital.images / row["path"], "-k", "5")
    keys = ("query", "model_id", "verdict", "p", "no_similar_case", "calibrated", "cases")
    assert json_keys(answer, *keys)
    assert answer["model_id"] == before["model_id"]
    assert answer["verdict"] in ("similar", "none")
    assert isinstance(answer["no_similar_case"], bool)
    assert len(answer["cases"]) == 5
    for rank, case in enumerate(answer["cases"], 1):
        assert json_keys(case, "rank", "similarity", "subject", "study_uid", "modality", "status")
        assert json_keys(case, "findings", "matches")
        assert case["rank"] == rank
        assert 0 <= case["similarity"] <= 1
        assert case["status"] in ("present", "none", "unknown")
        assert all(json_keys(f, "system", "code", "display") for f in case["findings"])
        assert case["matches"]
        assert all(json_keys(m, "query_instance", "instance", "similarity") for m in case["matches"])
    similar = [c["similarity"] for c in answer["cases"]]
    assert similar == sorted(similar, reverse=True)
    labelled = [f for c in answer["cases"] for f in c["findings"] if f["system"] == "99LABEL"]
    assert labelled, "labelled images are among the nearest"
    assert hospital.node.json("index", "status") == before, "a query keeps nothing"


def snapshot(node: RunningNode) -> dict[str, object]:
    """Everything that a study which is not kept must leave unchanged."""
    parts = opened(node)
    return {
        "index": parts.index.status(),
        "archive": sorted(p.name for p in (node.var / "archive").rglob("*.dcm")),
        "patients": parts.vault.status().patients,
    }


def test_a_study_sent_to_the_query_role_is_answered_and_not_kept(hospital: Hospital):
    settled(hospital.node)
    before = snapshot(hospital.node)
    study = sample_study(4, patient_id="ONLY-ASKS", seed=501, matrix=64)
    assert Workstation().send(study, HOST, hospital.node.dicom_port, "QUERYONLY") == [0] * 4
    uid = study[0].StudyInstanceUID
    path = wait_for("a report", lambda: hospital.pacs.of_study(uid))[0]
    assert len(subjects(dcmread(path))) == 10
    settled(hospital.node)
    assert snapshot(hospital.node) == before
    assert spooled(hospital.node) == []


def test_a_study_sent_to_the_index_role_is_kept_and_nothing_is_sent(hospital: Hospital):
    settled(hospital.node)
    before = snapshot(hospital.node)
    received = len(list(hospital.pacs.folder.iterdir()))
    study = sample_study(4, patient_id="ONLY-KEPT", seed=502, matrix=64)
    assert Workstation().send(study, HOST, hospital.node.dicom_port, "INDEXONLY") == [0] * 4
    parts = opened(hospital.node)
    pseudo = parts.vault.uid(study[0].StudyInstanceUID)
    wait_for("the study in the index", lambda: parts.index.has_study(pseudo))
    settled(hospital.node)
    assert spooled(hospital.node) == []
    after = snapshot(hospital.node)
    assert len(after["archive"]) == len(before["archive"]) + 4  # type: ignore[arg-type]
    assert after["patients"] == before["patients"] + 1  # type: ignore[operator]
    assert len(list(hospital.pacs.folder.iterdir())) == received
    assert parts.answers.latest(pseudo) is None


def test_a_report_names_every_case_by_rank_and_score(report: Dataset):
    for case in cases(report):
        assert {concept(c) for c in case.ContentSequence} >= {"DN-003", "DN-014", "DN-010"}
