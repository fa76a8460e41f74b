"""Vectors in memory that a child process can map: one copy for both, without a file on a disk.

The memory is anonymous (memfd_create(2); elsewhere than on Linux a file without a name) and ends with the last
process that maps it. Never says who may write: the owner appends, a child maps read-only.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

import numpy as np

from dicomnode.index.segments import Vectors

FLOAT_BYTES = 4


class SharedRows:
    """Room for ``room`` vectors of ``dim`` values; pages that nobody wrote to take no memory.

    Attributes
    ----------
    array : float32 [room, dim]
        Zero until written.
    fd : int
        To be inherited by a child (``MrptProcess``); closed with this object.
    """

    def __init__(self, room: int, dim: int) -> None:
        self.dim = dim
        self.fd = _anonymous()
        weakref.finalize(self, os.close, self.fd)
        size = room * dim * FLOAT_BYTES
        os.ftruncate(self.fd, max(1, size))
        mapping = mmap.mmap(self.fd, max(1, size))
        self.array: Vectors = np.frombuffer(mapping, dtype=np.float32, count=room * dim).reshape(room, dim)


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dicomnode-vectors")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def mapped(fd: int, n: int, dim: int) -> Vectors:
    """The first ``n`` rows behind an inherited descriptor, float32 [n, dim], read-only."""
    mapping = mmap.mmap(fd, n * dim * FLOAT_BYTES, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, dtype=np.float32).reshape(n, dim)
