"""A folder of one run in the identified zone, for originals that are unpacked; nothing stays in it.

What a killed run left is deleted by the next one: a folder whose lock nobody holds is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "lock"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder below ``parent``, mode 0700, deleted at the end; folders of runs that are gone are deleted first."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (parent / LOCK).open("w") as turns:
        fcntl.flock(turns, fcntl.LOCK_EX)
        for old in parent.iterdir():
            if old.is_dir():
                _sweep(old)
        folder = Path(tempfile.mkdtemp(dir=parent))
        held = (folder / LOCK).open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        held.close()
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    with suppress(BlockingIOError):
        descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
