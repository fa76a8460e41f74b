"""Speaks to one MRPT child process: every call either returns, or raises ``ChildDied`` within its time.

A segfault, an illegal instruction, a hang or a lost pipe of the child never reaches this process. Never imports mrpt
itself. Not for two threads at once: callers hold a lock.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.index.rows import SharedRows
from dicomnode.index.segments import Vectors

QUERY_TIMEOUT_S = 20.0  # measured: 7 ms for 32 queries among 100,000; beyond this the child hangs
LOAD_TIMEOUT_S = 300.0  # reading an index of some GB from a slow disk
GROW_TIMEOUT_S = 6 * 3600.0  # measured: half a minute for 100,000 rows of 256
KILL_WAIT_S = 10.0
WATCH_S = 0.2  # how often the watchdog looks: calls may take longer by this


class ChildDied(Exception):
    """The child ended, hung or refused; the line says which. Never leaves the index package."""


class MrptProcess:
    """A child process with an index over the first ``n`` of ``rows``. ``close`` it, or use it as a context manager.

    The child reads the rows where they are; whoever holds this must not change them.
    """

    def __init__(self, rows: SharedRows, n: int) -> None:
        command = [sys.executable, "-m", "dicomnode.index.mrpt_child", str(rows.fd), str(n), str(rows.dim)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(rows.fd,),
            )
        except OSError as fault:
            raise ChildDied(f"the MRPT process cannot be started: {fault.strerror}") from fault
        self.rows = rows
        self._deadline = math.inf  # of the call that is being waited for, by the monotonic clock
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Kill a child that lets a call wait too long, which then reads an end of file.

        One thread for the child's life: starting one for each call takes as long as a search.
        """
        while self._process.poll() is None:
            if time.monotonic() > self._deadline:
                self._process.kill()
                return
            time.sleep(WATCH_S)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def __enter__(self) -> MrptProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and wait for it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was still buffered for the child is of no use any more
        self._process.wait(KILL_WAIT_S)

    def load(self, index: Path) -> dict[str, Any]:
        """Load an index file over the rows, after the caller checked both; its parameters."""
        return dict(self._call("load", LOAD_TIMEOUT_S, index=str(index))[0]["parameters"])

    def grow(self, queries: Vectors, k: int, trees: int) -> None:
        """Grow trees tuned for ``k`` neighbours of ``queries`` [m, dim]."""
        self._call("grow", GROW_TIMEOUT_S, payload=queries.tobytes(), k=k, trees=trees)

    def subset(self, level: float, index: Path) -> dict[str, Any]:
        """Save to ``index`` the trees estimated to reach recall ``level``; their parameters."""
        return dict(self._call("subset", LOAD_TIMEOUT_S, level=level, index=str(index))[0]["parameters"])

    def query(self, queries: Vectors, k: int) -> NDArray[np.int32]:
        """Numbers of the rows nearest to each of ``queries`` [m, dim]: int32 [m, k], -1 where fewer were found."""
        _, body = self._call("query", QUERY_TIMEOUT_S, payload=queries.tobytes(), k=k)
        if len(body) != queries.shape[0] * k * 4:
            raise ChildDied("the MRPT process gave a reply of the wrong length")
        return np.frombuffer(body, dtype="<i4").reshape(-1, k)

    def _call(self, op: str, timeout_s: float, payload: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # both are pipes
        self._deadline = time.monotonic() + timeout_s
        try:
            stdin.write(json.dumps({**request, "op": op, "bytes": len(payload)}).encode() + b"\n")
            stdin.write(payload)
            stdin.flush()
            line = stdout.readline()
            reply = json.loads(line) if line.endswith(b"\n") else {"bytes": -1}
            body = stdout.read(max(0, reply["bytes"]))
        except (OSError, ValueError) as fault:
            raise ChildDied(self._ending()) from fault
        finally:
            self._deadline = math.inf
        if reply["bytes"] < 0 or len(body) != reply["bytes"]:
            raise ChildDied(self._ending())
        if "error" in reply:
            raise ChildDied(f"the MRPT process refused: {reply['error']}")
        return reply, body

    def _ending(self) -> str:
        try:
            code = self._process.wait(KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "the MRPT process closed its pipe"
        if code >= 0:
            return f"the MRPT process ended with status {code}"
        name = signal.Signals(-code).name
        return f"the MRPT process was ended by {name}" + (
            ": the mrpt package was built for another CPU, install it again" if name == "SIGILL" else ""
        )
