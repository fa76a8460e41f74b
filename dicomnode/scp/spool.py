"""The spool: originals of the identified zone, from the C-STORE that brought them to their deletion.

A file belongs to the spool when its row does. Order of a store: file synced, folder synced, row committed (SQLite,
WAL, synchronous=FULL); only then may a caller answer 0000. Never puts a UID into a file name or a log line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import structlog
from sqlalchemy import Connection, Engine, delete, func, select, update

from dicomnode.archive.database import Changes, open_engine, scrub
from dicomnode.domain import OriginalUid
from dicomnode.durable import sync_file, sync_folder
from dicomnode.scp.arriving import ArrivingRows
from dicomnode.scp.durability import database_errors, storage_error
from dicomnode.scp.group import GroupCommit
from dicomnode.scp.incoming import Incoming
from dicomnode.scp.jobs import Jobs
from dicomnode.scp.records import HeldStudy, PendingStudy, ReceivedFile, Stored, StoredKind, Sweep
from dicomnode.scp.schema import JobState, decisions, instances, jobs, metadata, studies

log = structlog.get_logger(__name__)

FOLDER_MODE = 0o700  # identified zone: nobody but the node's own user
DATABASE = "spool.sqlite3"
TURNS = "spool.turns"  # empty; locked while a receiver commits
OBJECTS = "spool"
RESERVE_BYTES = 64 * 1024 * 1024  # kept free so that a full node can still commit and delete its way out
STRAY_AGE_S = 3600.0  # a report or key object whose study's images never came
JOB_KEEP_S = 7 * 86400.0  # final jobs stay listed as long as sent results do ([report] keep_days)


class Spool(Jobs):
    """The folder ``identified/`` with its objects and their database; one instance per process, threads may share.

    ``owner`` names the receiver, of which there is one at a time: its files are named after it.
    """

    def __init__(self, folder: Path, engine: Engine, *, reserve: int = RESERVE_BYTES, owner: str = "") -> None:
        self.folder = folder
        self.objects = folder / OBJECTS
        self.reserve = reserve
        self._prefix = f"{owner}." if owner else ""
        self._engine = engine
        self._read = engine.execution_options(read_only=True)
        self._rows = ArrivingRows(engine, folder / TURNS)
        self._commits = GroupCommit(self._commit)
        self._objects_fd = os.open(self.objects, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def open(cls, folder: Path, *, reserve: int = RESERVE_BYTES, owner: str = "") -> Self:
        """Open, or create, the spool in ``folder`` (``data_dir/identified``).

        Raises
        ------
        StorageFull
            There is no room to create it.
        DicomnodeError
            The folder cannot be written.
        """
        try:
            for path in (folder, folder / OBJECTS):
                path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                path.chmod(FOLDER_MODE)  # the umask or an earlier life may have set another mode
            database = folder / DATABASE
            database.touch(mode=0o600)
            engine = open_engine(database)
            with database_errors(), engine.begin() as connection:
                metadata.create_all(connection)
            for path in (folder, folder.parent):
                sync_folder(path)
        except OSError as exc:
            raise storage_error(exc) from exc
        return cls(folder, engine, reserve=reserve, owner=owner)

    def close(self) -> None:
        """Let go of the database and the folder."""
        self._rows.close()
        self._engine.dispose()
        if self._objects_fd >= 0:
            os.close(self._objects_fd)
            self._objects_fd = -1

    def incoming(self, meta: bytes) -> Incoming:
        """A file to receive into, on the spool's own file system; ``meta`` is preamble and file meta information."""
        return Incoming(self.objects, meta, self.reserve, self._prefix)

    def store(self, source: ReceivedFile) -> Stored:
        """Make a received file durable and give it its row. Idempotent by SOP Instance UID and data set bytes.

        On any error the file is deleted and no row stays; on a duplicate the file is deleted and the first one stays.

        Raises
        ------
        StorageFull
            Disk or database are full; the sender may try again.
        DicomnodeError
            The file system fails otherwise.
        """
        kept = False
        try:
            sync_file(source.path)
            stored, kept = self._commits.run(source)
        except OSError as exc:
            raise storage_error(exc) from exc
        finally:
            if not kept:
                source.path.unlink(missing_ok=True)
        return stored

    def _commit(self, sources: Sequence[ReceivedFile]) -> list[tuple[Stored, bool]]:
        """Sync the folder and commit the rows of files that are synced; says of each whether its file is kept."""
        os.fsync(self._objects_fd)
        with database_errors(), self._rows.transaction():
            return [self._record(source) for source in sources]

    def _record(self, source: ReceivedFile) -> tuple[Stored, bool]:
        """Insert the row; returns what it was and whether the source file belongs to the spool now."""
        study_id = self._rows.study(source)
        versions = self._rows.versions(study_id, source.sop_uid)
        for row in versions:
            if row.sha256 == source.sha256:
                own = row.path == source.path.name  # a commit that failed after it was done is tried again
                healed = not (self.objects / row.path).exists()
                if healed:  # the first file was lost under its row: the resend takes its place
                    self._rows.move(row.id, source.path.name)
                return Stored(StoredKind.DUPLICATE, row.id, study_id, row.version), own or healed
        version = max((row.version for row in versions), default=0) + 1
        instance_id = self._rows.add(study_id, source, version)
        kind = StoredKind.NEW if version == 1 else StoredKind.VERSION
        return Stored(kind, instance_id, study_id, version), True

    def changes(self) -> Changes:
        """Tells cheaply whether rows may have changed."""
        return Changes(self._engine)

    def pending(self) -> list[PendingStudy]:
        """Studies with unclaimed images, oldest arrival first."""
        query = (
            select(
                instances.c.study_id,
                func.count().label("images"),
                func.max(instances.c.id).label("newest"),
                func.max(instances.c.received).label("received"),
            )
            .where(instances.c.job_id.is_(None), instances.c.image.is_(True), instances.c.removing.is_(False))
            .group_by(instances.c.study_id)
            .order_by(func.max(instances.c.id))
        )
        with database_errors(), self._read.begin() as connection:
            return [PendingStudy(r.study_id, r.images, r.newest, r.received) for r in connection.execute(query)]

    def remove_job_files(self, job_id: int) -> int:
        """Delete a job's originals and their rows; the number deleted. Idempotent; a kill in between is finished by
        the next call or by ``sweep``. From its first moment the same objects sent again start afresh.
        """
        with database_errors(), self._engine.begin() as connection:
            connection.execute(update(instances).where(instances.c.job_id == job_id).values(removing=True))
        return self._finish_removals(instances.c.job_id == job_id)

    def held_studies(self) -> list[HeldStudy]:
        """Every study that the spool knows, oldest first."""
        with database_errors(), self._read.begin() as connection:
            rows = connection.execute(select(studies.c.id, studies.c.study_uid).order_by(studies.c.id)).all()
            found = {row.id: ([], [], OriginalUid(row.study_uid)) for row in rows}  # type: ignore[var-annotated]
            waiting = set()
            for row in connection.execute(select(instances)).all():
                found[row.study_id][0].append(self.objects / row.path)
                if row.job_id is None and row.image:
                    waiting.add(row.study_id)
            for row in connection.execute(select(jobs.c.id, jobs.c.study_id, jobs.c.state)).all():
                found[row.study_id][1].append(row.id)
                if row.state in (JobState.QUEUED.value, JobState.RUNNING.value):
                    waiting.add(row.study_id)
        return [
            HeldStudy(study, uid, tuple(files), tuple(jobs_), study in waiting)
            for study, (files, jobs_, uid) in found.items()
        ]

    def forget(self, study: HeldStudy) -> int:
        """Delete a study with its jobs and originals; the number of files. What arrives after starts afresh."""
        mine = instances.c.study_id == study.id
        with database_errors(), self._engine.begin() as connection:
            connection.execute(update(instances).where(mine).values(removing=True))
        removed = self._finish_removals(mine)
        with database_errors(), self._engine.begin() as connection:
            arrived = connection.execute(select(func.count()).select_from(instances).where(mine)).scalar_one()
            if not arrived:  # meanwhile
                connection.execute(delete(jobs).where(jobs.c.study_id == study.id))
                connection.execute(delete(studies).where(studies.c.id == study.id))
        return removed

    def forget_files(self, study: HeldStudy, files: Collection[Path]) -> int:
        """Delete some originals of a study; its jobs and the others stay. Returns how many went."""
        names = [str(file.relative_to(self.objects)) for file in files]
        mine = (instances.c.study_id == study.id) & instances.c.path.in_(names)
        with database_errors(), self._engine.begin() as connection:
            connection.execute(update(instances).where(mine).values(removing=True))
        return self._finish_removals(mine)

    def scrub(self) -> bool:
        """Leave no byte of deleted rows in the database's file; whether that was done."""
        return scrub(self._engine)

    def sweep(self, *, older_than_s: float = 0.0) -> Sweep:
        """Put the folder and the database back in step; run once at the node's start, before the receivers.

        Deletes files without a row (never acknowledged), finishes removals, drops objects without images whose study
        never came, and forgets final jobs after a week. With receivers running, give ``older_than_s`` of an hour, so
        that files still being received are left alone.
        """
        now = time.time()
        files = {path.name: path for path in self.objects.iterdir() if path.is_file()}
        with database_errors(), self._engine.begin() as connection:
            # After the listing: a file that gets its row in between counts as known.
            rows = connection.execute(select(instances.c.id, instances.c.path, instances.c.removing)).all()
            pending = select(instances.c.study_id).where(instances.c.job_id.is_(None), instances.c.image.is_(True))
            strays = connection.execute(
                update(instances)
                .where(
                    instances.c.job_id.is_(None),
                    instances.c.image.is_(False),
                    instances.c.received < now - STRAY_AGE_S,
                    instances.c.study_id.not_in(pending),
                )
                .values(removing=True)
            ).rowcount
            old_jobs = self._forget_final_jobs(connection, now - JOB_KEEP_S)
        known = {row.path for row in rows}
        orphans = [path for name, path in files.items() if name not in known and _age(path, now) >= older_than_s]
        for path in orphans:
            path.unlink(missing_ok=True)
        finished = self._finish_removals(instances.c.removing.is_(True))
        missing = tuple(
            row.id
            for row in rows
            if not row.removing and row.path not in files and not (self.objects / row.path).exists()
        )
        result = Sweep(len(orphans), finished, strays, old_jobs, missing)
        log.info(
            "spool_swept",
            orphan_files=result.orphan_files,
            finished_removals=finished,
            stray_instances=strays,
            old_jobs=old_jobs,
            missing_files=len(missing),
        )
        return result

    def sweep_own(self) -> int:
        """Delete what a killed process of the same owner was receiving (never acknowledged); how many files.

        For a receiver before it serves: ``sweep`` beside running receivers has to wait an hour, and what it would
        leave that long is an original.
        """
        if not self._prefix:
            return 0
        own = {path.name: path for path in self.objects.glob(f"{self._prefix}*")}
        with database_errors(), self._read.begin() as connection:
            rows = connection.execute(
                select(instances.c.path).where(instances.c.path.startswith(self._prefix, autoescape=True))
            ).scalars()
            orphans = own.keys() - set(rows)
        for name in orphans:
            own[name].unlink(missing_ok=True)
        if orphans:
            log.info("spool_swept", orphan_files=len(orphans))
        return len(orphans)

    def _finish_removals(self, which: Any) -> int:
        with database_errors(), self._read.begin() as connection:
            rows = connection.execute(
                select(instances.c.id, instances.c.path).where(which, instances.c.removing.is_(True))
            ).all()
        if not rows:
            return 0
        try:
            for row in rows:
                (self.objects / row.path).unlink(missing_ok=True)
            os.fsync(self._objects_fd)
        except OSError as exc:
            raise storage_error(exc) from exc
        with database_errors(), self._engine.begin() as connection:
            for part in _chunks([row.id for row in rows]):
                connection.execute(delete(decisions).where(decisions.c.instance_id.in_(part)))
                connection.execute(delete(instances).where(instances.c.id.in_(part)))
        return len(rows)

    @staticmethod
    def _forget_final_jobs(connection: Connection, before: float) -> int:
        final = [state.value for state in JobState if state.final]
        held = select(instances.c.job_id).where(instances.c.job_id.is_not(None))
        gone = connection.execute(
            delete(jobs).where(jobs.c.state.in_(final), jobs.c.changed < before, jobs.c.id.not_in(held))
        ).rowcount
        connection.execute(
            delete(studies).where(
                studies.c.created < before,
                studies.c.id.not_in(select(jobs.c.study_id)),
                studies.c.id.not_in(select(instances.c.study_id)),
            )
        )
        return gone


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _chunks(ids: list[int], size: int = 500) -> Iterator[list[int]]:
    """Parts small enough for SQLite's limit of variables in a statement."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
