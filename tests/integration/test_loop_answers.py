"""One answer a study: sent again byte for byte, renewed by late images, delivered whatever the PACS does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loop import HOST, cases, opened, peer, reports, settled, wait_for
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

pytestmark = pytest.mark.integration

COMPREHENSIVE, ENHANCED, CAPTURE = "Comprehensive SR Storage", "Enhanced SR Storage", "Secondary Capture Image Storage"
DOCUMENT = "Encapsulated PDF Storage"
OBJECTS = ("pdf", "contact-sheet", "sr")


@dataclass
class Site:
    """A node with a small repository, its PACS, and two more peers that take results."""

    node: RunningNode
    pacs: Pacs
    viewer: Pacs
    old: Pacs

    def send(self, study: list[Dataset], *, calling: str = "WORKSTATION", called: str = "DICOMNODE") -> str:
        """C-STORE a study; returns its Study Instance UID."""
        statuses = Workstation(calling).send(study, HOST, self.node.dicom_port, called)
        assert statuses == [0] * len(study)
        return str(study[0].StudyInstanceUID)

    def originals(self, study: str) -> int:
        """Number of the study's originals that are still in the spool."""
        jobs = opened(self.node).spool.jobs()
        return sum(i.path.exists() for job in jobs if job.study_uid == study for i in job.instances)

    def wait_for_reports(self, pacs: Pacs, study: str, count: int) -> list[Path]:
        """Files of the reports of one study that a peer has received, once there are ``count``."""

        def files() -> list[Path]:
            found = [p for p in pacs.received if reports([p], study)]
            return found if len(found) >= count else []

        return wait_for(f"{count} reports at {pacs.ae_title}", files)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("site")
    findings = sample_repository(base / "repository", 4, slices=4, matrix=64)
    with Pacs() as pacs, Pacs("VIEWER") as viewer, Pacs("OLD", sop_classes=[EnhancedSRStorage]) as old:
        others = peer("viewer", "VIEWER", viewer.port, objects=OBJECTS) + peer("old", "OLD", old.port)
        with RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1, sections=others) as node:
            added = node.run("index", "add", base / "repository", "--findings", findings)
            assert added.returncode == 0, added.stderr
            yield Site(node, pacs, viewer, old)


