"""Withdrawal: from the hospital's Patient ID, or a study, to nothing left in any byte of the data folder."""

from __future__ import annotations

import threading
import time
from copy import deepcopy

import pytest
from archive_samples import an_answer
from pydicom import dcmread
from workflow_samples import job_of, process, receive

from dicomnode.archive.answers import PENDING
from dicomnode.deid.vault import PatientKey
from dicomnode.domain import OriginalUid, Pseudonym, PseudoUid, Role
from dicomnode.errors import Busy, QuarantineError
from dicomnode.node import Node
from dicomnode.scp.schema import JobState
from dicomnode.testing import Pacs, free_port, sample_repository, sample_study
from dicomnode.workflow.housekeeping import close_jobs
from dicomnode.workflow.ingest import add_paths
from dicomnode.workflow.withdrawal import Removed, remove_patient, remove_studies

KEY = PatientKey("", "WITHDRAWN-4711")
NAME = "Retractada^Ana"
OTHER = "STAYS-0815"


def of_hers(seed: int, **more: object) -> list:
    return sample_study(
        3, matrix=64, patient_id=KEY.patient_id, name=NAME, seed=seed, AccessionNumber=f"ACC-{seed}", **more
    )


def remaining(node: Node, needles: set[str]) -> dict[str, list[str]]:
    """Where each text still is, in bytes or names below the data folder; the audit trail may name the pseudonym."""
    found: dict[str, list[str]] = {}
    for path in node.data_dir.rglob("*"):
        if not path.is_file() or path.parent.name == "audit":
            continue
        data = path.read_bytes()
        for needle in needles:
            if needle.encode() in data or needle in str(path):
                found.setdefault(needle, []).append(str(path.relative_to(node.data_dir)))
    return found


@pytest.fixture
def node(make_node, tmp_path) -> Node:
    """A small repository, with results for one peer."""
    node = make_node(tmp_path, Pacs(port=free_port()))
    findings = sample_repository(tmp_path / "studies", 2, slices=2, matrix=64)
    add_paths(node.context, [tmp_path / "studies"], findings)
    return node


def names_of(node: Node) -> list[Pseudonym]:
    known = node.vault.pseudonym_for(KEY.issuer, KEY.patient_id, create=False)
    return node.vault.pseudonyms_of(known) if known else []


def withdraw(node: Node) -> Removed:
    return remove_patient(node.context, names_of(node), [KEY])


def pseudo_uids(node: Node, images: list) -> set[str]:
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    originals = {str(image.get(keyword) or "") for image in images for keyword in keywords} - {""}
    return originals | {node.vault.uid(OriginalUid(uid)) for uid in originals}


def test_nothing_of_a_patient_is_left_in_any_byte_of_the_data_folder(node: Node) -> None:
    indexed, held, waiting = of_hers(1), of_hers(2, BurnedInAnnotation="YES"), of_hers(3)
    asked, other = of_hers(4), sample_study(3, matrix=64, patient_id=OTHER, seed=5)
    process(node, job_of(node, indexed))
    process(node, job_of(node, asked, role=Role.QUERY))
    process(node, job_of(node, other))  # shows hers as a case
    with pytest.raises(Exception, match="text"):
        process(node, job_of(node, held))
    receive(node.spool, waiting)
    kept_study = node.vault.uid(OriginalUid(other[0].StudyInstanceUID))
    shown = node.answers.latest(kept_study)
    assert shown is not None
    hers = node.vault.uid(OriginalUid(indexed[0].StudyInstanceUID))
    assert hers in {case.study_uid for case in shown.answer.cases}
    (name,) = names_of(node)
    needles = {name, KEY.patient_id, "Retractada", "ACC-1", "ACC-4"}
    for images in (indexed, held, waiting, asked):
        needles |= pseudo_uids(node, images)
    before = remaining(node, needles)
    for needle in (name, hers, KEY.patient_id, str(waiting[0].StudyInstanceUID), str(asked[0].SOPInstanceUID)):
        assert before[needle]

    done = withdraw(node)

    assert remaining(node, needles) == {}
    assert done.scrubbed
    assert (done.studies, done.answers, done.changed_answers, done.ids) == (1, 2, 1, 1)
    assert names_of(node) == []
    # the others are as they were, and their answer shows what is left
    assert node.index.status()["studies"] == 3
    left = node.answers.latest(kept_study)
    assert left is not None
    assert [case for case in shown.answer.cases if case.study_uid != hers] == list(left.answer.cases)
    assert node.index.verify() == []
    assert not withdraw(node).anything


