"""Changes of a database: told once, whoever made them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine, text

from dicomnode.archive.database import Changes, open_engine


def test_a_commit_of_this_process_or_another_is_told_once(tmp_path: Path) -> None:
    engine, other = open_engine(tmp_path / "d.sqlite3"), open_engine(tmp_path / "d.sqlite3")
    changes = Changes(engine)
    assert changes.since_last()  # nothing is known yet
    assert not changes.since_last()
    for who in (engine, other):
        with who.begin() as db:
            db.execute(text(f"create table t{id(who)} (a int)"))
        assert changes.since_last()
        assert not changes.since_last()


def test_what_was_rolled_back_or_only_read_is_no_change(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "d.sqlite3")
    with engine.begin() as db:
        db.execute(text("create table t (a int)"))
    changes = Changes(engine)
    changes.since_last()
    with engine.connect() as db:
        db.execute(text("select * from t"))
        db.rollback()
    assert not changes.since_last()


def test_a_database_that_cannot_tell_may_always_have_changed() -> None:
    changes = Changes(create_engine("sqlite://"))  # in memory: another connection sees another database
    assert changes.since_last()
    assert changes.since_last()
