"""De-identifies and audits many files in worker processes that are replaced after a number of files.

Processes, because the engine silences other packages by state of its process, and recycled, because packages
underneath may keep memory. Nothing that a worker raises crosses the pipe: outcomes are plain values without text
from an object. A worker that dies costs one more try, alone; a file that kills two is given up.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from dicomnode.deid import options as deid_options
from dicomnode.deid.interrupts import interrupts_blocked, interrupts_held
from dicomnode.deid.pseudonym import Subject
from dicomnode.errors import DeidError, DicomnodeError, QuarantineError, StorageFull

if TYPE_CHECKING:  # the engine is heavy and needed in the workers only
    from dicomnode.deid.engine import Deidentifier
    from dicomnode.deid.result import DeidResult

FILES_PER_WORKER = (
    200  # then the workers are replaced; a start costs about one file's time in each (benchmarks/deid_speed.py)
)
POLL_S = 0.2  # between two looks whether Ctrl-C was pressed
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeidTask:
    """One file to de-identify: from, to, and for whom."""

    src: Path = field(repr=False)
    dst: Path
    subject: Subject


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error as plain values: exceptions of ours do not survive pickling with all they carry."""

    kind: str
    reason: str
    line: str
    place: str
    advice: str

    @classmethod
    def of(cls, error: DicomnodeError) -> _Failure:
        return cls(error.code, getattr(error, "reason", ""), error.line, error.place, error.advice)

    def error(self) -> DicomnodeError:
        if self.kind == QuarantineError.code:
            return QuarantineError(self.reason, self.line, place=self.place, advice=self.advice)
        kind = StorageFull if self.kind == StorageFull.code else DeidError
        return kind(self.line, place=self.place, advice=self.advice)


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a worker needs to know; it travels with each file, as workers come and go."""

    profile: str
    options: tuple[str, ...]
    uid_key: bytes = field(repr=False)
    fsync: bool


@functools.cache
def _deidentifier(setup: _Setup) -> Deidentifier:
    from dicomnode.deid.engine import Deidentifier
    from dicomnode.deid.recipe import compile_recipe

    return Deidentifier(compile_recipe(setup.profile, setup.options), setup.uid_key, fsync=setup.fsync)


def _work(setup: _Setup, task: DeidTask) -> DeidResult | _Failure:
    """In the worker: one file, audited."""
    try:
        return _deidentifier(setup).deidentify(task.src, task.dst, task.subject)
    except DicomnodeError as error:
        return _Failure.of(error)


class DeidPool:
    """Workers that de-identify; use as a context manager, or call ``close``.

    Parameters
    ----------
    options : sequence of str
        ``[deid] options``; checked at once, before any worker starts.
    uid_key : bytes
        ``Vault.uid_key``.
    workers : int
        Processes.
    fsync : bool
        Whether each file is synced before its outcome is reported.

    Raises
    ------
    SettingsError
        The profile or an option cannot be honoured.
    """

    def __init__(
        self,
        options: Sequence[str],
        uid_key: bytes,
        *,
        profile: str = "basic",
        workers: int = 2,
        fsync: bool = True,
        files_per_worker: int = FILES_PER_WORKER,
    ) -> None:
        deid_options.parse(profile, options)
        self._setup = _Setup(profile, tuple(options), uid_key, fsync)
        self._workers = max(1, workers)
        self._limit = self._workers * files_per_worker
        self._executor: ProcessPoolExecutor | None = None
        self._used = 0

    def __enter__(self) -> DeidPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers finish and go."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        self._executor, self._used = None, 0

    def run(self, tasks: Sequence[DeidTask]) -> list[DeidResult | DicomnodeError]:
        """De-identify and audit every file; outcomes in the order of ``tasks``, errors as values.

        ``dst`` exists exactly where the outcome is a ``DeidResult``. Ctrl-C in the main thread ends the run with
        ``KeyboardInterrupt`` once the files in hand are done.
        """
        outcomes: dict[int, DeidResult | DicomnodeError] = {}
        waiting = list(range(len(tasks)))
        with interrupts_held() as check:
            while waiting:
                batch = waiting[: self._limit - self._used]
                waiting = waiting[len(batch) :]
                outcomes |= self._batch(tasks, batch, check)
                if self._used >= self._limit:
                    self.close()
                outcomes |= self._one_by_one(tasks, [number for number in batch if number not in outcomes], check)
        return [outcomes[number] for number in range(len(tasks))]

    def _batch(
        self, tasks: Sequence[DeidTask], batch: list[int], check: Callable[[], None]
    ) -> dict[int, DeidResult | DicomnodeError]:
        """Outcomes of a batch; without those that a dying worker took along."""
        if self._executor is None:
            self._executor = _executor(self._workers)
        done: dict[int, DeidResult | DicomnodeError] = {}
        try:
            futures = {number: self._executor.submit(_work, self._setup, tasks[number]) for number in batch}
            self._used += len(batch)
            for number, future in futures.items():
                done[number] = _outcome(future, check)
        except BrokenProcessPool:
            _log.warning("deid_worker_died", files=len(batch) - len(done))
            self.close()
        except KeyboardInterrupt:  # what is in hand is finished, the rest is not begun
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor, self._used = None, 0
            raise
        return done

    def _one_by_one(
        self, tasks: Sequence[DeidTask], left: list[int], check: Callable[[], None]
    ) -> dict[int, DeidResult | DicomnodeError]:
        """What a dying worker took along, with one file in flight at a time, so that the deadly one shows."""
        done: dict[int, DeidResult | DicomnodeError] = {}
        while len(done) < len(left):
            with _executor(1) as executor:
                for number in left[len(done) :]:
                    try:
                        done[number] = _outcome(executor.submit(_work, self._setup, tasks[number]), check)
                    except BrokenProcessPool:
                        line, advice = "the worker died on this file twice", "look at the object with its sender"
                        done[number] = DeidError(line, advice=advice)
                        break
        return done


def _outcome(future: Future[DeidResult | _Failure], check: Callable[[], None]) -> DeidResult | DicomnodeError:
    check()
    while not wait_for([future], POLL_S).done:
        check()
    outcome = future.result()
    return outcome.error() if isinstance(outcome, _Failure) else outcome


def _executor(workers: int) -> ProcessPoolExecutor:
    """Workers forked from a server that has imported the engine: no threads or locks of ours are inherited.

    ``max_tasks_per_child`` is not used: CPython 3.11 can stand still with it (python/cpython#115634).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dicomnode.deid.engine", "dicomnode.deid.recipe"])
    with interrupts_blocked():  # so that a worker does not get Ctrl-C before it can say that it ignores it
        forkserver.ensure_running()
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_the_owner)


def _follow_the_owner() -> None:
    """In a worker: end when the process that owns the pool is gone, also by SIGKILL.

    A worker of ``ProcessPoolExecutor`` waits for ever otherwise (python/cpython#111873), with the key in its memory.
    Ctrl-C reaches the whole group of processes: the owner alone decides what it means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = multiprocessing.parent_process()
    if owner is not None:
        threading.Thread(target=_exit_after, args=(owner.sentinel,), name="end_with_parent", daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
