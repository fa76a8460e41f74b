"""Starts the node's child processes, restarts those that die, and stops all of them together.

Knows nothing of what a child does. A child ends when the supervisor does, even by SIGKILL: every child inherits the
reading end of a pipe whose writing end only the supervisor holds, and ``watch_parent`` ends it at EOF.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0  # a child that ran this long starts again without waiting
STOP_GRACE_S = 25.0  # above a receiver's own grace, under the 30 s after which service managers kill
POLL_S = 0.1
PARENT_FD_FLAG = "--parent-fd"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child: ``argv`` gets ``--parent-fd N`` appended; ``env`` is added to the supervisor's own."""

    name: str
    argv: Sequence[str]
    pass_fds: Sequence[int] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class Supervisor:
    """Runs the children of ``specs`` until stopped."""

    def __init__(self, specs: Sequence[ChildSpec], *, grace_s: float = STOP_GRACE_S) -> None:
        self._children = [_Child(spec) for spec in specs]
        self._grace_s = grace_s
        self._stop = threading.Event()
        self._parent_read, self._parent_write = os.pipe()  # not inheritable; the reading end goes by pass_fds

    def request_stop(self) -> None:
        """Make ``run`` stop all children and return. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Start all children and keep them running until ``request_stop``; then stop them."""
        try:
            while not self._stop.is_set():
                for child in self._children:
                    self._look_after(child)
                self._stop.wait(POLL_S)
        finally:
            self._stop_all()

    def run_until_signalled(self) -> None:
        """``run`` until SIGTERM or SIGINT; call it from the main thread."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        return {c.spec.name: c.process.pid for c in self._children if c.process and c.process.poll() is None}

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return
            child.process = None
            child.failures = 1 if now - child.started >= STEADY_S else child.failures + 1
            wait = min(BACKOFF_FIRST_S * 2 ** (child.failures - 1), BACKOFF_MAX_S)
            child.not_before = now + wait
            log.error("child_died", child=child.spec.name, exit_code=code, restart_in_s=wait, failures=child.failures)
        if now >= child.not_before:
            self._start(child)

    def _start(self, child: _Child) -> None:
        spec = child.spec
        child.started = time.monotonic()
        child.process = subprocess.Popen(  # noqa: S603 - argv is the node's own
            [*spec.argv, PARENT_FD_FLAG, str(self._parent_read)],
            pass_fds=[*spec.pass_fds, self._parent_read],
            env={**os.environ, **spec.env},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the children in order
        )
        log.info("child_started", child=spec.name, pid=child.process.pid)

    def _stop_all(self) -> None:
        running = [c for c in self._children if c.process is not None and c.process.poll() is None]
        for child in running:
            assert child.process is not None
            child.process.terminate()
        end = time.monotonic() + self._grace_s
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("child_killed", child=child.spec.name)
                child.process.kill()
                child.process.wait()
        os.close(self._parent_write)
        os.close(self._parent_read)


def python_module(module: str, *arguments: str) -> list[str]:
    """The argv that runs a module of the node in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def watch_parent(fd: int, *, grace_s: float = STOP_GRACE_S) -> None:
    """In a child: when the parent is gone, end as on SIGTERM, and by force after ``grace_s``."""

    def wait() -> None:
        while os.read(fd, 1):
            continue  # the supervisor never writes; only EOF means something
        os.kill(os.getpid(), signal.SIGTERM)  # first and without a word: the log may go to a pipe that broke too
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=wait, name="watch_parent", daemon=True).start()