def test_a_study_asked_again_after_a_case_was_withdrawn_gets_a_new_answer(node: Node) -> None:
    process(node, job_of(node, of_hers(1)))
    other = sample_study(3, matrix=64, patient_id=OTHER, seed=5)
    job = job_of(node, other)
    process(node, job)
    study = node.vault.uid(OriginalUid(other[0].StudyInstanceUID))
    first = node.answers.latest(study)
    assert first is not None
    (result,) = node.answers.results(answer_id=first.id)
    assert node.folders.sent(result.id).exists()
    withdraw(node)
    assert not node.folders.sent(result.id).exists()  # it showed her images
    node.spool.remove_job_files(job)
    process(node, job_of(node, other))
    again = node.answers.latest(study)
    assert again is not None
    assert (again.instance_number, again.predecessor_id) == (2, first.id)
    (new,) = node.answers.results(answer_id=again.id)
    uids = {dcmread(node.folders.sent(new.id)).SOPInstanceUID}
    assert len(uids) == 1


def test_a_patient_whom_the_vault_does_not_know_is_found_in_the_spool(node: Node) -> None:
    asked = of_hers(4)
    process(node, job_of(node, asked, role=Role.QUERY))
    assert names_of(node) == []
    needles = pseudo_uids(node, asked) | {KEY.patient_id, "Retractada"}
    assert remaining(node, needles)
    done = withdraw(node)
    assert (done.studies, done.answers, done.originals, done.ids) == (0, 1, 3, 0)
    assert remaining(node, needles) == {}


def test_ids_that_were_merged_go_together(node: Node) -> None:
    one, two = of_hers(1), sample_study(2, matrix=64, patient_id="OLD-ID-1", seed=8)
    for images in (one, two):
        process(node, job_of(node, images))
    node.vault.merge(KEY, PatientKey("", "OLD-ID-1"))
    names = names_of(node)
    keys = node.vault.keys_of(names[0])
    assert {key.patient_id for key in keys} == {KEY.patient_id, "OLD-ID-1"}
    done = remove_patient(node.context, names, keys)
    assert (done.studies, done.ids) == (2, 2)
    assert remaining(node, {*names, "OLD-ID-1", *pseudo_uids(node, [*one, *two])}) == {}


def test_what_a_worker_has_in_hand_is_not_pulled_away(node: Node) -> None:
    process(node, job_of(node, of_hers(1)))
    receive(node.spool, of_hers(3))
    names = names_of(node)
    with pytest.raises(Busy, match="being worked on"):
        remove_patient(node.context, names, [KEY], worker_runs=True)
    assert len(node.catalogue.studies_of(names[0])) == 1
    receive(node.spool, sample_study(1, matrix=64, patient_id=OTHER, seed=9))  # another's is no obstacle
    assert remove_patient(node.context, names, [KEY]).studies == 1


@pytest.mark.parametrize("part", ["objects", "thumbnails", "spool"])
def test_a_removal_that_was_killed_is_finished_by_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    images = of_hers(1)
    process(node, job_of(node, images))
    needles = {*names_of(node), KEY.patient_id, *pseudo_uids(node, images)}
    method = "forget" if part == "spool" else "remove_study"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(getattr(node, part), method, die)
        with pytest.raises(KeyboardInterrupt):
            withdraw(node)
    withdraw(node)
    assert remaining(node, needles) == {}


def test_an_excluded_patient_is_removed_too(node: Node) -> None:
    process(node, job_of(node, of_hers(1)))
    (name,) = names_of(node)
    node.catalogue.exclude_patient(name)
    withdraw(node)
    assert node.index.status()["excluded_patients"] == 0


def test_a_removed_study_takes_its_answers_along_and_leaves_its_patient(node: Node) -> None:
    one, two = of_hers(1), of_hers(2)
    for images in (one, two):
        process(node, job_of(node, images))
    study = node.vault.uid(OriginalUid(one[0].StudyInstanceUID))
    done = remove_studies(node.context, [study])
    assert (done.studies, done.answers) == (1, 1)
    names = names_of(node)
    assert len(node.catalogue.studies_of(names[0])) == 1
    gone = {str(i.SOPInstanceUID) for i in one} | {node.vault.uid(OriginalUid(i.SOPInstanceUID)) for i in one}
    assert remaining(node, gone) == {}
    assert not remove_studies(node.context, [PseudoUid("2.25.99")]).anything


