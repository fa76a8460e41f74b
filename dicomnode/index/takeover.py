"""One model takes over from another: which slices it still lacks, and the moment in which it is put in force.

While it takes over, the vectors of both lie side by side and are searched apart. A slice is the same in both: study,
series, instance, frame and height; only the vector differs. Who adds vectors of the model in force looks afterwards
which one is in force then (``workflow.takeover.settle``); as adding and ``put_in_force`` hold the writers' lock, a
study that arrives meanwhile is found here or settled there. Never embeds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Engine, except_, func, select

from dicomnode.archive.schema import segments, studies, vectors
from dicomnode.domain import ModelId, Pseudonym, PseudoUid, SliceRef
from dicomnode.index.vectors import VectorStore

_v, _s = vectors.c, segments.c
_KEY = (_v.study_uid, _v.series_uid, _v.instance_uid, _v.frame)
FROM_THE_BEGINNING = -1


class Source(NamedTuple):
    """A slice that another model has: the id of its vector there, and what it is of."""

    vector: int
    ref: SliceRef


class Held(NamedTuple):
    """What the index holds of one model."""

    studies: int
    vectors: int


def held(engine: Engine) -> dict[ModelId, Held]:
    """Studies and vectors of each model that has any."""
    counted = select(_s.model_id, func.count(_v.study_uid.distinct()), func.count()).select_from(vectors.join(segments))
    with engine.connect() as c:
        rows = c.execute(counted.group_by(_s.model_id)).all()
    return {ModelId(model): Held(int(n), int(m)) for model, n, m in rows}


def last_id(engine: Engine) -> int:
    """The newest vector of any model; -1 where there is none. What is added later has a higher id."""
    with engine.connect() as c:
        return int(c.scalar(select(func.max(_v.id))) or FROM_THE_BEGINNING)


def lacking(store: VectorStore, since: int = FROM_THE_BEGINNING) -> list[PseudoUid]:
    """Studies of the catalogue with slices that another model has and this one lacks, sorted.

    Parameters
    ----------
    since : int
        Look only at vectors of others with a higher id.
    """
    theirs = select(*_KEY).join(segments).where(_s.model_id != store.model_id, _v.id > since)
    mine = select(*_KEY).join(segments).where(_s.model_id == store.model_id)
    if since > FROM_THE_BEGINNING:
        mine = mine.where(_v.study_uid.in_(select(_v.study_uid).where(_v.id > since)))
    missing = except_(theirs, mine).subquery()
    wanted = select(missing.c.study_uid).distinct().where(missing.c.study_uid.in_(select(studies.c.uid)))
    with store.reading() as c:
        return sorted(PseudoUid(uid) for uid in c.scalars(wanted))


def to_embed(store: VectorStore, study: PseudoUid) -> list[Source]:
    """The slices of a study that another model has and this one lacks, in the order they came in there."""
    query = select(_v.id, _v.study_uid, _v.series_uid, _v.instance_uid, _v.frame, _v.z, _v.patient, _s.model_id).join(
        segments
    )
    with store.reading() as c:
        rows = c.execute(query.where(_v.study_uid == study).order_by(_v.id)).all()
    mine = {(r.series_uid, r.instance_uid, r.frame) for r in rows if r.model_id == store.model_id}
    theirs: dict[tuple[str, str, int], Source] = {}
    for r in rows:
        key = (r.series_uid, r.instance_uid, r.frame)
        if key in mine or key in theirs:
            continue
        ref = SliceRef(PseudoUid(r.instance_uid), PseudoUid(r.series_uid), study, Pseudonym(r.patient), r.frame, r.z)
        theirs[key] = Source(int(r.id), ref)
    return list(theirs.values())


def put_in_force(
    store: VectorStore, commit: Callable[[], None], since: int, without: Iterable[PseudoUid] = ()
) -> Sequence[PseudoUid]:
    """Call ``commit`` where the model lacks nothing that others have; else the studies that it still lacks.

    Parameters
    ----------
    commit : callable
        Writes, in one transaction, which model is in force.
    since : int
        Vectors up to this id were looked at before: only what came later is looked at here, where writers wait.
    without : iterable of PseudoUid
        Studies that may be lacking.
    """
    with store.writing():
        missing = sorted(set(lacking(store, since)) - set(without))
        if not missing:
            commit()
    return missing
