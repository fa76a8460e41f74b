"""C-FIND of a running node with DCMTK's findscu and with pynetdicom: the repository, and similar images."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loop import ENVIRONMENT, HOST, settled, wait_for
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND

from dicomnode.testing import Pacs, RunningNode, Workstation, sample_study, write_study

pytestmark = pytest.mark.integration

CT, MR = 6, 4
SLICES = 4


@dataclass
class Site:
    node: RunningNode
    repository: Path
    work: Path
    asked: dict[int, list[dict]] = field(default_factory=dict)

    def file(self, patient: int) -> Path:
        """A file of a patient of the repository, as the hospital has it."""
        return sorted((self.repository / f"patient-{patient:02d}").iterdir())[0]

    def findscu(self, *arguments: str | Path, query: Path | None = None, calling: str = "WORKSTATION") -> list[Dataset]:
        """The answers of one findscu, read from the files that it writes."""
        out = self.work / f"answers-{len(list(self.work.iterdir()))}"
        out.mkdir()
        addressing = [
            "-S",
            "-X",
            "-od",
            str(out),
            "-aet",
            calling,
            "-aec",
            "DICOMNODE",
            HOST,
            str(self.node.dicom_port),
        ]
        files = [str(query)] if query else []
        done = subprocess.run(
            ["findscu", "-v", *map(str, arguments), *addressing, *files],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=60,
        )
        self.said = done.stdout + done.stderr
        return [dcmread(path, force=True) for path in sorted(out.iterdir())]

    def query(self, patient: int) -> list[dict]:
        """The cases of ``query --json`` for a patient of the repository."""
        if patient not in self.asked:
            self.asked[patient] = self.node.json("query", self.file(patient).parent, "-k", "50")["cases"]
        return self.asked[patient]

    def query_file(self, dump: str) -> Path:
        """A query file for findscu, made with dump2dcm."""
        text, made = self.work / "query.dump", self.work / "query.dcm"
        text.write_text(dump, "utf-8")
        subprocess.run(["dump2dcm", str(text), str(made)], check=True, env=ENVIRONMENT, timeout=60)
        return made

    def similar(self, uid: str, maximum: int = 20, **keys: str) -> Path:
        lines = [
            "(0008,0018) UI",
            "(0008,0052) CS IMAGE",
            f"(0008,0060) CS {keys.get('modality', '')}",
            "(0010,0020) LO",
            "(0020,000d) UI",
            "(0099,0010) LO [DICOMNODE 1.0]",
            f"(0099,1001) UI [{uid}]",
            f"(0099,1002) IS [{maximum}]",
            "(0099,1003) FD",
            "(0099,1004) IS",
        ]
        return self.query_file("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("find")
    repository, work = base / "repository", base / "work"
    work.mkdir()
    for n in range(CT + MR):
        modality = "CT" if n < CT else "MR"
        study = sample_study(SLICES, patient_id=f"FIND-{n:02d}", seed=n, modality=modality, matrix=64)
        write_study(study, repository / f"patient-{n:02d}")
    with (
        Pacs() as pacs,
        RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1) as node,
    ):
        assert node.run("index", "add", repository).returncode == 0
        yield Site(node, repository, work)


def similarity(ds: Dataset) -> tuple[float, int]:
    values = [ds[0x0099, element].value for element in (0x1003, 0x1004)]
    if isinstance(values[0], bytes):
        return struct.unpack("<d", values[0])[0], int(values[1])
    return values[0], int(values[1])


def test_the_repository_is_browsed_from_study_to_image(site: Site):
    keys = ["StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "ModalitiesInStudy",
            "NumberOfStudyRelatedInstances"]  # fmt: skip
    studies = site.findscu("-k", "QueryRetrieveLevel=STUDY", *(a for k in keys for a in ("-k", k)))
    assert len(studies) == CT + MR
    assert {str(ds.PatientName) for ds in studies} == {ds.PatientID for ds in studies}
    assert all(ds.PatientID.startswith("DN-") and ds.StudyInstanceUID.startswith("2.25.") for ds in studies)
    assert sorted(ds.ModalitiesInStudy for ds in studies) == ["CT"] * CT + ["MR"] * MR
    assert {ds.NumberOfStudyRelatedInstances for ds in studies} == {SLICES}
    one = studies[0]
    same_date = site.findscu(
        "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID", "-k", f"StudyDate={one.StudyDate}-"
    )
    assert one.StudyInstanceUID in {ds.StudyInstanceUID for ds in same_date}
    (series,) = site.findscu("-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={one.StudyInstanceUID}",
                             "-k", "SeriesInstanceUID", "-k", "Modality=?T")  # fmt: skip
    above = ["-k", f"StudyInstanceUID={one.StudyInstanceUID}", "-k", f"SeriesInstanceUID={series.SeriesInstanceUID}"]
    images = site.findscu("-k", "QueryRetrieveLevel=IMAGE", *above, "-k", "SOPInstanceUID", "-k", "InstanceNumber")
    assert sorted(ds.InstanceNumber for ds in images) == list(range(1, SLICES + 1))
    assert "Success" in site.said


def test_the_pseudonym_is_a_key_with_wild_cards(site: Site):
    everybody = site.findscu("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=DN-*", "-k", "StudyInstanceUID")
    one = everybody[3].PatientID
    found = site.findscu("-k", "QueryRetrieveLevel=STUDY", "-k", f"PatientID={one[:-1]}?", "-k", "StudyInstanceUID")
    assert one in {ds.PatientID for ds in found}
    assert site.findscu("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=FIND-*") == []


def test_original_uids_are_asked_and_never_answered(site: Site):
    original = str(dcmread(site.file(2)).StudyInstanceUID)
    (study,) = site.findscu("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={original}", "-k", "PatientID")
    assert study.StudyInstanceUID != original


def test_an_image_query_without_unique_keys_is_a900(site: Site):
    assert site.findscu("-k", "QueryRetrieveLevel=IMAGE", "-k", "SOPInstanceUID", "-k", "Modality=CT") == []
    assert "DataSetDoesNotMatchSOPClass" in site.said  # DCMTK's word for A900


def test_a_query_can_be_cancelled(site: Site):
    """With so few rows either side may be first; the association ends in order in both cases."""
    site.findscu("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID", "--cancel", "1")
    assert re.search(r"Final Find Response \((Cancel|Success)", site.said)
    assert "Releasing Association" in site.said


def test_a_stranger_gets_no_association(site: Site):
    assert site.findscu("-k", "QueryRetrieveLevel=STUDY", calling="STRANGER") == []
    assert "Rejected" in site.said


def check(found: list[Dataset], cases: list[dict]) -> None:
    """The same cases in the same order; a filtered search adds up the same numbers in another order."""
    assert [ds.StudyInstanceUID for ds in found] == [c["study_uid"] for c in cases]
    assert [similarity(ds)[0] for ds in found] == pytest.approx([c["similarity"] for c in cases], abs=2e-6)
    assert [similarity(ds)[1] for ds in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("modality", ["", "CT", "MR"])
@pytest.mark.parametrize("encoding", ["-xe", "-xi"])
def test_similar_images_from_findscu_are_in_the_order_of_the_query_command(site: Site, modality: str, encoding: str):
    uid = str(dcmread(site.file(1)).SOPInstanceUID)
    found = site.findscu(encoding, query=site.similar(uid, 50, modality=modality))
    check(found, [c for c in site.query(1) if modality in ("", c["modality"])])
    assert len(found) == {"": CT + MR - 1, "CT": CT - 1, "MR": MR}[modality]
    assert not modality or {ds.Modality for ds in found} == {modality}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_similar_images_from_pynetdicom_are_the_same(site: Site, syntax: str):
    original = dcmread(site.file(7))
    ae = AE(ae_title="WORKSTATION")
    ae.add_requested_context(FIND, syntax)
    assoc = ae.associate(HOST, site.node.dicom_port, ae_title="DICOMNODE")
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.SOPInstanceUID, ds.StudyInstanceUID = "IMAGE", "", ""
    block = ds.private_block(0x0099, "DICOMNODE 1.0", create=True)
    for number, vr, value in ((1, "UI", original.SOPInstanceUID), (2, "IS", 3), (3, "FD", None), (4, "IS", None)):
        block.add_new(number, vr, value)
    answers = [answer for _, answer in assoc.send_c_find(ds, FIND) if answer is not None]
    assoc.release()
    check(answers, site.query(7)[:3])


def test_an_unknown_image_has_no_similar_ones(site: Site):
    assert site.findscu(query=site.similar("1.2.3.4.5")) == []
    assert "Success" in site.said


def test_an_image_of_a_study_that_was_only_asked_about_works_also(site: Site):
    study = sample_study(SLICES, patient_id="ASKED-1", seed=77, matrix=64)
    assert Workstation().send(study, HOST, site.node.dicom_port, "QUERYONLY") == [0] * SLICES
    wait_for("the answer", lambda: site.node.json("results", "list")["results"])
    settled(site.node)
    found = site.findscu(query=site.similar(str(study[1].SOPInstanceUID), 5))
    assert [similarity(ds)[1] for ds in found] == [1, 2, 3, 4, 5]


def test_a_receiver_answers_without_the_networks_and_names_nobody_in_its_log(site: Site):
    maps = [Path(f"/proc/{pid}/maps") for pid in site.node.pids()]
    receivers = [m for m in maps if b"receiver" in (m.parent / "cmdline").read_bytes()]
    assert receivers
    assert not any("libtorch" in m.read_text() for m in receivers)
    log = site.node.log.read_text("utf-8")
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert any(e["event"] == "find_done" for e in events)
    for secret in ("FIND-0", "ASKED-1", str(dcmread(site.file(1)).SOPInstanceUID)):
        assert secret not in log
