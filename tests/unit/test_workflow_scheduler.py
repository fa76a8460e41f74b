"""The study-quiet timer: N seconds of silence end a study, whatever the wall clock or a restart does."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
from workflow_samples import receive

from dicomnode.scp.schema import JobState
from dicomnode.scp.spool import Spool
from dicomnode.testing import sample_study
from dicomnode.workflow.scheduler import MAX_ACTIVE, Scheduler

QUIET = 10.0


@dataclass
class Clock:
    """Monotonic seconds that pass when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Worker:
    """Takes jobs, as the durable worker does, and works on them for ever."""

    spool: Spool
    begun: list[int] = field(default_factory=list)

    def active(self) -> int:
        return len(self.begun)

    def start(self, job_id: int) -> None:
        self.begun.append(job_id)
        self.spool.set_job_state(job_id, JobState.RUNNING, if_state=JobState.QUEUED)


@pytest.fixture
def spool(tmp_path):
    spool = Spool.open(tmp_path / "identified")
    yield spool
    spool.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def worker(spool):
    return Worker(spool)


@pytest.fixture
def scheduler(spool, worker, clock):
    return Scheduler(spool, worker, QUIET, clock)


def images(patient: str, n: int = 1):
    return sample_study(n, matrix=32, patient_id=patient)


def test_a_study_is_begun_when_it_has_been_quiet_long_enough(scheduler, spool, worker, clock):
    receive(spool, images("A", 3))
    assert scheduler.tick() == 0
    clock.now += QUIET - 0.1
    assert scheduler.tick() == 0
    clock.now += 0.1
    assert scheduler.tick() == 1
    (job,) = worker.begun
    assert len(spool.job(job).instances) == 3
    clock.now += 100
    assert scheduler.tick() == 0


def test_each_new_image_starts_the_silence_anew(scheduler, spool, clock, worker):
    study = images("A", 3)
    for image in study:
        receive(spool, [image])
        scheduler.tick()
        clock.now += QUIET - 1
    assert worker.begun == []
    clock.now += 1
    assert scheduler.tick() == 1
    assert len(spool.job(worker.begun[0]).instances) == 3


def test_a_duplicate_does_not_start_the_silence_anew(scheduler, spool, clock):
    receive(spool, images("A"))
    scheduler.tick()
    clock.now += QUIET - 1
    receive(spool, images("A"))
    scheduler.tick()
    clock.now += 1
    assert scheduler.tick() == 1


def test_studies_are_quiet_each_for_itself(scheduler, spool, clock, worker):
    receive(spool, images("A"))
    scheduler.tick()
    clock.now += QUIET / 2
    receive(spool, images("B"))
    scheduler.tick()
    clock.now += QUIET / 2
    assert scheduler.tick() == 1
    clock.now += QUIET / 2
    assert scheduler.tick() == 1


def test_late_images_make_a_next_job_of_the_same_study(scheduler, spool, clock, worker):
    study = images("A", 2)
    receive(spool, study[:1])
    scheduler.tick()
    clock.now += QUIET
    scheduler.tick()
    receive(spool, study[1:])
    scheduler.tick()
    clock.now += QUIET
    scheduler.tick()
    first, second = (spool.job(j) for j in worker.begun)
    assert (first.study_id, first.generation, second.generation) == (second.study_id, 1, 2)


def test_after_a_restart_a_study_is_quiet_again_after_the_same_time(spool, worker, clock):
    receive(spool, images("A"))
    Scheduler(spool, worker, QUIET, clock).tick()
    clock.now += QUIET
    restarted = Scheduler(spool, worker, QUIET, clock)
    assert restarted.tick() == 0
    clock.now += QUIET
    assert restarted.tick() == 1


def test_no_more_jobs_are_begun_than_can_be_worked_on(scheduler, spool, clock, worker):
    for patient in "ABCD":
        receive(spool, images(patient))
    scheduler.tick()
    clock.now += QUIET
    assert scheduler.tick() == MAX_ACTIVE
    assert len(spool.job_ids(JobState.QUEUED)) == 4 - MAX_ACTIVE
    assert scheduler.tick() == 0
    worker.begun.clear()
    assert scheduler.tick() == 2


def test_a_fault_when_a_job_is_begun_is_logged_and_the_timer_goes_on(spool, worker, monkeypatch):
    monkeypatch.setattr("dicomnode.workflow.scheduler.AFTER_FAULT_S", 0.05)
    faults = [RuntimeError("the durable log is away")]
    start = worker.start

    def faulty(job_id: int) -> None:
        if faults:
            raise faults.pop()
        start(job_id)

    worker.start = faulty
    receive(spool, images("A"))
    stop = threading.Event()
    thread = threading.Thread(target=Scheduler(spool, worker, 0.0).run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 20
    while not worker.begun and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(20)
    assert (len(worker.begun), faults) == (1, [])


def test_a_report_alone_never_starts_a_study(scheduler, spool, clock, worker):
    (report,) = images("A")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    receive(spool, [report])
    scheduler.tick()
    clock.now += 10 * QUIET
    assert scheduler.tick() == 0
    assert spool.job_ids(*JobState) == []
