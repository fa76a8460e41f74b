"""The durable side of a worker, on a real durable log: what happens where that log itself cannot be written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dbos import DBOS
from soak.full_disk import can_mount, fill, small_disk
from structlog.testing import capture_logs
from workflow_samples import job_of, process, receive

from dicomnode import serving
from dicomnode.errors import StorageFull
from dicomnode.node import Node
from dicomnode.scp.schema import JobState
from dicomnode.testing import sample_study
from dicomnode.workflow import durable
from dicomnode.workflow.durable import DurableWorker
from dicomnode.workflow.housekeeping import DAY_S, expire

WAIT_S = 120.0
TAKEN_UP_S = 3.0  # a run that is taken up at the start begins within one second


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 200):
        yield tmp_path / "disk"


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "FIRST_RETRY_S", 0.01)


def state_of_study(node: Node) -> set[JobState]:
    """States of the jobs of the one study."""
    return {node.spool.job(n).state for state in JobState for n in node.spool.job_ids(state)}


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root")
def test_a_study_whose_durable_log_was_full_when_its_tries_ended_is_taken_up_with_room_again(
    make_node, disk: Path, quick_retries: None
) -> None:
    node = make_node(disk)
    study = receive(node.spool, sample_study(2))
    job = node.spool.claim(study)
    worker = DurableWorker(node.context, node.data_dir / "workflow.sqlite3")
    worker.launch()
    try:
        worker.start(job)
        ballast = fill(disk)
        wait_until(lambda: worker.active() == 0)  # every try has failed, and that could not be written down either
        assert state_of_study(node) == {JobState.RUNNING}
        with pytest.raises(StorageFull):
            worker.look_after()
        assert node.spool.job(job).state is JobState.RUNNING, "still full: nothing can be handed on"
        ballast.unlink()
        with capture_logs() as logs:
            worker.look_after()
        (fresh,) = (entry["job"] for entry in logs if entry["event"] == "job_restarted")
        assert node.spool.job(job).state is JobState.DONE
        worker.look_after()
        assert node.spool.job_ids(JobState.QUEUED) == [fresh], "once"
        worker.start(fresh)
        wait_until(lambda: node.spool.job(fresh).state is JobState.ANSWERED)
        worker.close()
        worker = DurableWorker(node.context, node.data_dir / "workflow.sqlite3")
        with capture_logs() as logs:
            worker.launch()
            time.sleep(TAKEN_UP_S)
        assert not {"step_done", "step_failed", "quarantined"} & {e["event"] for e in logs}, "the old run is over"
    finally:
        worker.close()


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root")
def test_a_full_disk_does_not_end_the_worker_while_it_forgets_what_is_old(make_node, disk: Path) -> None:
    node = make_node(disk)
    job = job_of(node, sample_study(2))
    process(node, job)
    (answer_id,) = {r.answer_id for r in node.answers.results()} or {node.spool.job(job).answer_id}
    assert node.answers.slices(answer_id)
    ballast = fill(disk)
    old = time.time() + 400 * DAY_S
    with capture_logs() as logs, serving._tried_again():
        expire(node.context, keep_days=7, result_days=30, now=old)
    assert [(e["event"], e["kind"]) for e in logs] == [("housekeeping_failed", "OperationalError")]
    ballast.unlink()
    expire(node.context, keep_days=7, result_days=30, now=old)
    assert not node.answers.slices(answer_id)


def test_the_durable_log_forgets_runs_that_ended_and_keeps_those_under_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "FORGET_AT_ONCE", 2)
    ended = [job_of(node, sample_study(1, patient_id=f"P{n}")) for n in range(3)]
    worker = DurableWorker(node.context, node.data_dir / "workflow.sqlite3")
    worker.launch()
    try:
        for job in ended:
            worker.start(job)
        wait_until(lambda: all(node.spool.job(job).state is JobState.ANSWERED for job in ended))
        wait_until(lambda: worker.active() == 0)
        under_way = job_of(node, sample_study(1, patient_id="P9"))
        worker.start(under_way)
        assert worker.forget(3600.0) == 0, "too young"
        assert worker.forget(0.0) == 3
        left = {w.workflow_id for w in DBOS.list_workflows()}
        assert left == {f"job-{under_way}"}
        wait_until(lambda: node.spool.job(under_way).state is JobState.ANSWERED)
    finally:
        worker.close()
