"""The node's databases: a committed row survives a power cut, and two processes write side by side."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dicomnode.archive.database import BUSY_TIMEOUT_MS, open_engine

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from archive_samples import stored
from dicomnode.archive.catalogue import Catalogue
from dicomnode.archive.database import open_engine

name = sys.argv[2]
catalogue = Catalogue(open_engine(Path(sys.argv[1])))
sys.stdin.read()  # both begin when both are ready
for n in range(30):
    catalogue.add_study([stored(1, f"2.25.{name}{n}"), stored(2, f"2.25.{name}{n}")], source="received")
    catalogue.put("last", name)
"""


def pragma(engine: sa.Engine, name: str) -> object:
    with engine.connect() as db:
        return db.execute(sa.text(f"PRAGMA {name}")).scalar_one()


def test_every_connection_is_durable_and_keeps_foreign_keys(engine):
    assert pragma(engine, "journal_mode") == "wal"
    assert pragma(engine, "synchronous") == 2  # FULL, sqlite.org/pragma.html#pragma_synchronous
    assert pragma(engine, "foreign_keys") == 1
    assert pragma(engine, "busy_timeout") == BUSY_TIMEOUT_MS


@pytest.mark.parametrize("name", ["a b.sqlite3", "q?mark.sqlite3", "a#b%20c.sqlite3", "información.sqlite3"])
def test_a_database_lies_under_the_very_name_that_was_asked_for(tmp_path: Path, name):
    engine = open_engine(tmp_path / name)
    with engine.begin() as db:
        db.execute(sa.text("CREATE TABLE t (a)"))
    engine.dispose()
    assert (tmp_path / name).is_file()


def test_a_transaction_that_will_write_holds_the_lock_from_its_first_moment(engine, tmp_path):
    """A reader that turns writer in mid-transaction would fail at once, however long it may wait."""
    impatient = sqlite3.connect(tmp_path / "catalogue.sqlite3", timeout=0)
    with engine.begin(), pytest.raises(sqlite3.OperationalError, match="locked"):
        impatient.execute("BEGIN IMMEDIATE")
    impatient.execute("BEGIN IMMEDIATE")
    impatient.close()


def test_readers_do_not_wait_for_a_writer(engine, tmp_path):
    reader = open_engine(tmp_path / "catalogue.sqlite3").execution_options(read_only=True)
    with engine.begin() as db:
        db.execute(sa.text("INSERT INTO node VALUES ('k', 'v')"))
        with reader.connect() as other:
            assert other.execute(sa.text("SELECT count(*) FROM node")).scalar_one() == 0


def test_an_error_of_the_database_does_not_quote_values(engine):
    insert = sa.text("INSERT INTO node VALUES (:key, :value)")
    with engine.begin() as db:
        db.execute(insert, {"key": "k", "value": "SECRET-1"})
    with pytest.raises(IntegrityError) as caught, engine.begin() as db:
        db.execute(insert, {"key": "k", "value": "SECRET-2"})
    assert "SECRET" not in str(caught.value)


def test_two_processes_write_side_by_side_and_lose_nothing(engine, tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "catalogue.sqlite3"), name, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("7", "8")
    ]
    said = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    for writer in writers:
        assert writer.stderr is not None
        said.append(writer.stderr.read())
        assert writer.wait(60) == 0, said
    with engine.connect() as db:
        counts = {
            name: db.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one()
            for name in ("patients", "studies", "series", "instances", "node")
        }
    assert counts == {"patients": 1, "studies": 60, "series": 60, "instances": 120, "node": 1}


def test_the_first_start_waits_for_another_process_that_is_creating_the_file(tmp_path):
    path = tmp_path / "fresh.sqlite3"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE theirs (id)")
    done = threading.Timer(0.3, other.execute, ("COMMIT",))
    done.start()
    engine = open_engine(path)
    with engine.connect() as db:
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert db.exec_driver_sql("SELECT count(*) FROM theirs").scalar() == 0
    done.join()
    other.close()
    engine.dispose()
