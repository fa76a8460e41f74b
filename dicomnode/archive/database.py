"""Opens the node's databases: SQLite in WAL with synchronous=FULL, or PostgreSQL by URL.

One function, so that every process has the same durability: with synchronous=FULL a committed row survives a
power cut (sqlite.org/pragma.html#pragma_synchronous). Never shares a connection between processes.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.pool import NullPool

BUSY_TIMEOUT_MS = 30_000  # a writer waits for another process's commit, it does not fail
_LOOK_S = 0.02


def open_engine(target: Path | str, *, pooled: bool = True) -> Engine:
    """Engine for a SQLite file (``Path``) or a database URL (``str``).

    SQLite transactions begin IMMEDIATE when written to through ``engine.begin()``: a reader that turns writer in
    mid-transaction would otherwise fail with "database is locked" however long it waits.
    """
    # a URL of its parts: in a written one, a "?" or "#" of the folder's name would end the path
    url = URL.create("sqlite", database=str(target)) if isinstance(target, Path) else target
    if isinstance(url, str) and not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    options: dict[str, Any] = {} if pooled else {"poolclass": NullPool}
    arguments = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    # hide_parameters: the text of a database error would quote the values of the statement
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, **options)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions behind our back
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL; beside a process that is creating the file SQLite refuses that at once, without its timeout."""
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(_LOOK_S)
        else:
            return


def scrub(engine: Engine) -> bool:
    """Write a SQLite file anew, so that no byte of deleted rows is left in it; whether that was done.

    It is not where another process reads on for longer than the timeout, nor on other databases: those have their own
    way (PostgreSQL: VACUUM FULL).
    """
    if engine.dialect.name != "sqlite":
        return False
    connection = engine.raw_connection()
    try:
        connection.execute("VACUUM")
        (busy,) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[:1]
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return not busy


class Changes:
    """Tells cheaply whether a database may have changed, so that who waits for a row need not ask for it each time.

    SQLite counts for each connection what others committed (sqlite.org/pragma.html#pragma_data_version); this holds
    one of its own, which never writes, so commits of its own process count too. Other databases "may have" always.

    Parameters
    ----------
    engine : Engine
        Of ``open_engine``.
    """

    def __init__(self, engine: Engine) -> None:
        file = engine.url.database if engine.dialect.name == "sqlite" else None
        self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None) if file else None
        self._version = -1

    def since_last(self) -> bool:
        """Whether anything may have been committed since the last call; true the first time."""
        if self._connection is None:
            return True
        try:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:  # the query that follows tells it in words
            return True
        changed = version != self._version
        self._version = version
        return bool(changed)
