"""Brings the catalogue's tables to the version of this program (Alembic, inside the wheel)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from dicomnode.errors import DicomnodeError

MIGRATIONS = Path(__file__).parent / "migrations"


class CatalogueError(DicomnodeError):
    """The catalogue cannot be opened or belongs to another version."""

    code = "catalogue"
    http_status = 503


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def upgrade(engine: Engine) -> None:
    """Create or upgrade the tables; does nothing when they are current. Safe beside other processes.

    Raises
    ------
    CatalogueError
        If the database is not ours, damaged, or newer than this program.
    """
    config = _config()
    script = ScriptDirectory.from_config(config)
    try:
        with engine.begin() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {r.revision for r in script.walk_revisions()}:
                raise CatalogueError("the catalogue was written by a newer version", advice="upgrade dicomnode")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DatabaseError as exc:
        raise CatalogueError(
            f"the catalogue cannot be opened: {type(exc.orig).__name__}",
            place="catalogue",
            advice="restore it from a copy, or move it away and add the studies again",
        ) from None
