"""Runs ``process_study`` durably on DBOS: a worker killed in one step resumes at that step.

Only job row ids pass through the durable log, with the portable JSON serializer, and no exception text does: DBOS
stores inputs, results and errors in clear. The executor id is fixed per worker slot, so that a restarted worker, and
nobody else, takes up what it had begun.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._serialization import DBOSPortableJSONSerializer

from dicomnode.errors import DicomnodeError, QuarantineError, StorageFull
from dicomnode.scp.durability import FULL_ERRNOS, database_errors
from dicomnode.scp.schema import JobState
from dicomnode.workflow.context import Context
from dicomnode.workflow.process_study import STEPS, Step

log = structlog.get_logger(__name__)

WORKFLOW_VERSION = "1"  # raise it when the order or meaning of steps changes; running jobs then start afresh
STEP_ATTEMPTS = 6  # 1 + 2 + 4 + 8 + 16 s: longer than a locked database or a brief full disk
FIRST_RETRY_S = 1.0
_UNUSED_POLL_S = 3600.0  # schedules and queues of DBOS are not used
_LISTEN_S = 2.0  # nor are its notifications, but a stop waits for that thread's round
OK, QUARANTINED, WAITING = "ok", "quarantined", "waiting"
RELEASE = "see the log and 'dicomnode doctor', then: dicomnode quarantine release ID"
RECOVERIES = 8  # of one study: what kills the worker every time must not stop the others; power cuts are rarer
EXCEEDED = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
ENDED = ["SUCCESS", "ERROR", "CANCELLED", EXCEEDED]
FORGET_AT_ONCE = 500  # runs deleted in one transaction
TAKEN_UP = ("PENDING", "ENQUEUED", "DELAYED", "SUCCESS")  # recovery hands a run back through DBOS's own queue


class StepFailed(DicomnodeError):
    """A step failed and may be tried again; carries the kind of the error, never its text."""

    code = "step-failed"


class DurableWorker:
    """The durable side of one worker process.

    Parameters
    ----------
    ctx : Context
        The parts.
    database : Path
        SQLite file of the durable log, of its own: its write locks would stall a receiver.
    slot : str
        Fixed name of this worker.
    """

    def __init__(self, ctx: Context, database: Path, *, slot: str = "worker-0") -> None:
        self._ctx = ctx
        self._active: set[int] = set()
        self._full: set[int] = set()  # jobs whose last failure was a full disk
        self._stranded: set[int] = set()  # jobs whose run ended without a word in the durable log: it was full, too
        self._lock = threading.Lock()
        self._lane = threading.Lock()  # one study computes at a time: the networks use every core already
        config: DBOSConfig = {
            "name": "dicomnode",
            "system_database_url": f"sqlite:///{database}",
            "application_version": WORKFLOW_VERSION,
            "executor_id": slot,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "ERROR",
            "enable_otlp": False,
            "notification_listener_polling_interval_sec": _LISTEN_S,
            "scheduler_polling_interval_sec": _UNUSED_POLL_S,
            "kafka_queue_polling_interval_sec": _UNUSED_POLL_S,
        }
        DBOS(config=config)
        steps = [self._durable_step(name, step) for name, step in STEPS]

        @DBOS.step(name="give_up")  # DBOS decorates functions only, not bound methods
        def give_up(job_id: int, step: str, kind: str) -> str:
            return self._give_up(job_id, step, kind)

        @DBOS.step(name="finish", retries_allowed=True, max_attempts=STEP_ATTEMPTS)
        def finish(job_id: int) -> str:
            return self._finish(job_id)

        def process_study(job_id: int) -> str:
            with self._lock:
                self._active.add(job_id)
            try:
                for name, step in steps:
                    try:
                        outcome = step(job_id)
                    except Exception as exc:  # noqa: BLE001 - whatever it is, the job must end up where people see it
                        return give_up(job_id, name, type(exc).__name__)
                    if outcome != OK:
                        return outcome
                return finish(job_id)
            except Exception:
                with self._lock:
                    self._stranded.add(job_id)
                raise
            finally:
                with self._lock:
                    self._active.discard(job_id)

        self._process: Callable[[int], str] = DBOS.workflow(name="process_study", max_recovery_attempts=RECOVERIES)(
            process_study
        )

    def launch(self) -> None:
        """Start DBOS: what this slot had begun is taken up again."""
        DBOS.launch()
        self.look_after()

    def look_after(self) -> None:
        """Begin afresh what no run will take up any more; give up on a study under which the worker died repeatedly.

        Raises
        ------
        StorageFull, DicomnodeError
            Spool or durable log cannot be written now: to be called again.
        """
        with database_errors():
            self._look_after()

    def _look_after(self) -> None:
        for job_id in self._ctx.spool.job_ids(JobState.RUNNING):
            if job_id in self._active:
                continue
            if job_id in self._stranded:
                DBOS.cancel_workflow(_workflow_id(job_id))  # or the next start would take it up beside the new job
            status = DBOS.get_workflow_status(_workflow_id(job_id))
            if status is not None and status.status == EXCEEDED:
                line = f"the worker died {RECOVERIES} times while it worked on this study"
                self._quarantine(job_id, QuarantineError("failed", line, place="worker", advice=RELEASE))
            elif status is None or status.app_version != WORKFLOW_VERSION or status.status not in TAKEN_UP:
                log.info("job_restarted", job=self._afresh(job_id))  # begun under another version, or stranded
                self._stranded.discard(job_id)

    def forget(self, older_than_s: float) -> int:
        """Delete from the durable log the runs that ended longer ago, whose jobs the spool forgets too; how many.

        Raises
        ------
        StorageFull, DicomnodeError
            The durable log cannot be written now.
        """
        until = datetime.now(UTC) - timedelta(seconds=older_than_s)
        forgotten = 0
        with database_errors():
            while True:
                old = DBOS.list_workflows(
                    status=ENDED,
                    completed_before=until.isoformat(),
                    limit=FORGET_AT_ONCE,
                    load_input=False,
                    load_output=False,
                )
                DBOS.delete_workflows([run.workflow_id for run in old])
                forgotten += len(old)
                if len(old) < FORGET_AT_ONCE:
                    return forgotten

    def _afresh(self, job_id: int) -> int:
        """Hand a job's study to a new job; its id."""
        fresh = self._ctx.spool.requeue(job_id)
        shutil.rmtree(self._ctx.folders.job(job_id), ignore_errors=True)
        return fresh

    def active(self) -> int:
        """Number of studies in work."""
        with self._lock:
            return len(self._active)

    def start(self, job_id: int) -> None:
        """Begin a queued job; begun twice, it runs once."""
        with self._lock:
            self._active.add(job_id)
        try:
            with SetWorkflowID(_workflow_id(job_id)):
                DBOS.start_workflow(self._process, job_id)
        except Exception:
            with self._lock:
                self._active.discard(job_id)
            raise
        self._ctx.spool.set_job_state(job_id, JobState.RUNNING, if_state=JobState.QUEUED)

    def close(self) -> None:
        """Stop; what is in work is taken up at the next launch."""
        DBOS.destroy(workflow_completion_timeout_sec=0)

    def _durable_step(self, name: str, step: Step) -> tuple[str, Callable[[int], str]]:
        def run(job_id: int) -> str:
            with self._lane:
                return self._run(name, step, job_id)

        durable = DBOS.step(
            name=name,
            retries_allowed=True,
            max_attempts=STEP_ATTEMPTS,
            interval_seconds=FIRST_RETRY_S,
            should_retry=lambda exc: isinstance(exc, StepFailed),
        )(run)
        return name, durable

    def _run(self, name: str, step: Step, job_id: int) -> str:
        started = time.monotonic()
        try:
            step(self._ctx, job_id)
        except QuarantineError as exc:
            self._quarantine(job_id, exc)
            return QUARANTINED
        except DicomnodeError as exc:
            self._note_full(job_id, full=_is_full(exc))
            log.warning("step_failed", step=name, job=job_id, code=exc.code, line=str(exc)[:300])
            raise StepFailed(f"{name}: {exc.code}") from None
        except Exception as exc:  # noqa: BLE001 - its text may hold anything, a name included: only its kind goes on
            self._note_full(job_id, full=_is_full(exc))
            log.warning("step_failed", step=name, job=job_id, kind=type(exc).__name__, where=_where(exc))
            raise StepFailed(f"{name}: {type(exc).__name__}") from None
        seconds = time.monotonic() - started
        self._ctx.metrics.step(name, seconds)
        log.info("step_done", step=name, job=job_id, seconds=round(seconds, 3))
        return OK

    def _note_full(self, job_id: int, *, full: bool) -> None:
        with self._lock:
            (self._full.add if full else self._full.discard)(job_id)

    def _quarantine(self, job_id: int, exc: QuarantineError) -> None:
        item = self._ctx.quarantine.hold(exc.reason, exc.line, place=exc.place, advice=exc.advice, job_id=job_id)
        self._ctx.spool.set_job_state(job_id, JobState.QUARANTINED, note=exc.reason)
        shutil.rmtree(self._ctx.folders.job(job_id), ignore_errors=True)  # a released job starts from its originals
        self._ctx.metrics.quarantined(exc.reason)
        self._ctx.metrics.study("quarantined")
        log.warning("quarantined", job=job_id, item=item, reason=exc.reason)

    def _give_up(self, job_id: int, step: str, kind: str) -> str:
        """What cannot be done now: a full disk is waited for, anything else is for people to decide."""
        if self._ctx.spool.job(job_id).state.final:  # killed after the study was handed to a new job
            return WAITING
        if job_id in self._full:
            self._note_full(job_id, full=False)
            log.warning("study_waits_for_space", job=self._afresh(job_id), step=step)
            return WAITING
        error = QuarantineError(
            "failed",
            f"the step {step!r} failed {STEP_ATTEMPTS} times ({kind})",
            place=step,
            advice=RELEASE,
        )
        self._quarantine(job_id, error)
        return QUARANTINED

    def _finish(self, job_id: int) -> str:
        job = self._ctx.spool.job(job_id)
        self._ctx.spool.set_job_state(job_id, JobState.ANSWERED)
        self._ctx.metrics.study("answered" if job.role.answers else "indexed")
        return OK


def _workflow_id(job_id: int) -> str:
    return f"job-{job_id}"


def _is_full(exc: BaseException) -> bool:
    """Whether a step failed for want of space, on whichever of the node's disks."""
    if isinstance(exc, OSError):
        return exc.errno in FULL_ERRNOS
    database = getattr(exc, "orig", None)  # of an error of SQLAlchemy
    return isinstance(exc, StorageFull) or getattr(database, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _where(exc: BaseException) -> str:
    """File name and line of the innermost frame: enough to find a fault, nothing of the data."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