def other_object(study: Dataset, sop_class: str, modality: str) -> Dataset:
    """An object without an image in the study."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study.StudyInstanceUID, generate_uid()
    ds.PatientID, ds.PatientName, ds.Modality = study.PatientID, study.PatientName, modality
    if sop_class == EncapsulatedPDFStorage:
        ds.MIMETypeOfEncapsulatedDocument, ds.EncapsulatedDocument = "application/pdf", b"%PDF-1.4 "
    return ds


def test_results_go_to_all_peers_that_take_them_where_the_caller_takes_none(site: Site):
    study = site.send(sample_study(4, seed=701, patient_id="EVERYBODY", matrix=64))
    for pacs in (site.pacs, site.viewer, site.old):
        site.wait_for_reports(pacs, study, 1)
    settled(site.node)
    kinds = {
        pacs.ae_title: [ds.SOPClassUID.name for ds in pacs.datasets()] for pacs in (site.pacs, site.viewer, site.old)
    }
    assert kinds == {"PACS": [COMPREHENSIVE], "VIEWER": [COMPREHENSIVE, CAPTURE, DOCUMENT], "OLD": [ENHANCED]}


def test_a_contact_sheet_and_a_pdf_go_only_where_they_are_asked_for(site: Site):
    report, sheet, document = site.viewer.datasets()[:3]
    assert (sheet.SeriesNumber, document.SeriesNumber) == (9910, 9912)
    assert sheet.StudyInstanceUID == document.StudyInstanceUID == report.StudyInstanceUID
    link = next(
        item.TextValue for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "DN-005"
    )
    assert f"/URI ({link})".encode() in document.EncapsulatedDocument
    assert f"/URI ({link}#case=1)".encode() in document.EncapsulatedDocument
    assert all(ds.Modality == "SR" for ds in [*site.pacs.datasets(), *site.old.datasets()])


def test_a_peer_that_takes_enhanced_sr_only_gets_it_with_a_uid_of_its_own(site: Site):
    enhanced, comprehensive = site.old.datasets()[0], site.pacs.datasets()[0]
    assert enhanced.StudyInstanceUID == comprehensive.StudyInstanceUID
    assert enhanced.SOPInstanceUID != comprehensive.SOPInstanceUID
    assert len(cases(enhanced)) == len(cases(comprehensive)) > 0


def test_results_go_to_the_caller_alone_where_it_takes_them(site: Site):
    before = len(site.pacs.received), len(site.old.received)
    study = site.send(sample_study(4, seed=702, patient_id="CALLER", matrix=64), calling="VIEWER")
    site.wait_for_reports(site.viewer, study, 1)
    settled(site.node)
    assert (len(site.pacs.received), len(site.old.received)) == before


def test_the_same_study_sent_again_gets_the_same_bytes_from_the_stored_answer(site: Site):
    images = sample_study(4, seed=703, patient_id="AGAIN", matrix=64)
    study = site.send(images)
    (first,) = site.wait_for_reports(site.pacs, study, 1)
    settled(site.node)
    site.send(images)
    again = site.wait_for_reports(site.pacs, study, 2)[1]
    assert again.read_bytes() == first.read_bytes()
    settled(site.node)
    parts = opened(site.node)
    pseudo = parts.vault.uid(images[0].StudyInstanceUID)
    assert parts.answers.latest(pseudo).instance_number == 1  # type: ignore[union-attr]
    assert site.originals(study) == 0


def test_every_kind_of_object_is_sent_again_byte_for_byte(site: Site):
    images = sample_study(4, seed=713, patient_id="AGAIN-ALL", matrix=64)
    sent = len(site.viewer.received)
    site.send(images, calling="VIEWER")
    first = wait_for(
        "three objects", lambda: site.viewer.received[sent : sent + len(OBJECTS)][2:] and site.viewer.received[sent:]
    )
    settled(site.node)
    site.send(images, calling="VIEWER")
    again = wait_for("them again", lambda: site.viewer.received[sent + 3 :][2:] and site.viewer.received[sent + 3 :])
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]
    settled(site.node)


def test_late_images_make_a_new_report_that_names_the_one_before(site: Site):
    images = sample_study(6, seed=704, patient_id="LATE", matrix=64)
    study = site.send(images[:3])
    (first,) = reports(site.wait_for_reports(site.pacs, study, 1), study)
    settled(site.node)
    site.send(images[3:])
    second = reports(site.wait_for_reports(site.pacs, study, 2), study)[1]
    assert second.SeriesInstanceUID == first.SeriesInstanceUID
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert "PredecessorDocumentsSequence" not in first
    before = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert before.ReferencedSOPInstanceUID == first.SOPInstanceUID
    settled(site.node)
    enhanced = reports(site.old.received, study)
    before = enhanced[-1].PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert before.ReferencedSOPInstanceUID == enhanced[0].SOPInstanceUID, "the peer's own earlier object"


def test_late_images_of_a_study_that_is_not_kept_make_a_new_report_too(site: Site):
    images = sample_study(6, seed=705, patient_id="LATE-ASKS", matrix=64)
    study = site.send(images[:3], called="QUERYONLY")
    site.wait_for_reports(site.pacs, study, 1)
    settled(site.node)
    site.send(images[3:], called="QUERYONLY")
    second = reports(site.wait_for_reports(site.pacs, study, 2), study)[1]
    assert second.InstanceNumber == 2
    settled(site.node)


def test_what_the_node_sent_and_objects_without_images_never_start_a_study(site: Site):
    settled(site.node)
    parts = opened(site.node)
    jobs = {job.id for job in parts.spool.jobs()}
    received = {p: len(p.received) for p in (site.pacs, site.viewer, site.old)}
    own = [site.pacs.datasets()[0], site.old.datasets()[0]]
    own += [ds for ds in site.viewer.datasets() if ds.SOPClassUID.name == CAPTURE][:1]
    image = sample_study(1, seed=706, matrix=64)[0]
    others = [
        other_object(image, RTStructureSetStorage, "RTSTRUCT"),
        other_object(image, EncapsulatedPDFStorage, "DOC"),
    ]
    assert Workstation("VIEWER").send([*own, *others], HOST, site.node.dicom_port) == [0] * 5
    # A study sent afterwards is answered: the scheduler has gone past the objects and let them lie.
    study = site.send(sample_study(4, seed=707, patient_id="AFTER", matrix=64), calling="VIEWER")
    site.wait_for_reports(site.viewer, study, 1)
    settled(site.node)
    assert len({job.id for job in parts.spool.jobs()} - jobs) == 1
    assert len(site.pacs.received) == received[site.pacs]
    assert len(site.old.received) == received[site.old]


@pytest.mark.parametrize(("seed", "trouble"), [(711, "refuses"), (712, "A700"), (713, "is down")])
def test_a_report_is_delivered_after_a_pacs_that_has_trouble_is_back(site: Site, seed: int, trouble: str):
    pacs, port = site.viewer, site.viewer.port
    before = len(pacs.received)
    if trouble == "refuses":
        pacs.refuse = True
    elif trouble == "A700":
        pacs.status = 0xA700
    else:
        pacs._ae.shutdown()
    study = site.send(sample_study(4, seed=seed, patient_id=f"TROUBLE-{seed}", matrix=64), calling="VIEWER")
    answers = opened(site.node).answers
    wait_for("a failed attempt", lambda: [r for r in answers.results() if r.state == "pending" and r.attempts])
    assert len(pacs.received) == before
    pacs.refuse, pacs.status = False, 0
    if trouble == "is down":
        pacs.port = port
        pacs.start()
    site.wait_for_reports(pacs, study, 1)
    settled(site.node)
    assert site.originals(study) == 0


def test_a_report_waits_through_a_restart_of_the_node(site: Site):
    site.viewer.status = 0xA700
    images = sample_study(4, seed=714, patient_id="RESTART", matrix=64)
    study = site.send(images, calling="VIEWER")
    answers = opened(site.node).answers
    wait_for("a failed attempt", lambda: [r for r in answers.results() if r.state == "pending" and r.attempts])
    assert site.node.stop() == 0
    site.viewer.status = 0
    site.node.start()
    site.wait_for_reports(site.viewer, study, 1)
    settled(site.node)
    sent = reports(site.viewer.received, study)
    assert len({ds.SOPInstanceUID for ds in sent}) == 1
    assert site.originals(study) == 0


def test_a_refusal_for_good_is_listed_and_keeps_the_originals(site: Site):
    site.viewer.status = 0xA900  # data set does not match SOP class, PS3.4 table B.2-1: another try will not help
    try:
        study = site.send(sample_study(4, seed=715, patient_id="REFUSED", matrix=64), calling="VIEWER")
        pseudo = opened(site.node).vault.uid(study)  # type: ignore[arg-type]

        def failed() -> list[dict[str, object]]:
            rows = site.node.json("results", "list")["results"]
            return [r for r in rows if r["study_uid"] == pseudo and r["state"] == "failed"]

        rows = wait_for("a failed result", failed)
        assert "A900" in str(rows[0]["error"])
        assert site.originals(study) == 4
    finally:
        site.viewer.status = 0
    done = site.node.run("results", "resend", str(rows[0]["id"]))
    assert done.returncode == 0, done.stderr
    (first,) = site.wait_for_reports(site.viewer, study, 1)
    assert dcmread(first).StudyInstanceUID == study

    def removed() -> bool:
        for row in failed():  # an object that was tried before the viewer took again
            site.node.run("results", "resend", str(row["id"]))
        return site.originals(study) == 0

    wait_for("the originals removed", removed)
