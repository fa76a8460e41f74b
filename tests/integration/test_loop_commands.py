"""Commands beside a running node: they write rows and files, the node picks them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from loop import HOST, held, opened, reports, settled, subjects, wait_for
from pydicom.dataset import Dataset

from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study

pytestmark = pytest.mark.integration

CASES = 5


@dataclass
class Site:
    node: RunningNode
    pacs: Pacs

    def ask(self, seed: int, called: str = "QUERYONLY", **attributes: object) -> Dataset:
        """The report on a new study, which by default is not kept."""
        study = sample_study(3, seed=seed, patient_id=f"COMMANDS-{seed}", matrix=64, **attributes)
        assert Workstation().send(study, HOST, self.node.dicom_port, called) == [0] * 3
        uid = str(study[0].StudyInstanceUID)
        report = wait_for("a report", lambda: reports(self.pacs.received, uid))[0]
        settled(self.node)
        return report


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("commands")
    findings = sample_repository(base / "repository", CASES, slices=3, matrix=64)
    with Pacs() as pacs, RunningNode(base / "node", pacs, quiet_s=0.5, receivers=1) as node:
        done = node.run("index", "add", base / "repository", "--findings", findings)
        assert done.returncode == 0, done.stderr
        yield Site(node, pacs)


def one_line(text: str) -> str:
    """What a command says when it fails: one line, no traceback."""
    lines = [line for line in text.strip().splitlines() if line]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def hold_a_mixed_study(site: Site, seed: int) -> int:
    before = {i.id for i in opened(site.node).quarantine.items()}
    study = sample_study(2, seed=seed, matrix=64)
    study[1].PatientID = "SOMEBODY-ELSE"
    assert Workstation().send(study, HOST, site.node.dicom_port) == [0, 0]
    return wait_for("an item", lambda: [i.id for i in held(site.node, "mixed-patients") if i.id not in before])[0]


def test_what_is_released_is_processed_again_and_held_again_while_its_cause_stays(site: Site):
    item = hold_a_mixed_study(site, 901)
    done = site.node.run("quarantine", "release", str(item))
    assert done.returncode == 0, done.stderr
    assert opened(site.node).quarantine.item(item).state == "released"
    again = wait_for("held again", lambda: [i for i in held(site.node, "mixed-patients") if i.id > item])[0]
    assert again.job_id is not None
    assert len(opened(site.node).spool.job(again.job_id).instances) == 2, "the originals are still there"
    assert "released already" in one_line(site.node.run("quarantine", "release", str(item)).stderr)


def test_what_is_discarded_is_deleted_and_cannot_be_discarded_twice(site: Site):
    item = hold_a_mixed_study(site, 902)
    job = opened(site.node).quarantine.item(item).job_id
    assert job is not None
    originals = [i.path for i in opened(site.node).spool.job(job).instances]
    assert len(originals) == 2
    assert site.node.run("quarantine", "discard", str(item), "--reason", "a test").returncode == 0
    assert not any(p.exists() for p in originals)
    again = site.node.run("quarantine", "discard", str(item), "--reason", "a test")
    assert again.returncode == 2
    assert "discarded already" in one_line(again.stderr)


def test_a_result_is_found_by_what_the_hospital_knows_and_sent_again_as_it_was(site: Site):
    report = site.ask(903, AccessionNumber="ACC-903")
    by_study = site.node.json("results", "find", "--study", str(report.StudyInstanceUID))["results"]
    by_accession = site.node.json("results", "find", "--accession", "ACC-903")["results"]
    assert by_study == by_accession
    (found,) = by_study
    assert found["state"] == "delivered"
    assert found["study_uid"] != report.StudyInstanceUID
    before = [p.read_bytes() for p in site.pacs.received]
    assert site.node.run("results", "resend", str(found["id"])).returncode == 0
    received = site.pacs.wait_for(len(before) + 1)
    sent_again = received[-1].read_bytes()
    assert sent_again in before
    settled(site.node)
    assert site.node.json("results", "find", "--accession", "ACC-903")["results"][0]["state"] == "delivered"
    assert site.node.json("results", "find", "--accession", "NEVER-SEEN")["results"] == []


def test_a_result_that_is_not_there_is_one_line(site: Site):
    done = site.node.run("results", "resend", "99999")
    assert done.returncode == 1
    assert "99999" in one_line(done.stderr)


def test_a_removed_study_is_no_case_any_more_and_leaves_no_file(site: Site):
    report = site.ask(904, called="DICOMNODE")
    parts = opened(site.node)
    pseudo = parts.vault.uid(report.StudyInstanceUID)
    pseudonym = parts.catalogue.patient_of(pseudo)
    assert pseudonym in subjects(site.ask(905)), "it is a case of later studies"
    done = site.node.run("index", "remove", "--study", str(report.StudyInstanceUID))
    assert done.returncode == 0, done.stderr
    assert pseudonym not in subjects(site.ask(906))
    assert not any(pseudo in str(p) for p in (site.node.var / "archive").rglob("*"))
    again = site.node.run("index", "remove", "--study", str(report.StudyInstanceUID))
    assert again.returncode == 1
    assert "no such study" in one_line(again.stderr)


def test_an_excluded_patient_is_no_case_any_more_and_stays_in_the_archive(site: Site):
    first = subjects(site.ask(907))
    archived = len(list((site.node.var / "archive").rglob("*.dcm")))
    assert site.node.run("index", "exclude", "--patient", first[0]).returncode == 0
    assert first[0] not in subjects(site.ask(908))
    assert len(list((site.node.var / "archive").rglob("*.dcm"))) == archived
    assert site.node.json("index", "status")["excluded_patients"] == 1


def test_an_archived_object_that_was_changed_is_named(site: Site):
    assert site.node.json("index", "verify") == {"ok": True, "problems": []}
    path = sorted((site.node.var / "archive").rglob("*.dcm"))[0]
    sound = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    done = site.node.run("index", "verify")
    assert done.returncode == 1
    assert path.name in one_line(done.stderr)
    path.write_bytes(sound)
    assert site.node.run("index", "verify").returncode == 0


def test_an_index_rebuilt_under_a_running_node_gives_the_same_cases(site: Site):
    before = subjects(site.ask(909))
    vectors = site.node.json("index", "status")["vectors"]
    rebuilt = site.node.json("index", "rebuild")
    assert rebuilt["embedded"] == 0
    assert rebuilt["vectors"] == vectors
    assert subjects(site.ask(909, StudyDescription="another study")) == before
