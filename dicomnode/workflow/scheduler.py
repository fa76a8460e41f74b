"""The study-quiet timer: a study without a new image for N seconds becomes a job, jobs are begun one by one.

The spool itself is the record of what has arrived, so nothing is lost between a C-STORE and the timer
(docs/decisions/0002-quiet-timer.md). Quiet is measured on the monotonic clock: setting the wall clock changes
nothing, and after a restart a study is quiet again N seconds later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from dicomnode.errors import DicomnodeError
from dicomnode.scp.schema import JobState
from dicomnode.scp.spool import Spool
from dicomnode.workflow.durable import DurableWorker

log = structlog.get_logger(__name__)

POLL_S = 0.25
AFTER_FAULT_S = 2.0
MAX_ACTIVE = 2  # one computes while the other reads or writes


@dataclass(slots=True)
class _Seen:
    newest: int
    since: float


class Scheduler:
    """Turns quiet studies into jobs and begins queued jobs.

    Parameters
    ----------
    spool : Spool
        Where studies arrive.
    worker : DurableWorker
        Who runs jobs.
    quiet_s : float
        Seconds without a new image that end a study.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self, spool: Spool, worker: DurableWorker, quiet_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spool = spool
        self._worker = worker
        self._quiet_s = quiet_s
        self._clock = clock
        self._seen: dict[int, _Seen] = {}
        self._changes = spool.changes()
        self._at_rest = False

    def tick(self) -> int:
        """One round; returns the number of jobs begun."""
        changed = self._changes.since_last()
        if self._at_rest and not changed:
            return 0
        now = self._clock()
        pending = {p.study_id: p.newest_row_id for p in self._spool.pending()}
        for gone in self._seen.keys() - pending.keys():
            del self._seen[gone]
        for study_id, newest in pending.items():
            seen = self._seen.get(study_id)
            if seen is None or seen.newest != newest:
                self._seen[study_id] = _Seen(newest, now)
            elif now - seen.since >= self._quiet_s:
                job_id = self._spool.claim(study_id)
                log.info("study_complete", job=job_id)
        queued = self._spool.job_ids(JobState.QUEUED)
        begun = queued[: max(MAX_ACTIVE - self._worker.active(), 0)]
        for job_id in begun:
            self._worker.start(job_id)
        self._at_rest = not pending and not queued
        return len(begun)

    def run(self, stop: threading.Event) -> None:
        """Tick until told to stop; a fault of the database is logged and tried again."""
        while not stop.wait(POLL_S):
            try:
                self.tick()
            except DicomnodeError as exc:
                log.warning("scheduler_failed", code=exc.code, line=exc.line)
                stop.wait(1.0)
            except Exception:  # the durable log may be away: nothing may end the timer
                log.exception("scheduler_failed")
                stop.wait(AFTER_FAULT_S)
