"""A data set on its way from the network to the spool, written as it comes and hashed on the way.

Memory use does not depend on the size of the object. A failed write is remembered, the rest of the data set is
read and dropped, and the C-STORE handler answers with the failure: the association stays usable (PS3.7 9.3.1).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Self

from dicomnode.errors import DicomnodeError
from dicomnode.scp.durability import require_space, storage_error

HEAD_BYTES = 16 * 1024  # what of a data set is kept in memory; images reach their Rows within a few KB


class Incoming:
    """One DICOM file being received into ``folder``; it has no row, so it does not count, until the spool stores it.

    ``write`` and ``file.flush`` are what pynetdicom calls on the file of a chunked data set.
    """

    def __init__(self, folder: Path, meta: bytes, reserve: int, prefix: str = "") -> None:
        self.path = folder / f"{prefix}{secrets.token_hex(16)}.dcm"
        self.offset = len(meta)
        self.size = 0
        self.error: DicomnodeError | None = None
        self._head = bytearray()
        self._hash = hashlib.sha256()
        self._fd = -1
        try:
            require_space(folder, reserve)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._write_all(meta)
        except OSError as exc:
            self._fail(storage_error(exc))

    @classmethod
    def refused(cls, error: DicomnodeError) -> Self:
        """A data set that is read from the network and dropped: nothing is written."""
        self = cls.__new__(cls)
        self.path, self.offset, self.size, self.error = Path(os.devnull), 0, 0, error
        self._head, self._hash, self._fd = bytearray(), hashlib.sha256(), -1
        return self

    @property
    def file(self) -> Self:
        """What pynetdicom flushes after each fragment."""
        return self

    def flush(self) -> None:
        """Nothing to flush: writes are unbuffered."""

    @property
    def head(self) -> bytes:
        """The first bytes of the data set, in which its identifiers are."""
        return bytes(self._head)

    @property
    def sha256(self) -> str:
        """Hex digest of the data set's bytes so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Append a fragment of the data set; never raises (see ``error``)."""
        if self.error is not None:
            return
        try:
            self._write_all(data)
        except OSError as exc:
            self._fail(storage_error(exc))
            return
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self._hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Close the file; what was written stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def abandon(self) -> None:
        """Close and delete: the peer went away, or the data set cannot be kept."""
        self.close()
        if self.path != Path(os.devnull):
            self.path.unlink(missing_ok=True)

    def _write_all(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _fail(self, error: DicomnodeError) -> None:
        self.error = error
        self.abandon()
