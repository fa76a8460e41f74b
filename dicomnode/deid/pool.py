"""De-identifies and audits many files in worker processes that are replaced after a number of files.

Processes, because the engine silences other packages by state of its process, and recycled, because packages
underneath may keep memory. Nothing that a worker raises crosses the pipe: outcomes are plain values without text
from an object. A worker that dies costs one more try, alone; a file that kills two is given up.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from dicomnode.deid import options as deid_options
from dicomnode.deid.by_hand import NOTHING, ByHand
from dicomnode.deid.interrupts import interrupts_blocked, interrupts_held
from dicomnode.deid.pixel_policy import PixelPolicy as PixelPolicy  # callers need no other module
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.site import SiteRecipe
from dicomnode.errors import DeidError, DicomnodeError, QuarantineError, StorageFull

if TYPE_CHECKING:  # the engine is heavy and needed in the workers only
    from dicomnode.deid.engine import Deidentifier
    from dicomnode.deid.result import DeidResult

FILES_PER_WORKER = (
    200  # then the workers are replaced; a start costs about one file's time in each (benchmarks/deid_speed.py)
)
POLL_S = 0.2  # between two looks whether Ctrl-C was pressed
AHEAD = 8  # files in hand for each worker: so that one large file does not let the others wait
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeidTask:
    """One file to de-identify: from, to, and for whom. ``detailed``: with ``sha256`` and ``changes`` of the result.

    ``by_hand``: what a person decided about its pixels.
    """

    src: Path = field(repr=False)
    dst: Path
    subject: Subject
    detailed: bool = False
    by_hand: ByHand = NOTHING


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
    pixels: PixelPolicy
    site: SiteRecipe | None = None


@functools.cache
def _deidentifier(setup: _Setup) -> Deidentifier:
    from dicomnode.deid.engine import Deidentifier
    from dicomnode.deid.recipe import compile_recipe

    recipe = compile_recipe(setup.profile, setup.options, setup.site)
    return Deidentifier(recipe, setup.uid_key, fsync=setup.fsync, pixels=setup.pixels)


def _work(setup: _Setup, task: DeidTask) -> DeidResult | _Failure:
    """In the worker: one file, audited."""
    try:
        deidentifier = _deidentifier(setup)
        result = deidentifier.deidentify(task.src, task.dst, task.subject, task.by_hand)
        return _with_details(deidentifier, task, result) if task.detailed else result
    except DicomnodeError as error:
        return _Failure.of(error)


def _with_details(deidentifier: Deidentifier, task: DeidTask, result: DeidResult) -> DeidResult:
    """The result with hash and changes; where they cannot be told the file goes, as after any other fault."""
    from dicomnode.deid.changes import changes_of
    from dicomnode.deid.quiet import safe_error

    try:
        with task.dst.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return replace(result, sha256=digest, changes=changes_of(task.src, task.dst, deidentifier.recipe))
    except Exception as error:  # noqa: BLE001 (pydicom may quote a value in any error)
        task.dst.unlink(missing_ok=True)
        raise safe_error(error) from None


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
    site : SiteRecipe, optional
        The site's own rules.
    pixels : PixelPolicy
        What is done about text in pixels, and about faces.

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
        site: SiteRecipe | None = None,
        pixels: PixelPolicy | None = None,
    ) -> None:
        deid_options.parse(profile, options)
        self._setup = _Setup(profile, tuple(options), uid_key, fsync, pixels or PixelPolicy(), site)
        self._workers = max(1, workers)
        self._limit = self._workers * files_per_worker
        self._executor: ProcessPoolExecutor | None = None
        self._used = 0

    @property
    def pixels(self) -> PixelPolicy:
        """What is done about text in pixels and faces."""
        return self._setup.pixels

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

    def stream(self, tasks: Iterable[DeidTask]) -> Generator[tuple[DeidTask, DeidResult | DicomnodeError], None, None]:
        """As ``run``, but tasks are taken as workers become free and outcomes are handed out as they come, in order.

        At most ``AHEAD`` files a worker are in hand, so that memory does not grow with their number. Close the
        iterator where it is not read to its end (``contextlib.closing``).
        """
        source = iter(tasks)
        hand: deque[tuple[DeidTask, Future[DeidResult | _Failure]]] = deque()
        with interrupts_held() as check:
            try:
                while True:
                    self._fill(hand, source)
                    if not hand:
                        return
                    task, future = hand.popleft()
                    try:
                        outcome = _outcome(future, check)
                    except BrokenProcessPool:
                        taken = [(task, future), *hand]
                        hand.clear()
                        yield from self._after_a_death(taken, check)
                    else:
                        yield task, outcome
            finally:
                if hand and self._executor is not None:  # what is in hand is finished, the rest is not begun
                    self._executor.shutdown(wait=True, cancel_futures=True)
                    self._executor, self._used = None, 0

    def _fill(self, hand: deque[tuple[DeidTask, Future[DeidResult | _Failure]]], source: Iterator[DeidTask]) -> None:
        """Give the workers what they may have in hand; replace them when they have had their share."""
        if not hand and self._used >= self._limit:
            self.close()
        while len(hand) < AHEAD * self._workers and self._used < self._limit:
            task = next(source, None)
            if task is None:
                return
            if self._executor is None:
                self._executor = _executor(self._workers)
            try:
                future = self._executor.submit(_work, self._setup, task)
            except BrokenProcessPool as error:  # a worker died since: the file in front of this one shows it
                future = Future()
                future.set_exception(error)
                hand.append((task, future))
                return
            hand.append((task, future))
            self._used += 1

    def _after_a_death(
        self, taken: Sequence[tuple[DeidTask, Future[DeidResult | _Failure]]], check: Callable[[], None]
    ) -> Iterator[tuple[DeidTask, DeidResult | DicomnodeError]]:
        """Outcomes of what was in hand when a worker died: those that came before, the others one by one."""
        self.close()
        lost = [n for n, (_, future) in enumerate(taken) if not future.done() or future.exception() is not None]
        _log.warning("deid_worker_died", files=len(lost))
        again = self._one_by_one([task for task, _ in taken], lost, check)
        for number, (task, future) in enumerate(taken):
            yield task, again[number] if number in again else _outcome(future, check)

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