class TestNothingOfAnotherPatientGoes:
    """A study may have been asked about, or hold images, under somebody else's id: a mistake that was corrected."""

    @pytest.fixture
    def others(self, node: Node) -> list:
        images = sample_study(2, matrix=64, patient_id=OTHER, seed=5)
        job = job_of(node, images)
        process(node, job)
        node.spool.remove_job_files(job)
        node.spool.set_job_state(job, JobState.DONE)
        return images

    def theirs(self, node: Node) -> list[PseudoUid]:
        name = node.vault.pseudonym_for("", OTHER, create=False)
        assert name is not None
        return node.catalogue.studies_of(name)

    def test_a_study_that_was_once_asked_about_under_the_other_id(self, node: Node, others: list) -> None:
        process(node, job_of(node, of_hers(1)))
        (hers,) = names_of(node)
        study = node.vault.uid(OriginalUid(others[0].StudyInstanceUID))
        node.answers.add(study, [PseudoUid("2.25.1")], an_answer(), role=Role.QUERY, patient=hers)
        done = withdraw(node)
        assert self.theirs(node) == [study]
        assert node.index.store.has_study(study)
        assert (done.studies, done.answers) == (1, 2)  # the answer under her id went, too
        left = node.answers.latest(study)
        assert left is not None
        assert left.instance_number == 1

    def test_a_study_that_holds_a_misfiled_image(self, node: Node, others: list) -> None:
        late, wrong = deepcopy(others[0]), deepcopy(others[0])
        wrong.PatientID = KEY.patient_id
        for number, image in enumerate((late, wrong)):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
        job = job_of(node, [late, wrong])
        with pytest.raises(QuarantineError, match="different Patient"):
            process(node, job)
        node.spool.set_job_state(job, JobState.QUARANTINED, "mixed-patients")
        done = remove_patient(node.context, names_of(node), [KEY])
        assert (done.studies, done.originals) == (0, 1)
        assert len(self.theirs(node)) == 1
        (kept,) = node.spool.job(job).instances
        assert dcmread(kept.path).PatientID == OTHER
        assert remaining(node, {KEY.patient_id}) == {}
        process(node, node.spool.requeue(job))  # what is left is one patient's

    def test_an_image_without_an_id_goes_with_the_rest_of_its_study(self, node: Node) -> None:
        images = of_hers(3)
        images[0].PatientID = ""
        receive(node.spool, images)
        assert remove_patient(node.context, [], [KEY]).originals == 3


def test_a_study_that_was_searched_before_the_vectors_went_is_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomnode.workflow.withdrawal.ANSWER_S", 30.0)
    process(node, job_of(node, of_hers(1)))
    for job in node.spool.jobs():
        node.spool.set_job_state(job.id, JobState.ANSWERED)
    (hers,) = names_of(node)
    other = sample_study(3, matrix=64, patient_id=OTHER, seed=5)
    job = job_of(node, other)
    node.spool.set_job_state(job, JobState.RUNNING)
    retriever = type(node.context.retriever)
    real, removed = retriever.retrieve, []
    remover = threading.Thread(
        target=lambda: removed.append(remove_patient(node.context, [hers], [KEY], worker_runs=True))
    )

    def slow(self, *args, **more):  # type: ignore[no-untyped-def]
        found = real(self, *args, **more)
        assert hers in {case.subject for case in found.cases}
        remover.start()
        while node.index.store.has_study(case_of_hers):
            time.sleep(0.05)
        return found

    case_of_hers = node.catalogue.studies_of(hers)[0]
    monkeypatch.setattr(retriever, "retrieve", slow)
    process(node, job)
    assert not removed
    node.spool.set_job_state(job, JobState.ANSWERED)
    remover.join(30)
    assert removed
    stored = node.answers.latest(node.vault.uid(OriginalUid(other[0].StudyInstanceUID)))
    assert stored is not None
    assert hers not in {case.subject for case in stored.answer.cases}


def test_a_study_that_never_ends_is_said(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.workflow.withdrawal.ANSWER_S", 0.3)
    process(node, job_of(node, of_hers(1)))
    for job in node.spool.jobs():
        node.spool.set_job_state(job.id, JobState.ANSWERED)
    job = job_of(node, sample_study(1, matrix=64, patient_id=OTHER, seed=5))
    node.spool.set_job_state(job, JobState.RUNNING)
    with pytest.raises(Busy, match="no search finds it"):
        remove_patient(node.context, names_of(node), [KEY], worker_runs=True)
    node.spool.set_job_state(job, JobState.ANSWERED)
    assert remove_patient(node.context, names_of(node), [KEY], worker_runs=True).studies == 1


def test_an_answer_that_was_not_sent_yet_is_given_anew(node: Node) -> None:
    process(node, job_of(node, of_hers(1)))
    other = sample_study(3, matrix=64, patient_id=OTHER, seed=5)
    job = job_of(node, other)
    process(node, job)
    node.spool.set_job_state(job, JobState.ANSWERED)
    (hers,) = names_of(node)
    (result,) = node.answers.results(answer_id=node.spool.job(job).answer_id)
    assert result.state == PENDING
    withdraw(node)
    assert node.answers.due(time.time() + 86_400, [60.0]) == []  # nothing is tried without its object
    close_jobs(node.context)
    (again,) = node.spool.jobs(JobState.QUEUED)
    process(node, again.id)
    study = node.vault.uid(OriginalUid(other[0].StudyInstanceUID))
    stored = node.answers.latest(study)
    assert stored is not None
    assert hers not in {case.subject for case in stored.answer.cases}
    (fresh,) = node.answers.results()
    assert fresh.id != result.id
    assert node.folders.sent(fresh.id).exists()
