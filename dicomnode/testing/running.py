"""A real node in a folder: its settings file, its processes, and commands beside it. For tests, the demo and users."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dicomnode.errors import Busy
from dicomnode.testing.network import Pacs, free_port

READY_S = 60.0
STOP_S = 30.0
SHARED_PREFIXES = ("DICOMNODE__", "DICOMNODE_CONFIG")


class RunningNode:
    """``dicomnode serve`` as a process group of its own; use as a context manager.

    Parameters
    ----------
    folder : Path
        Holds ``node.toml``, ``var`` and ``node.log``; made if missing.
    pacs : Pacs, optional
        A peer that takes results.
    quiet_s : float
        Study-quiet time.
    extra : str
        More TOML, appended.
    roles : mapping, optional
        AE titles and their roles; else DICOMNODE, QUERYONLY and INDEXONLY, one of each role.
    """

    def __init__(
        self,
        folder: Path,
        pacs: Pacs | None = None,
        *,
        quiet_s: float = 1.0,
        callers: Sequence[str] = ("WORKSTATION", "STORESCU"),
        objects: Sequence[str] = ("sr",),
        receivers: int = 2,
        log_level: str = "info",
        sections: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._more_environment = dict(environment or {})
        self.dicom_port, self.web_port = free_port(), free_port()
        self.settings = folder / "node.toml"
        self.log = folder / "node.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        peers = [_peer(f"caller-{n}", title, 11999, results=False, objects=()) for n, title in enumerate(callers)]
        if pacs is not None:
            peers.append(_peer("pacs", pacs.ae_title, pacs.port, results=True, objects=objects))
        titles = {"DICOMNODE": "index+query", "QUERYONLY": "query", "INDEXONLY": "index"}
        self.settings.write_text(
            f'[node]\ndata_dir = {json.dumps(str(folder / "var"))}\nlog_level = "{log_level}"\n'
            f"[web]\nport = {self.web_port}\n{sections}\n"
            f"[dicom]\nport = {self.dicom_port}\nreceivers = {receivers}\nstudy_quiet_s = {quiet_s}\n"
            + "".join(f'[[dicom.ae_titles]]\ntitle = "{t}"\nrole = "{r}"\n' for t, r in titles.items())
            + "".join(peers),
            "utf-8",
        )

    @property
    def var(self) -> Path:
        """The node's data folder."""
        return self.folder / "var"

    @property
    def url(self) -> str:
        """Base of the node's web side."""
        return f"http://127.0.0.1:{self.web_port}"

    def start(self) -> Self:
        """Start the node and wait until ``/readyz`` says 200.

        Raises
        ------
        Busy
            If it is not ready in time; the end of its log is in the line.
        """
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Start the node without waiting."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "dicomnode.cli", "serve", "--config", str(self.settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    def wait_ready(self, timeout: float = READY_S) -> float:
        """Seconds until ``/readyz`` said 200."""
        began = time.monotonic()
        while time.monotonic() - began < timeout:
            if self.get("/readyz")[0] == 200:
                return time.monotonic() - began
            if self._process is not None and self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise Busy(f"the node is not ready: {self.log.read_text('utf-8', 'replace')[-2000:]}", place=str(self.log))

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET; status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310 - our own http URL
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read()
        except OSError:
            return 0, b""

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A ``dicomnode`` command with this node's settings."""
        return subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "dicomnode.cli", *map(str, arguments), "--config", str(self.settings)],
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
        )

    def json(self, *arguments: str | Path) -> Any:
        """The JSON object that a command with ``--json`` prints."""
        done = self.run(*arguments, "--json")
        if not done.stdout:
            raise Busy(done.stderr.strip() or f"exit {done.returncode}", place=f"dicomnode {arguments[0]}")
        return json.loads(done.stdout)

    def pids(self) -> list[int]:
        """Process ids of the node: the supervisor, its children and theirs."""
        return [] if self._process is None else _tree(self._process.pid)

    def kill(self) -> None:
        """SIGKILL to every process of the node at once, as a power cut would."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._wait()

    def stop(self) -> int | None:
        """SIGTERM, and wait. Returns the exit code."""
        if self._process is None or self._process.poll() is not None:
            return None if self._process is None else self._process.returncode
        self._process.terminate()
        return self._wait()

    def _wait(self) -> int | None:
        if self._process is None:
            return None
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _environment(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(SHARED_PREFIXES)}
        return {**own, **self._more_environment}

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _tree(pid: int) -> list[int]:
    """A process and all that it and its descendants have started."""
    found = [pid]
    try:
        listed = [thread.read_text() for thread in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended meanwhile
        return found
    for child in " ".join(listed).split():
        found += _tree(int(child))
    return found


def _peer(name: str, ae_title: str, port: int, *, results: bool, objects: Sequence[str]) -> str:
    return (
        f'[[dicom.peers]]\nname = "{name}"\nae_title = "{ae_title}"\nport = {port}\n'
        f"results = {json.dumps(results)}\nobjects = {json.dumps(list(objects))}\n"
    )
