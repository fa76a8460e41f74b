"""Vectors that a child process maps where they are."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dicomnode.index.rows import SharedRows

READER = (
    "import sys; from dicomnode.index.rows import mapped; rows = mapped(*map(int, sys.argv[1:])); "
    "print(rows.flags.writeable, rows.tolist())"
)


@pytest.mark.parametrize("memfd", [True, False])
def test_a_child_sees_what_is_written_and_cannot_write(memfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not memfd:
        monkeypatch.delattr(os, "memfd_create")
    rows = SharedRows(4, 2)
    assert rows.array.shape == (4, 2)
    rows.array[:2] = [[1, 2], [3, 4]]
    command = [sys.executable, "-c", READER, str(rows.fd), "2", "2"]
    done = subprocess.run(command, pass_fds=(rows.fd,), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False [[1.0, 2.0], [3.0, 4.0]]"


def test_the_descriptor_ends_with_the_rows_and_no_room_is_no_fault() -> None:
    rows = SharedRows(0, 8)
    assert rows.array.shape == (0, 8)
    fd, array = rows.fd, rows.array
    os.fstat(fd)
    del rows
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    np.testing.assert_array_equal(array, np.empty((0, 8)))
