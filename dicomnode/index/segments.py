"""Segment files: immutable ``.npy`` arrays of vectors, written so that a power cut leaves a whole file or none.

Also the lock between writers of one index folder. Never touches the catalogue and never decides which file is alive.
The durability order (file, folder) is that of fsync(2); the array format is NumPy's NEP 1.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicomnode.durable import sync_folder
from dicomnode.errors import Busy, IndexCorrupt, StorageFull

Vectors = NDArray[np.float32]

SUFFIX = ".npy"
PART = ".part"  # a file or folder still being written
LOCK_TIMEOUT_S = 300.0  # a writer merges at most 65,536 rows (about a second); a slow disk gets a hundredfold
LOCK_POLL_S = 0.02
HASH_CHUNK = 1 << 20
ADVICE = "run 'dicomnode index rebuild'; it names the studies to add again"


class SegmentFile(NamedTuple):
    """What the catalogue knows of a segment file: name, rows, dimension, SHA-256 of the whole file, model."""

    name: str
    n: int
    dim: int
    sha256: str
    model_id: str


@contextmanager
def exclusive(path: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the file lock ``path`` (flock: it ends with the process, so a kill never leaves it behind).

    Raises
    ------
    Busy
        When another process or thread held it for ``timeout_s`` seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"another process has held {path.name} for {timeout_s:.0f} s",
                        advice="wait for the other 'dicomnode index' command or the worker, then try again",
                    ) from None
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a full disk into ``StorageFull``; other faults of the file system into ``IndexCorrupt``."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space for {what}", advice="free space in data_dir, then try again") from fault
        if isinstance(fault, FileNotFoundError):
            raise
        raise IndexCorrupt(f"{what} cannot be read or written: {fault.strerror}", advice=ADVICE) from fault


def write_file(path: Path, *parts: bytes | memoryview) -> str:
    """Write ``path`` whole and durably (temporary name, fsync, rename, folder fsync); return its SHA-256."""
    digest = hashlib.sha256()
    temporary = path.with_name(path.name + PART)
    with storage_errors(f"index file {path.name}"):
        try:
            with temporary.open("wb") as out:
                for part in parts:
                    digest.update(part)
                    out.write(part)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_segment(folder: Path, rows: Vectors, model_id: str) -> SegmentFile:
    """Write float32 ``rows`` [n, dim] as a new file with a random name. It counts only once the catalogue names it."""
    rows = np.ascontiguousarray(rows, dtype="<f4")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
    name = secrets.token_hex(16) + SUFFIX
    digest = write_file(folder / name, header.getvalue(), rows.data.cast("B"))
    return SegmentFile(name, rows.shape[0], rows.shape[1], digest, model_id)


def read_segment(folder: Path, segment: SegmentFile) -> Vectors:
    """Rows of a segment, float32 [n, dim], after its checksum was compared.

    Raises
    ------
    FileNotFoundError
        The file is not there: the caller asks the catalogue again, for it may have been merged meanwhile.
    IndexCorrupt
        Checksum, shape or type differ from the catalogue's row.
    """
    with storage_errors(f"segment {segment.name}"):
        data = (folder / segment.name).read_bytes()
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise IndexCorrupt(f"segment {segment.name} does not match its checksum", advice=ADVICE)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if version != (1, 0) or shape != (segment.n, segment.dim) or fortran or dtype != np.dtype("<f4"):
        raise IndexCorrupt(f"segment {segment.name} is not a float32 array of the recorded shape", advice=ADVICE)
    return np.frombuffer(data, dtype="<f4", offset=stream.tell()).reshape(shape)


def missing(segment: SegmentFile) -> IndexCorrupt:
    """The error for a segment that the catalogue names and the folder lacks."""
    return IndexCorrupt(f"segment {segment.name} is missing from the index folder", advice=ADVICE)
