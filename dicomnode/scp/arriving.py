"""The rows of an object that arrives, written through SQLite's own driver: the one place where each statement counts.

The statements are built from the schema once and then only run: building them anew for every object costs more than
the database does. One connection, used by one thread at a time (``GroupCommit``). Identified data, as in ``schema``.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import ClauseElement, Engine, bindparam, insert, select, update
from sqlalchemy.dialects import sqlite

from dicomnode.scp.records import ReceivedFile
from dicomnode.scp.schema import instances, studies

UNREADABLE = "unreadable-"


class Version(NamedTuple):
    """An object that the spool has under a SOP Instance UID."""

    id: int
    sha256: str
    version: int
    path: str


def _sql(statement: ClauseElement, columns: list[str] | None = None) -> str:
    """The text of a statement, with its parameters by name."""
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named"), column_keys=columns))


_STUDY = _sql(select(studies.c.id).where(studies.c.study_key == bindparam("key")))
_ADD_STUDY = _sql(insert(studies), ["study_key", "study_uid", "called", "calling", "role", "created"])
_VERSIONS = _sql(
    select(instances.c.id, instances.c.sha256, instances.c.version, instances.c.path).where(
        instances.c.study_id == bindparam("study"),
        instances.c.sop_uid == bindparam("uid"),
        instances.c.removing.is_(False),
    )
)
_MOVE = _sql(update(instances).where(instances.c.id == bindparam("row")).values(path=bindparam("new")))
_ADD = _sql(insert(instances), [c.name for c in instances.columns if c.name not in ("id", "job_id")])


class ArrivingRows:
    """Rows of studies and instances, inside ``transaction``. Errors are ``sqlite3.Error``."""

    def __init__(self, engine: Engine, turns: Path) -> None:
        """``turns`` is a file, created here, by which the receivers' processes take turns (``transaction``)."""
        self._held = engine.raw_connection()
        self._connection = cast(sqlite3.Connection, self._held.driver_connection)
        self._turns = os.open(turns, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Let go of the connection."""
        if self._turns >= 0:
            self._held.close()
            os.close(self._turns)
            self._turns = -1

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end, durably; roll back on any error.

        SQLite's own wait for another process's commit is a sleep of up to 100 ms; a lock on a file ends when that does.
        """
        fcntl.flock(self._turns, fcntl.LOCK_EX)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back on some errors, a full disk among them
                self._connection.execute("ROLLBACK")
            raise
        finally:
            fcntl.flock(self._turns, fcntl.LOCK_UN)

    def study(self, source: ReceivedFile) -> int:
        """The id of the object's study, which is added where it is new. What cannot be read is a study of its own."""
        key = f"{source.study_uid}|{source.called}|{source.calling}"
        if not source.study_uid:
            key = UNREADABLE + secrets.token_hex(16)
        found = self._connection.execute(_STUDY, {"key": key}).fetchone()
        if found is not None:
            return int(found[0])
        row = {
            "study_key": key,
            "study_uid": source.study_uid,
            "called": source.called,
            "calling": source.calling,
            "role": source.role.value,
            "created": time.time(),
        }
        return self._insert(_ADD_STUDY, row)

    def versions(self, study: int, sop_uid: str) -> list[Version]:
        """What is kept of an object already."""
        rows = self._connection.execute(_VERSIONS, {"study": study, "uid": sop_uid}).fetchall()
        return [Version(*row) for row in rows]

    def move(self, row: int, name: str) -> None:
        """Let a row name another file."""
        self._connection.execute(_MOVE, {"row": row, "new": name})

    def add(self, study: int, source: ReceivedFile, version: int) -> int:
        """Add an object; its id."""
        row = {
            "study_id": study,
            "sop_uid": source.sop_uid,
            "sop_class": source.sop_class,
            "transfer_syntax": source.transfer_syntax,
            "series_uid": source.series_uid,
            "sha256": source.sha256,
            "bytes": source.size,
            "path": source.path.name,
            "image": source.image,
            "version": version,
            "received": time.time(),
            "removing": False,
        }
        return self._insert(_ADD, row)

    def _insert(self, statement: str, row: dict[str, Any]) -> int:
        return int(cast(int, self._connection.execute(statement, row).lastrowid))
