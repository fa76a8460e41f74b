"""The jobs of the spool: studies claimed for processing, what they hold and where they stand.

A job owns its instances until it is done or discarded. Every method is one transaction, so two processes never give
the same instance to two jobs. Identified zone: nothing here is logged but row ids.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Row, delete, func, insert, select, update

from dicomnode.domain import OriginalUid, Role
from dicomnode.errors import NotFound
from dicomnode.scp.durability import database_errors
from dicomnode.scp.records import Job, SpoolInstance
from dicomnode.scp.schema import JobState, decisions, instances, jobs, studies


class Jobs:
    """Queries and writes over jobs; ``Spool`` adds the files."""

    objects: Path
    _engine: Engine
    _read: Engine

    def claim(self, study_id: int) -> int | None:
        """Give all unclaimed instances of a study to a new queued job; its id, or None if no image is unclaimed.

        Objects without images go along, so that they are removed with the job. One transaction: two callers never
        claim the same instance.
        """
        unclaimed = (instances.c.study_id == study_id) & instances.c.job_id.is_(None) & instances.c.removing.is_(False)
        with database_errors(), self._engine.begin() as connection:
            images = connection.execute(
                select(func.count()).select_from(instances).where(unclaimed, instances.c.image.is_(True))
            ).scalar_one()
            if not images:
                return None
            study = connection.execute(select(studies).where(studies.c.id == study_id)).one()
            last = connection.execute(
                select(func.coalesce(func.max(jobs.c.generation), 0)).where(jobs.c.study_id == study_id)
            ).scalar_one()
            now = time.time()
            job_id = inserted_id(
                connection.execute(
                    insert(jobs).values(
                        study_id=study_id,
                        generation=last + 1,
                        role=study.role,
                        called=study.called,
                        calling=study.calling,
                        state=JobState.QUEUED.value,
                        created=now,
                        changed=now,
                    )
                )
            )
            connection.execute(update(instances).where(unclaimed).values(job_id=job_id))
        return job_id

    def job(self, job_id: int) -> Job:
        """A job with its instances in order of arrival.

        Raises
        ------
        NotFound
            There is no such job.
        """
        found = self._jobs(jobs.c.id == job_id)
        if not found:
            raise NotFound(f"job {job_id} is not in the spool")
        return found[0]

    def jobs(self, *states: JobState | str) -> list[Job]:
        """Jobs in one of ``states`` (none given: all), oldest first."""
        return self._jobs(jobs.c.state.in_([JobState(s).value for s in states]) if states else None)

    def job_ids(self, *states: JobState) -> list[int]:
        """Row ids of the jobs in one of ``states``, oldest first."""
        query = select(jobs.c.id).where(jobs.c.state.in_([s.value for s in states])).order_by(jobs.c.id)
        with database_errors(), self._read.begin() as connection:
            return list(connection.execute(query).scalars())

    def set_job_state(
        self, job_id: int, state: JobState | str, note: str = "", *, if_state: JobState | None = None
    ) -> None:
        """Move a job to a state, or only where it is in ``if_state``. ``note``: a stable word, never identifying.

        Raises
        ------
        NotFound
            There is no such job.
        """
        with database_errors(), self._engine.begin() as connection:
            where = jobs.c.id == job_id
            if if_state is not None:
                where &= jobs.c.state == if_state.value
            change = update(jobs).where(where).values(state=JobState(state).value, note=note, changed=time.time())
            if connection.execute(change).rowcount != 1 and if_state is None:
                raise NotFound(f"job {job_id} is not in the spool")

    def set_answer(self, job_id: int, answer_id: int) -> None:
        """Record which answer (row of the catalogue) a job led to."""
        with database_errors(), self._engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(answer_id=answer_id))

    def split_off(self, job_id: int, instance_ids: Sequence[int], *, note: str) -> int:
        """Move some of a job's instances into a quarantined job of their own. Returns its id.

        Called again for the same instances, it returns the job that they are in: a step may run twice.
        """
        ids = list(instance_ids)
        with database_errors(), self._engine.begin() as connection:
            owners = set(connection.execute(select(instances.c.job_id).where(instances.c.id.in_(ids))).scalars())
            if owners and job_id not in owners:
                return int(owners.pop())
            held = self._new_job(connection, job_id, JobState.QUARANTINED, note)
            connection.execute(
                update(instances).where(instances.c.id.in_(ids), instances.c.job_id == job_id).values(job_id=held)
            )
        return held

    def requeue(self, job_id: int, *, released: bool = False) -> int:
        """Give a job's instances to a new queued job, and close this one. Returns the new job's id.

        ``released``: instances that were held as a later version count as the first from now on: a person decided so.
        """
        with database_errors(), self._engine.begin() as connection:
            fresh = self._new_job(connection, job_id, JobState.QUEUED, "")
            change = {"job_id": fresh, "version": 1} if released else {"job_id": fresh}
            connection.execute(update(instances).where(instances.c.job_id == job_id).values(**change))
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(state=JobState.DONE.value, changed=time.time())
            )
        return fresh

    def release(self, job_id: int, by_hand: Mapping[int, str]) -> tuple[int, bool]:
        """Give some of a job's instances to a new queued job, each with what a person decided about it.

        The rest stays where it is; a job that has no image left is closed, and its other objects go along.

        Parameters
        ----------
        by_hand : mapping
            Row id of each instance -> the decision as text; it replaces an earlier one.

        Returns
        -------
        tuple
            The new job's id, and whether the old one was closed.
        """
        mine = (instances.c.job_id == job_id) & instances.c.removing.is_(False)
        with database_errors(), self._engine.begin() as connection:
            fresh = self._new_job(connection, job_id, JobState.QUEUED, "")
            for instance_id, text in by_hand.items():
                chosen = update(instances).where(mine, instances.c.id == instance_id).values(job_id=fresh, version=1)
                if connection.execute(chosen).rowcount != 1:
                    raise NotFound(f"job {job_id} does not hold the object any more")
                connection.execute(delete(decisions).where(decisions.c.instance_id == instance_id))
                connection.execute(insert(decisions).values(instance_id=instance_id, by_hand=text))
            left = select(func.count()).select_from(instances).where(mine, instances.c.image.is_(True))
            closed = connection.execute(left).scalar_one() == 0
            if closed:
                connection.execute(update(instances).where(mine).values(job_id=fresh))
                done = {"state": JobState.DONE.value, "changed": time.time()}
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(**done))
        return fresh, closed

    @staticmethod
    def _new_job(connection: Connection, like: int, state: JobState, note: str) -> int:
        """A new job of the same study, role and AE titles as ``like``."""
        old = connection.execute(select(jobs).where(jobs.c.id == like)).one_or_none()
        if old is None:
            raise NotFound(f"job {like} is not in the spool")
        last = connection.execute(
            select(func.max(jobs.c.generation)).where(jobs.c.study_id == old.study_id)
        ).scalar_one()
        now = time.time()
        row = {"study_id": old.study_id, "role": old.role, "called": old.called, "calling": old.calling}
        values = {**row, "generation": last + 1, "state": state.value, "note": note, "created": now, "changed": now}
        return inserted_id(connection.execute(insert(jobs).values(**values)))

    def _jobs(self, where: Any) -> list[Job]:
        query = select(jobs, studies.c.study_uid).join(studies).order_by(jobs.c.id)
        held = (
            select(instances, decisions.c.by_hand)
            .outerjoin(decisions, decisions.c.instance_id == instances.c.id)
            .where(instances.c.removing.is_(False))
            .order_by(instances.c.id)
        )
        if where is not None:
            query = query.where(where)
            held = held.join(jobs, jobs.c.id == instances.c.job_id).where(where)
        with database_errors(), self._read.begin() as connection:
            rows = connection.execute(query).all()
            by_job: dict[int, list[SpoolInstance]] = {row.id: [] for row in rows}
            for row in connection.execute(held):
                if row.job_id in by_job:
                    by_job[row.job_id].append(self._instance(row))
        return [_job(row, by_job[row.id]) for row in rows]

    def _instance(self, row: Row[Any]) -> SpoolInstance:
        return SpoolInstance(
            id=row.id,
            path=self.objects / row.path,
            sop_uid=OriginalUid(row.sop_uid),
            sop_class=row.sop_class,
            transfer_syntax=row.transfer_syntax,
            series_uid=OriginalUid(row.series_uid),
            sha256=row.sha256,
            bytes=row.bytes,
            image=row.image,
            version=row.version,
            received=row.received,
            by_hand=row.by_hand or "",
        )


def _job(row: Row[Any], held: Sequence[SpoolInstance]) -> Job:
    return Job(
        id=row.id,
        study_id=row.study_id,
        study_uid=OriginalUid(row.study_uid),
        generation=row.generation,
        role=Role(row.role),
        called=row.called,
        calling=row.calling,
        state=JobState(row.state),
        created=row.created,
        changed=row.changed,
        note=row.note,
        answer_id=row.answer_id,
        instances=tuple(held),
    )


def inserted_id(result: CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])
