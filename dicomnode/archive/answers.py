"""Answers, their results to each destination, and what is held in quarantine. De-identified.

An answer is (study, set of SOP Instance UIDs, model_id), computed once. A result is one object of an answer for one
destination; the object's bytes lie in the outbox (identified zone) under the result's id.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy import Engine

from dicomnode.archive import schema as t
from dicomnode.domain import Answer, ModelId, Pseudonym, PseudoUid, Role
from dicomnode.errors import NotFound

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as stored. ``token`` is the opaque part of its link; ``patient`` None: not known."""

    id: int
    token: str
    study_uid: PseudoUid
    instances: tuple[PseudoUid, ...]
    model_id: ModelId
    role: Role
    instance_number: int
    predecessor_id: int | None
    answer: Answer
    created: float
    patient: Pseudonym | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One object of an answer on its way to one destination."""

    id: int
    answer_id: int
    study_uid: PseudoUid
    kind: str
    destination: str
    state: str
    attempts: int
    resends: int
    next_try: float
    error: str | None
    created: float
    delivered: float | None


@dataclass(frozen=True, slots=True)
class QuerySlice:
    """A key slice of a query, kept for its page. ``vector`` float32 [dim]; ``path`` relative to the results folder.

    ``z`` is its position in the volume, 0..1, None where not known: asked again, the same ranking comes out.
    """

    instance_uid: PseudoUid
    frame: int
    path: str
    vector: npt.NDArray[np.float32]
    z: float | None = None


def set_hash(instances: Iterable[PseudoUid]) -> str:
    """Hex SHA-256 of a set of SOP Instance UIDs, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(instances))).encode()).hexdigest()


