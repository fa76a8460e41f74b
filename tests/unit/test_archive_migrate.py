"""The catalogue's tables are brought to the version of the program, and those of a later one are left alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dicomnode.archive import schema
from dicomnode.archive.database import open_engine
from dicomnode.archive.migrate import CatalogueError, upgrade


def tables(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names())


def test_an_empty_database_gets_every_table(engine):
    assert tables(engine) == {t.name for t in schema.metadata.sorted_tables} | {"alembic_version"}


def test_the_revisions_make_exactly_the_tables_of_the_schema(engine):
    with engine.connect() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []


def test_who_is_excluded_is_read_without_a_look_at_every_patient(engine):
    patients = schema.patients
    asked = sa.select(patients.c.pseudonym).where(patients.c.excluded).compile(engine)
    with engine.connect() as db:
        (step,) = db.execute(sa.text(f"EXPLAIN QUERY PLAN {asked}")).all()
    assert step.detail.endswith("INDEX ix_patients_excluded")


def test_upgrading_again_changes_nothing_and_keeps_the_rows(engine):
    with engine.begin() as db:
        db.execute(sa.text("INSERT INTO node VALUES ('k', 'v')"))
    upgrade(engine)
    with engine.connect() as db:
        assert db.execute(sa.text("SELECT value FROM node")).scalar_one() == "v"


def test_several_processes_may_upgrade_at_once(tmp_path: Path):
    failures = []

    def one() -> None:
        try:
            upgrade(open_engine(tmp_path / "c.sqlite3"))
        except (CatalogueError, sa.exc.SQLAlchemyError) as exc:
            failures.append(exc)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert "studies" in tables(open_engine(tmp_path / "c.sqlite3"))


def test_a_catalogue_of_a_newer_version_is_refused_and_left_as_it_is(engine):
    with engine.begin() as db:
        db.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CatalogueError, match="newer version"):
        upgrade(engine)
    with engine.connect() as db:
        assert db.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_a_file_that_is_no_database_is_named_as_such(tmp_path: Path):
    (tmp_path / "c.sqlite3").write_bytes(b"not a database" * 1000)
    with pytest.raises(CatalogueError) as caught:
        upgrade(open_engine(tmp_path / "c.sqlite3"))
    assert "\n" not in str(caught.value)


def test_a_database_that_cannot_be_opened_is_named_as_such(tmp_path: Path):
    with pytest.raises(CatalogueError, match="cannot be opened"):
        upgrade(open_engine(tmp_path / "absent" / "c.sqlite3"))
