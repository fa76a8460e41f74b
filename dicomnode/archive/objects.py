"""De-identified objects as files below one folder.

Names are pseudonymous UIDs, spread over 256 folders. A file is complete or absent: written aside, synced, renamed,
folder synced. Never holds an original.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from dicomnode.domain import PseudoUid
from dicomnode.durable import sync_folder
from dicomnode.errors import DicomnodeError, NotFound, StorageFull

_CHUNK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class ObjectStore:
    """Files of the archive.

    Parameters
    ----------
    folder : Path
        Root; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def relative(self, study: PseudoUid, instance: PseudoUid) -> str:
        """Where an instance's file belongs, relative to the root."""
        spread = hashlib.sha256(study.encode()).hexdigest()[:2]
        return f"{spread}/{study}/{instance}.dcm"

    def path(self, relative: str) -> Path:
        """Absolute path of a stored file.

        Raises
        ------
        NotFound
            If the name leads out of the archive.
        """
        path = (self.folder / relative).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise NotFound("not a file of the archive")
        return path

    def put(self, source: Path, study: PseudoUid, instance: PseudoUid) -> str:
        """Copy a file in, durable on return; the same name is replaced whole. Returns the relative path.

        Raises
        ------
        StorageFull
            There is no room; whatever had the name before is still there.
        DicomnodeError
            The archive cannot be written otherwise.
        """
        relative = self.relative(study, instance)
        target = self.folder / relative
        part = target.with_suffix(".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as src, part.open("wb") as dst:
                shutil.copyfileobj(src, dst, _CHUNK)
                dst.flush()
                os.fsync(dst.fileno())
            part.replace(target)
            for folder in (target.parent, target.parent.parent, self.folder):  # the two above may be new as well
                sync_folder(folder)
        except OSError as exc:
            if part.is_symlink() or part.is_file():
                part.unlink()
            kind = StorageFull if exc.errno in _FULL else DicomnodeError
            raise kind(f"the archive cannot be written: {exc.strerror}", place=str(self.folder)) from None
        return relative

    def remove_study(self, study: PseudoUid) -> None:
        """Delete all files of a study; no error when there are none."""
        spread = hashlib.sha256(study.encode()).hexdigest()[:2]
        shutil.rmtree(self.folder / spread / study, ignore_errors=True)
