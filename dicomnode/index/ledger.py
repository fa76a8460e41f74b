"""What the index writes of itself into the catalogue: counters, the state readers compare, models side by side.

Every function works inside a transaction of the caller. Never touches a file.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from dicomnode.archive.schema import nodes, patients, segments
from dicomnode.domain import ModelId, Pseudonym
from dicomnode.errors import ModelMismatch

NEXT_ID = "index.next_id"  # ids of vectors are never used twice, so an old snapshot can never name a new vector
REVISION = "index.revision"  # counts every change
REMOVALS = "index.removals"  # counts removals: a reader that sees it change loads everything again
MODELS = "index.models"  # JSON list: models admitted side by side; absent: one model only


_COUNTERS = select(nodes).where(nodes.c.key.in_([REVISION, REMOVALS]))  # built once: read before every search
_EXCLUDED = select(patients.c.pseudonym).where(patients.c.excluded)


class State(NamedTuple):
    """What a reader compares to know whether to load again."""

    revision: int
    removals: int
    excluded: frozenset[Pseudonym]


def read_state(c: Connection) -> State:
    """``State`` inside a transaction of the caller."""
    values = {row.key: row.value for row in c.execute(_COUNTERS)}
    excluded = c.scalars(_EXCLUDED).all()
    return State(
        int(values.get(REVISION, 0)), int(values.get(REMOVALS, 0)), frozenset(Pseudonym(name) for name in excluded)
    )


def check_model(c: Connection, model_id: ModelId, dim: int) -> None:
    """Refuse an index that holds vectors of another model that this one was not admitted beside, or another dimension.

    Raises
    ------
    ModelMismatch
    """
    for name, size in c.execute(select(segments.c.model_id, segments.c.dim).distinct()):
        if (name == model_id and size != dim) or (name != model_id and model_id not in admitted(c)):
            raise ModelMismatch(
                f"the index holds vectors of model {name} with {size} dimensions, asked for {model_id} with {dim}",
                advice="'dicomnode models activate PACK' embeds the repository with a pack",
            )


def admitted(c: Connection) -> list[str]:
    """Models that may be in the index side by side, while one takes over from another."""
    return list(json.loads(c.scalar(select(nodes.c.value).where(nodes.c.key == MODELS)) or "[]"))


def admit(c: Connection, models: set[str]) -> None:
    """Let exactly these models be in the index side by side, inside the caller's transaction."""
    c.execute(delete(nodes).where(nodes.c.key == MODELS))
    if len(models) > 1:
        c.execute(insert(nodes).values(key=MODELS, value=json.dumps(sorted(models))))


def advance(c: Connection, key: str, by: int, *, floor: int = 0) -> int:
    """Add to a counter of the ``node`` table inside the caller's transaction; its value before."""
    value = c.scalar(select(nodes.c.value).where(nodes.c.key == key).with_for_update())
    before = max(int(value or 0), floor)
    if value is None:
        c.execute(insert(nodes).values(key=key, value=str(before + by)))
    else:
        c.execute(update(nodes).where(nodes.c.key == key).values(value=str(before + by)))
    return before
