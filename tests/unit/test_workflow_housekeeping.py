"""What is deleted, and when: originals after delivery, sent objects and key slices after their days, never before."""

from __future__ import annotations

import time

import pytest
from workflow_samples import job_of, process

from dicomnode.domain import Role
from dicomnode.scp.schema import JobState
from dicomnode.testing import Pacs, free_port, sample_repository, sample_study
from dicomnode.workflow.asking import ASK_PREFIX
from dicomnode.workflow.housekeeping import ASK_S, DAY_S, close_jobs, expire, name_held
from dicomnode.workflow.ingest import add_paths


@pytest.fixture
def node(make_node, tmp_path):
    node = make_node(tmp_path, Pacs(port=free_port()))
    add_paths(node.context, [sample_repository(tmp_path / "studies", 1, slices=1, matrix=64).parent])
    return node


@pytest.fixture
def answered(node):
    """(job, result) of a study that was answered and not yet delivered."""
    job = job_of(node, sample_study(2, matrix=64, patient_id="ASKING"), role=Role.QUERY)
    process(node, job)
    node.spool.set_job_state(job, JobState.ANSWERED)
    (result,) = node.answers.results(answer_id=node.spool.job(job).answer_id)
    return job, result.id


def originals(node) -> int:
    return len(list(node.spool.objects.iterdir()))


def test_originals_stay_until_every_result_is_delivered(node, answered):
    job, result = answered
    assert close_jobs(node.context) == 0
    assert originals(node) == 2
    node.answers.mark_delivered(result)
    assert close_jobs(node.context) == 1
    assert originals(node) == 0
    assert node.spool.job(job).state is JobState.DONE
    assert not node.folders.job(job).exists()
    assert close_jobs(node.context) == 0


def test_a_study_whose_object_was_lost_before_it_was_sent_is_answered_anew(node, answered):
    _, result = answered
    node.folders.sent(result).unlink()
    assert close_jobs(node.context) == 0
    (again,) = node.spool.jobs(JobState.QUEUED)
    assert originals(node) == 2
    process(node, again.id)
    (fresh,) = node.answers.results()
    assert (fresh.state, node.folders.sent(fresh.id).exists()) == ("pending", True)


def test_a_study_that_is_not_to_be_answered_is_deleted_when_it_is_indexed(node):
    job = job_of(node, sample_study(1, matrix=64, patient_id="KEPT"), role=Role.INDEX)
    process(node, job)
    assert close_jobs(node.context) == 0  # still running
    node.spool.set_job_state(job, JobState.ANSWERED)
    assert close_jobs(node.context) == 1
    assert originals(node) == 0


def test_a_refused_result_keeps_the_originals_until_its_object_expires(node, answered):
    _, result = answered
    node.answers.mark_failed(result, "refused")
    assert close_jobs(node.context) == 0
    expire(node.context, keep_days=7, result_days=30, now=time.time() + 6 * DAY_S)
    assert close_jobs(node.context) == 0
    expire(node.context, keep_days=7, result_days=30, now=time.time() + 8 * DAY_S)
    assert not node.folders.sent(result).exists()
    assert close_jobs(node.context) == 1
    assert originals(node) == 0


def test_a_held_job_keeps_its_originals(node):
    job = job_of(node, sample_study(1, matrix=64, patient_id="HELD"))
    node.spool.set_job_state(job, JobState.QUARANTINED, note="audit")
    assert close_jobs(node.context) == 0
    assert originals(node) == 1


def test_a_sent_object_is_kept_its_days_and_a_waiting_one_for_as_long_as_it_waits(node, answered):
    _, result = answered
    sent, enhanced = node.folders.sent(result), node.folders.sent_enhanced(result)
    assert sent.exists()
    assert enhanced.exists()
    far = time.time() + 1000 * DAY_S
    expire(node.context, keep_days=7, result_days=2000, now=far)
    assert sent.exists()
    node.answers.mark_delivered(result)
    expire(node.context, keep_days=7, result_days=2000, now=time.time() + 6.9 * DAY_S)
    assert sent.exists()
    expire(node.context, keep_days=7, result_days=2000, now=time.time() + 7.1 * DAY_S)
    assert not sent.exists()
    assert not enhanced.exists()  # it names the patient as well
    expire(node.context, keep_days=7, result_days=2000, now=time.time() + 7.1 * DAY_S)


def test_key_slices_go_after_their_days_with_their_folder(node, answered):
    job, _ = answered
    answer = node.spool.job(job).answer_id
    assert len(list(node.folders.results.rglob("*.dcm"))) == 2
    expire(node.context, keep_days=7, result_days=30, now=time.time() + 29 * DAY_S)
    assert len(node.answers.slices(answer)) == 2
    expire(node.context, keep_days=7, result_days=30, now=time.time() + 31 * DAY_S)
    assert node.answers.slices(answer) == []
    assert list(node.folders.results.iterdir()) == []
    assert node.answers.by_id(answer).answer.verdict


def test_a_held_job_without_an_item_gets_one_and_only_one(node):
    job = job_of(node, sample_study(1, matrix=64, patient_id="HELD"))
    node.spool.set_job_state(job, JobState.QUARANTINED, note="burned-in")
    assert name_held(node.context) == 1
    assert name_held(node.context) == 0
    (item,) = node.quarantine.items()
    assert (item.reason, item.job_id) == ("burned-in", job)


def test_what_a_killed_query_left_is_deleted_after_an_hour(node):
    left = node.folders.work / f"{ASK_PREFIX}killed"
    left.mkdir()
    (left / "0.dcm").write_bytes(b"x")
    expire(node.context, keep_days=7, result_days=30, now=time.time() + 0.9 * ASK_S)
    assert left.exists()
    expire(node.context, keep_days=7, result_days=30, now=time.time() + 1.1 * ASK_S)
    assert not left.exists()