class Answers:
    """Queries and writes over answers and results."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def find(self, study: PseudoUid, instances: Sequence[PseudoUid], model_id: ModelId) -> StoredAnswer | None:
        """The newest answer to exactly this set under this model, if there is one."""
        query = sa.select(t.answers).where(
            t.answers.c.study_uid == study,
            t.answers.c.set_hash == set_hash(instances),
            t.answers.c.model_id == model_id,
        )
        with self.engine.connect() as db:
            row = db.execute(query).first()
        return None if row is None else _answer(row)

    def latest(self, study: PseudoUid) -> StoredAnswer | None:
        """The newest answer of a study."""
        query = sa.select(t.answers).where(t.answers.c.study_uid == study).order_by(t.answers.c.instance_number.desc())
        with self.engine.connect() as db:
            row = db.execute(query).first()
        return None if row is None else _answer(row)

    def first_created(self, study: PseudoUid) -> float:
        """When the study was first answered, seconds since the epoch."""
        query = sa.select(sa.func.min(t.answers.c.created)).where(t.answers.c.study_uid == study)
        with self.engine.connect() as db:
            return float(db.execute(query).scalar_one())

    def by_id(self, answer_id: int) -> StoredAnswer:
        """An answer by its row.

        Raises
        ------
        NotFound
            If there is none.
        """
        return self._one(t.answers.c.id == answer_id)

    def by_token(self, token: str) -> StoredAnswer:
        """An answer by its link.

        Raises
        ------
        NotFound
            If there is none.
        """
        return self._one(t.answers.c.token == token)

    def created_of(self, token: str) -> float | None:
        """When the answer behind a link was made, seconds since the epoch; None: there is no such link."""
        query = sa.select(t.answers.c.created).where(t.answers.c.token == token)
        with self.engine.connect() as db:
            return db.execute(query).scalar()

    def _one(self, where: sa.ColumnElement[bool]) -> StoredAnswer:
        with self.engine.connect() as db:
            row = db.execute(sa.select(t.answers).where(where)).first()
        if row is None:
            raise NotFound("no such answer")
        return _answer(row)

    def add(
        self,
        study: PseudoUid,
        instances: Sequence[PseudoUid],
        answer: Answer,
        *,
        role: Role,
        slices: Sequence[QuerySlice] = (),
        patient: Pseudonym | None = None,
    ) -> StoredAnswer:
        """Store an answer and the query's key slices in one transaction; the same set and model: the stored one."""
        key = set_hash(instances)
        with self.engine.begin() as db:
            same = db.execute(
                sa.select(t.answers).where(
                    t.answers.c.study_uid == study,
                    t.answers.c.set_hash == key,
                    t.answers.c.model_id == answer.model_id,
                )
            ).first()
            if same is not None:
                return _answer(same)
            last = db.execute(
                sa.select(t.answers.c.id, t.answers.c.instance_number)
                .where(t.answers.c.study_uid == study)
                .order_by(t.answers.c.instance_number.desc())
            ).first()
            answer_id = db.execute(
                t.answers.insert().values(
                    token=secrets.token_hex(16),
                    study_uid=study,
                    set_hash=key,
                    instances=sorted(set(instances)),
                    model_id=answer.model_id,
                    role=role.value,
                    patient=patient,
                    instance_number=1 if last is None else last.instance_number + 1,
                    predecessor_id=None if last is None else last.id,
                    body=answer.as_json(),
                    created=time.time(),
                )
            ).inserted_primary_key[0]  # type: ignore[index]
            for s in slices:
                db.execute(
                    t.result_slices.insert().values(
                        answer_id=answer_id,
                        instance_uid=s.instance_uid,
                        frame=s.frame,
                        path=s.path,
                        vector=np.asarray(s.vector, "<f4").tobytes(),
                        z=s.z,
                    )
                )
            row = db.execute(sa.select(t.answers).where(t.answers.c.id == answer_id)).one()
        return _answer(row)

    def slices(self, answer_id: int) -> list[QuerySlice]:
        """The key slices kept for an answer."""
        query = (
            sa.select(t.result_slices).where(t.result_slices.c.answer_id == answer_id).order_by(t.result_slices.c.id)
        )
        with self.engine.connect() as db:
            return [
                QuerySlice(PseudoUid(r.instance_uid), r.frame, r.path, np.frombuffer(r.vector, "<f4"), r.z)
                for r in db.execute(query)
            ]

    def drop_slices(self, older_than: float) -> list[str]:
        """Forget the key slices of answers made before a time. Returns the relative paths that no answer needs."""
        old = sa.select(t.answers.c.id).where(t.answers.c.created < older_than)
        path = t.result_slices.c.path
        with self.engine.begin() as db:
            dropped = set(db.execute(sa.select(path).where(t.result_slices.c.answer_id.in_(old))).scalars())
            db.execute(t.result_slices.delete().where(t.result_slices.c.answer_id.in_(old)))
            kept = set(db.execute(sa.select(path).distinct()).scalars())  # a later answer shows the same slice
        return sorted(dropped - kept)

    def add_result(self, answer_id: int, kind: str, destination: str) -> int:
        """Row of a result, made when missing. Returns its id."""
        where = (
            t.results.c.answer_id == answer_id,
            t.results.c.kind == kind,
            t.results.c.destination == destination,
        )
        with self.engine.begin() as db:
            found = db.execute(sa.select(t.results.c.id).where(*where)).scalar()
            if found is not None:
                return int(found)
            values: dict[str, Any] = {"answer_id": answer_id, "kind": kind, "destination": destination}
            insert = t.results.insert().values(**values, state=PENDING, attempts=0, resends=0, created=time.time())
            return int(db.execute(insert).inserted_primary_key[0])  # type: ignore[index]

    def drop_results(self, results: Sequence[int]) -> None:
        """Delete rows of results that will never be sent: the study is answered anew."""
        with self.engine.begin() as db:
            db.execute(t.results.delete().where(t.results.c.id.in_(results)))

    def set_accession(self, answer_id: int, keyed: str) -> None:
        """Keyed hash of the Accession Number that the answer belongs to."""
        with self.engine.begin() as db:
            db.execute(t.answers.update().where(t.answers.c.id == answer_id).values(accession=keyed))

    def count_pending(self) -> int:
        """Number of results that wait for delivery."""
        query = sa.select(sa.func.count()).select_from(t.results).where(t.results.c.state == PENDING)
        with self.engine.connect() as db:
            return int(db.execute(query).scalar_one())

    def slice_path(self, instance: PseudoUid) -> str | None:
        """Relative path of a query's key slice, None where it is no longer kept."""
        query = sa.select(t.result_slices.c.path).where(t.result_slices.c.instance_uid == instance)
        with self.engine.connect() as db:
            value = db.execute(query).scalar()
        return None if value is None else str(value)

    def results(self, *, answer_id: int | None = None, accession: str | None = None) -> list[Result]:
        """Results, oldest first; of one answer, or of the answers with a keyed accession hash, when given."""
        query = sa.select(t.results, t.answers.c.study_uid).join(t.answers).order_by(t.results.c.id)
        if answer_id is not None:
            query = query.where(t.results.c.answer_id == answer_id)
        if accession is not None:
            query = query.where(t.answers.c.accession == accession)
        with self.engine.connect() as db:
            return [_result(r) for r in db.execute(query)]

    def result(self, result_id: int) -> Result:
        """One result.

        Raises
        ------
        NotFound
            If there is none.
        """
        query = sa.select(t.results, t.answers.c.study_uid).join(t.answers).where(t.results.c.id == result_id)
        with self.engine.connect() as db:
            row = db.execute(query).first()
        if row is None:
            raise NotFound("no such result", place=f"result {result_id}", advice="dicomnode results list")
        return _result(row)

    def due(self, now: float, waits: Sequence[float]) -> list[Result]:
        """Pending results whose next try has come.

        ``waits`` are the seconds that a result waits after its first, second ... failed try, the last for all more. A
        try that is further off than its wait: the clock was set back, and it has come too.
        """
        next_try, attempts = t.results.c.next_try, t.results.c.attempts
        wait = sa.case(*((attempts == n, seconds) for n, seconds in enumerate((0.0, *waits))), else_=waits[-1])
        query = (
            sa.select(t.results, t.answers.c.study_uid)
            .join(t.answers)
            .where(t.results.c.state == PENDING, (next_try <= now) | (next_try > now + wait))
            .order_by(t.results.c.id)
        )
        with self.engine.connect() as db:
            return [_result(r) for r in db.execute(query)]

    def mark_delivered(self, result_id: int) -> None:
        """The peer acknowledged it."""
        attempts = t.results.c.attempts + 1
        self._update(result_id, attempts=attempts, state=DELIVERED, delivered=time.time(), error=None)

    def mark_retry(self, result_id: int, *, next_try: float, error: str) -> None:
        """One more attempt failed; the next is due at ``next_try``."""
        self._update(result_id, attempts=t.results.c.attempts + 1, next_try=next_try, error=error[:255])

    def mark_failed(self, result_id: int, error: str) -> None:
        """It will not be tried again by itself."""
        self._update(result_id, attempts=t.results.c.attempts + 1, state=FAILED, error=error[:255])

    def mark_resend(self, result_id: int) -> None:
        """Send it again: the study came again, or somebody asked. Tries count from 0 unless it is waiting anyway."""
        c = t.results.c
        attempts = sa.case((c.state == PENDING, c.attempts), else_=0)
        self._update(result_id, attempts=attempts, state=PENDING, next_try=0.0, resends=c.resends + 1, error=None)

    def _update(self, result_id: int, **values: Any) -> None:
        with self.engine.begin() as db:
            db.execute(t.results.update().where(t.results.c.id == result_id).values(**values))


def _answer(row: sa.Row[Any]) -> StoredAnswer:
    return StoredAnswer(
        id=row.id,
        token=row.token,
        study_uid=PseudoUid(row.study_uid),
        instances=tuple(PseudoUid(u) for u in row.instances),
        model_id=ModelId(row.model_id),
        role=Role(row.role),
        instance_number=row.instance_number,
        predecessor_id=row.predecessor_id,
        answer=Answer.from_json(row.body),
        created=row.created,
        patient=None if row.patient is None else Pseudonym(row.patient),
    )


def _result(row: sa.Row[Any]) -> Result:
    names = ("id", "answer_id", "kind", "destination", "state", "attempts", "resends", "next_try", "error", "created")
    return Result(**{n: getattr(row, n) for n in names}, delivered=row.delivered, study_uid=PseudoUid(row.study_uid))
