"""A real Orthanc routes its stable studies to the node by itself; the answer returns into the study, once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loop import cases, opened, settled, wait_for
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from validators import VALIDATORS, NotInstalled

from dicomnode.report.tree import sr_tree
from dicomnode.testing import RunningNode, Workstation, sample_repository, sample_study
from dicomnode.testing.orthanc import Orthanc, orthanc_is_installed
from dicomnode.workflow.process_study import LOOP_ROUNDS

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not orthanc_is_installed(), reason="needs the Debian packages orthanc, orthanc-dicomweb"),
]
SLICES = 4
STABLE_S = 2
# How long nothing more may come: three times the study would have become stable and have been routed again.
REST_S = float(os.environ.get("DICOMNODE_PACS_REST_S", 3 * (STABLE_S + 1)))


@dataclass
class Hospital:
    """Orthanc and a node that has cases; ``study`` was sent to Orthanc by a workstation, and to nobody else."""

    orthanc: Orthanc
    node: RunningNode
    study: list[Dataset]

    @property
    def uid(self) -> str:
        return str(self.study[0].StudyInstanceUID)

    def of(self, number: int) -> list[Dataset]:
        """What Orthanc serves of the study's series with a number, by DICOMweb."""
        return [ds for uid in self.series_uids(number) for ds in self.orthanc.wado(self.uid, uid)]

    def series_uids(self, number: int) -> list[str]:
        tags = [s["MainDicomTags"] for s in self.orthanc.series(self.uid)]
        return [t["SeriesInstanceUID"] for t in tags if t.get("SeriesNumber") == str(number)]

    def deliveries(self) -> int:
        return self.node.log.read_text("utf-8").count('"result_delivered"')

    def rounds(self) -> int:
        """How often the study came and was processed."""
        return self.node.log.read_text("utf-8").count('"answered"')


def hospital_in(folder: Path, *, guard: bool = True, overwrite: bool = False, objects: tuple[str, ...] = ("sr",)):
    orthanc = Orthanc(folder / "orthanc", stable_age=STABLE_S, guard=guard, overwrite=overwrite)
    node = RunningNode(folder / "node", orthanc, quiet_s=1.0, receivers=1, objects=objects)
    orthanc.route_to(node.dicom_port)
    return orthanc, node


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("orthanc")
    orthanc, node = hospital_in(folder, objects=("sr", "contact-sheet", "pdf"))
    findings = sample_repository(folder / "cases", 6, slices=SLICES, matrix=64)
    with orthanc, node:
        assert node.json("index", "add", folder / "cases", "--findings", findings)["studies"] == 6
        study = sample_study(SLICES, patient_id="ROUTED", name="Müller^Ana", seed=77, matrix=64, finding="nodule")
        assert Workstation().send(study, orthanc.host, orthanc.port, orthanc.ae_title) == [0] * SLICES
        here = Hospital(orthanc, node, study)
        wait_for("report, contact sheet and PDF in Orthanc", lambda: all(map(here.of, (9901, 9910, 9912))), 120)
        yield here


def test_the_study_is_answered_without_anybody_asking(hospital: Hospital):
    """The workstation sent to the PACS only: that the node knows the study is the PACS's doing."""
    (sr,) = hospital.of(9901)
    assert sr.Modality == "SR"
    assert sr.StudyInstanceUID == hospital.uid
    assert sr.PatientID == "ROUTED"
    assert sr.PatientName == "Müller^Ana"
    assert len(cases(sr)) == 6
    assert len(hospital.series_uids(9901)) == 1
    assert len(hospital.series_uids(2)) == 1, "the images are where they were"


def test_what_orthanc_serves_is_what_the_node_sent(hospital: Hospital):
    (served,) = hospital.of(9901)
    sent = [opened(hospital.node).folders.sent(r) for r in (1, 2, 3)]
    (report,) = [ds for ds in map(dcmread, sent) if ds.Modality == "SR"]
    assert sr_tree(served) == sr_tree(report)
    assert served.SOPInstanceUID == report.SOPInstanceUID


def test_the_contact_sheet_came_too(hospital: Hospital):
    (sheet,) = hospital.of(9910)
    assert (sheet.Modality, sheet.StudyInstanceUID) == ("OT", hospital.uid)
    assert sheet.PhotometricInterpretation == "RGB"
    assert sheet.pixel_array.std() > 0


def test_the_pdf_came_too_and_is_one(hospital: Hospital):
    (pdf,) = hospital.of(9912)
    assert (pdf.SOPClassUID, pdf.StudyInstanceUID) == (EncapsulatedPDFStorage, hospital.uid)
    assert pdf.EncapsulatedDocument.startswith(b"%PDF-1")
    assert b"%%EOF" in pdf.EncapsulatedDocument[-16:]


@pytest.mark.parametrize("name", VALIDATORS)
def test_the_validators_find_no_error_in_what_came_back(hospital: Hospital, tmp_path: Path, name: str):
    paths = []
    for number in (9901, 9910, 9912):
        for ds in hospital.of(number):
            paths.append(tmp_path / f"{number}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
    assert len(paths) == 3
    try:
        found = VALIDATORS[name](paths)
    except NotInstalled as missing:
        pytest.skip(str(missing))
    assert found
    assert all(errors == [] for errors in found.values()), found


def test_the_report_does_not_start_another_round(hospital: Hospital):
    """The report makes the study stable again, and Orthanc sends its images again: same answer, same bytes."""
    wait_for("Orthanc at rest", lambda: hospital.orthanc.is_stable(hospital.uid))
    settled(hospital.node)
    time.sleep(REST_S)
    settled(hospital.node)
    rounds, deliveries = hospital.rounds(), hospital.deliveries()
    time.sleep(REST_S)
    assert (hospital.rounds(), hospital.deliveries()) == (rounds, deliveries), "it goes round"
    assert rounds <= 3
    assert len(hospital.of(9901)) == len(hospital.of(9910)) == len(hospital.of(9912)) == 1
    parts = opened(hospital.node)
    answer = parts.answers.latest(parts.vault.uid(hospital.study[0].StudyInstanceUID))
    assert answer is not None
    assert answer.predecessor_id is None


@pytest.mark.timeout(400)
def test_without_the_guard_the_node_ends_the_loop_itself(tmp_path: Path):
    """The worst of settings: everything is routed, and an object that comes again makes its study unstable again."""
    orthanc, node = hospital_in(tmp_path, guard=False, overwrite=True)
    with orthanc, node:
        study = sample_study(SLICES, patient_id="ROUND-AND-ROUND", seed=78, matrix=64)
        assert Workstation().send(study, orthanc.host, orthanc.port, orthanc.ae_title) == [0] * SLICES
        here = Hospital(orthanc, node, study)
        wait_for("the loop to be held", lambda: '"resend_held"' in node.log.read_text("utf-8"), 240)
        settled(node)
        rounds = here.rounds()
        time.sleep(REST_S)
        assert here.rounds() == rounds, "it still goes round"
        assert here.deliveries() == LOOP_ROUNDS + 1
        assert len(here.of(9901)) == 1
