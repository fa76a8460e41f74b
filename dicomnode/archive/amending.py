"""Answers that must change afterwards: a patient withdrew, or turned out to be another one's second id.

An answer is otherwise computed once and never touched. One that loses a case here keeps its place in the order of
answers, but is not found for its set of images any more: the study asked again gets a new answer, so that no two
reports of one UID differ. De-identified throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from dicomnode.archive import schema as t
from dicomnode.archive.answers import FAILED, PENDING
from dicomnode.domain import Pseudonym, PseudoUid

ANEW = "a case in it was withdrawn or joined to this patient: the study is answered anew"  # error of such a result
_AMENDED = "amended"  # in the place of the hash of a set, with the answer's row


@dataclass(slots=True)
class Amended:
    """What was deleted or changed: ``results`` whose sent objects must go, ``paths`` of slices that nobody needs."""

    answers: int = 0
    changed: int = 0
    results: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Amending:
    """Changes of answers, each in one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def studies_of(self, patients: Collection[Pseudonym]) -> list[PseudoUid]:
        """Studies of patients that were asked about, in the repository or not."""
        query = sa.select(t.answers.c.study_uid).distinct().where(t.answers.c.patient.in_(patients))
        with self._engine.connect() as db:
            return [PseudoUid(uid) for uid in db.execute(query).scalars()]

    def results_naming(self, studies: Collection[PseudoUid], patients: Collection[Pseudonym]) -> Amended:
        """What ``forget`` will name, so that files can go before the rows do."""
        found = Amended()
        with self._engine.connect() as db:
            own = _own(db, studies, patients)
            found.results = _results(db, [*own, *(row.id for row, _ in _naming(db, _any_of(studies, patients)))])
            found.paths = _paths(db, own)
        return found

    def forget(self, studies: Collection[PseudoUid], patients: Collection[Pseudonym]) -> Amended:
        """Delete the answers to questions about studies and patients, and take them out of all others."""
        with self._engine.begin() as db:
            own = _own(db, studies, patients)
            done = Amended(len(own), 0, _results(db, own), _paths(db, own))
            tokens = sa.select(t.answers.c.token).where(t.answers.c.id.in_(own))
            db.execute(t.sessions.delete().where(t.sessions.c.scope.in_(tokens)))
            db.execute(t.results.delete().where(t.results.c.answer_id.in_(own)))
            db.execute(t.result_slices.delete().where(t.result_slices.c.answer_id.in_(own)))
            db.execute(t.answers.update().where(t.answers.c.predecessor_id.in_(own)).values(predecessor_id=None))
            db.execute(t.answers.delete().where(t.answers.c.id.in_(own)))
            _drop_cases(db, done, _naming(db, _any_of(studies, patients)))
        return done

    def move_patient(self, former: Pseudonym, kept: Pseudonym) -> Amended:
        """Give the answers about one pseudonym to another of the same person, whose cases leave their own answers."""
        done = Amended()
        with self._engine.begin() as db:
            theirs = t.answers.update().where(t.answers.c.patient == former)
            done.answers = db.execute(theirs.values(patient=kept)).rowcount
            for row, named in _naming(db, lambda case: case["subject"] == former):
                cases = [{**case, "subject": kept} if case in named else case for case in row.body["cases"]]
                db.execute(t.answers.update().where(t.answers.c.id == row.id).values(body={**row.body, "cases": cases}))
                done.changed += 1
            studies = sa.select(t.studies.c.uid).join(t.patients).where(t.patients.c.pseudonym == kept)
            about = set(db.execute(studies).scalars())
            own = [
                (row, named)
                for row, named in _naming(db, lambda case: case["subject"] == kept)
                if row.patient == kept or row.study_uid in about
            ]
            _drop_cases(db, done, own)
        return done


Case = dict[str, Any]


def _any_of(studies: Collection[PseudoUid], patients: Collection[Pseudonym]) -> Callable[[Case], bool]:
    return lambda case: case["study_uid"] in studies or case["subject"] in patients


def _own(db: Connection, studies: Collection[PseudoUid], patients: Collection[Pseudonym]) -> list[int]:
    where = t.answers.c.study_uid.in_(studies) | t.answers.c.patient.in_(patients)
    return list(db.execute(sa.select(t.answers.c.id).where(where)).scalars())


def _naming(db: Connection, wanted: Callable[[Case], bool]) -> list[tuple[Any, list[Case]]]:
    """Answers that show such cases, and these. Every answer is read: it happens once in a patient's life."""
    c = t.answers.c
    found = []
    for row in db.execute(sa.select(c.id, c.body, c.patient, c.study_uid).execution_options(yield_per=500)):
        named = [case for case in row.body["cases"] if wanted(case)]
        if named:
            found.append((row, named))
    return found


def _drop_cases(db: Connection, done: Amended, naming: Iterable[tuple[Any, list[Case]]]) -> None:
    for row, named in naming:
        body = {**row.body, "cases": [case for case in row.body["cases"] if case not in named]}
        change = {"body": body, "set_hash": f"{_AMENDED} {row.id}"}
        db.execute(t.answers.update().where(t.answers.c.id == row.id).values(**change))
        # Its object goes; the worker has the study answered anew (housekeeping.close_jobs).
        waiting = (t.results.c.answer_id == row.id) & (t.results.c.state == PENDING)
        db.execute(t.results.update().where(waiting).values(state=FAILED, error=ANEW))
        done.results += _results(db, [row.id])
        done.changed += 1


def _results(db: Connection, answers: Collection[int]) -> list[int]:
    return list(db.execute(sa.select(t.results.c.id).where(t.results.c.answer_id.in_(answers))).scalars())


def _paths(db: Connection, answers: Collection[int]) -> list[str]:
    """Files of key slices that no other answer shows."""
    path, answer = t.result_slices.c.path, t.result_slices.c.answer_id
    others = set(db.execute(sa.select(path).distinct().where(answer.not_in(answers))).scalars())
    return sorted(set(db.execute(sa.select(path).where(answer.in_(answers))).scalars()) - others)
