"""What makes a store survive a power cut, and how its failures are told apart.

fsync(2): a new file is safe when the file and the folder that names it are both synced. Error codes of SQLite:
sqlite.org/rescode.html. Messages never carry a statement or its parameters: those hold UIDs.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from dicomnode.errors import Busy, DicomnodeError, StorageFull

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PLACE = "[node] data_dir"


def storage_error(exc: OSError) -> DicomnodeError:
    """The node's error for a failed write: ``StorageFull`` (A700) or a processing failure (0110)."""
    if exc.errno in FULL_ERRNOS:
        return StorageFull("the disk of the spool is full", place=PLACE, advice="free space on it")
    return DicomnodeError(
        f"the spool cannot be written ({errno.errorcode.get(exc.errno or 0, 'unknown')})",
        place=PLACE,
        advice="check the disk and the folder's owner",
    )


def require_space(folder: Path, reserve: int) -> None:
    """Raise ENOSPC where fewer than ``reserve`` bytes are free.

    Removing needs room too (the database writes a journal): a disk filled to the brim could not be drained.
    """
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < reserve:
        raise OSError(errno.ENOSPC, "less than the reserve is free")


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn errors of the spool's database into the node's own, without their parameters."""
    try:
        yield
    except DBAPIError as exc:
        # Not chained: the driver's error repeats the statement's parameters.
        raise _database_error(exc.orig) from None
    except sqlite3.Error as exc:
        raise _database_error(exc) from None


def _database_error(orig: BaseException | None) -> DicomnodeError:
    code = orig.sqlite_errorcode & 0xFF if isinstance(orig, sqlite3.Error) and _has_code(orig) else -1
    if code == sqlite3.SQLITE_FULL:
        return StorageFull("the disk of the spool's database is full", place=PLACE, advice="free space on it")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy("the spool's database is held by another process", place=PLACE)
    name = getattr(orig, "sqlite_errorname", type(orig).__name__)
    return DicomnodeError(f"the spool's database failed ({name})", place=PLACE, advice="check the disk")


def _has_code(orig: sqlite3.Error) -> bool:
    return getattr(orig, "sqlite_errorcode", None) is not None
