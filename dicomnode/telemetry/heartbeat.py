"""A child process says that it lives: one small JSON file a process in ``data_dir/runtime``.

Read by ``/readyz`` and by commands beside a running node. A file whose process is gone, or that is not refreshed in
time, counts as not ready. Never holds anything but state words, counts and process ids.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BEAT_S = 2.0  # how often a process refreshes its file
STALE_S = 15.0  # several missed beats: the process hangs
_FULL = (errno.ENOSPC, errno.EDQUOT)

Detail = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Beat:
    """The last sign of life of one process. ``monotonic`` is seconds of the machine's clock since its boot."""

    name: str
    pid: int
    state: str
    ready: bool
    monotonic: float
    detail: Mapping[str, Detail] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether the process exists and has refreshed its file in time."""
        age = time.monotonic() - self.monotonic
        return 0 <= age < STALE_S and _exists(self.pid)  # a negative age is a file from before a reboot

    @property
    def live_and_ready(self) -> bool:
        """Whether the process may be counted on now."""
        return self.ready and self.alive


def beat(runtime: Path, name: str, *, state: str, ready: bool, detail: Mapping[str, Detail] | None = None) -> bool:
    """Write this process's sign of life; readers see the old file or the new one, never a part.

    Returns False where the disk is full: the process goes on (it still answers A700), its last sign goes stale, and
    the node is not ready until there is room.
    """
    runtime.mkdir(parents=True, exist_ok=True)
    record = {
        "pid": os.getpid(),
        "state": state,
        "ready": ready,
        "monotonic": time.monotonic(),
        "detail": dict(detail or {}),
    }
    part = runtime / f".{name}.{os.getpid()}.part"
    try:
        part.write_text(json.dumps(record))
    except OSError as exc:
        part.unlink(missing_ok=True)
        if exc.errno in _FULL:
            return False
        raise
    part.replace(_path(runtime, name))
    return True


def clear_beat(runtime: Path, name: str) -> None:
    """Take the sign of life away, at an orderly end."""
    _path(runtime, name).unlink(missing_ok=True)


def read_beats(runtime: Path) -> dict[str, Beat]:
    """All signs of life by name. A file that cannot be read counts as a process that is not ready."""
    beats = {}
    for path in sorted(runtime.glob("[!.]*.json")):
        try:
            record = json.loads(path.read_text())
            beats[path.stem] = Beat(
                name=path.stem,
                pid=int(record["pid"]),
                state=str(record["state"]),
                ready=record["ready"] is True,
                monotonic=float(record["monotonic"]),
                detail=dict(record["detail"]),
            )
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            beats[path.stem] = Beat(path.stem, 0, "unreadable", ready=False, monotonic=0.0)
    return beats


def _path(runtime: Path, name: str) -> Path:
    return runtime / f"{name}.json"


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to somebody else
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether the process has died and waits for its parent; unknown outside Linux, where the age decides."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
