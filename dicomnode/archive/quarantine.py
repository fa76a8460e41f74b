"""What is held until a person decides: reason, place and the command that solves it. De-identified.

The objects themselves stay in the spool (identified zone) as jobs in state "quarantined"; a row here points at the
job and tells people about it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from dicomnode.archive import schema as t
from dicomnode.errors import NotFound

HELD, RELEASED, DISCARDED = "held", "released", "discarded"
_LAST = "quarantine_last"  # in the table of the node: the highest id ever given


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the quarantine. ``job_id``: row of the spool's jobs, None for a file of "index add"."""

    id: int
    reason: str
    line: str
    place: str | None
    advice: str | None
    state: str
    job_id: int | None
    created: float

    def as_json(self) -> dict[str, Any]:
        """As ``quarantine list --json`` prints it."""
        return asdict(self)


class Quarantine:
    """Queries and writes over the quarantine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def hold(self, reason: str, line: str, *, place: str = "", advice: str = "", job_id: int | None = None) -> int:
        """Add an item; the same reason for the same job (or, without one, the same place) is not repeated.

        Returns its id, which no other item had before: the audit trail names items by it, those too that a withdrawal
        has deleted since.
        """
        c = t.quarantine.c
        if job_id is not None:
            same = c.job_id == job_id
        else:
            same = c.job_id.is_(None) & (c.place == place[:64]) & (c.line == line[:255]) & (sa.literal(bool(place)))
        with self.engine.begin() as db:
            found = db.execute(sa.select(c.id).where(same, c.reason == reason[:32], c.state == HELD)).scalar()
            if found is not None:
                return int(found)
            number = _next_id(db)
            insert = t.quarantine.insert().values(
                id=number,
                reason=reason[:32],
                line=line[:255],
                place=place[:64],
                advice=advice[:255],
                state=HELD,
                job_id=job_id,
                created=time.time(),
            )
            db.execute(insert)
            return number

    def items(self, *, state: str | None = None) -> list[Item]:
        """Items, oldest first."""
        query = sa.select(t.quarantine).order_by(t.quarantine.c.id)
        if state is not None:
            query = query.where(t.quarantine.c.state == state)
        with self.engine.connect() as db:
            return [Item(**r._mapping) for r in db.execute(query)]

    def item(self, item_id: int) -> Item:
        """One item.

        Raises
        ------
        NotFound
            If there is none.
        """
        with self.engine.connect() as db:
            row = db.execute(sa.select(t.quarantine).where(t.quarantine.c.id == item_id)).first()
        if row is None:
            raise NotFound("no such item", place=f"quarantine {item_id}", advice="dicomnode quarantine list")
        return Item(**row._mapping)

    def set_state(self, item_id: int, state: str) -> None:
        """Mark an item released or discarded."""
        with self.engine.begin() as db:
            db.execute(t.quarantine.update().where(t.quarantine.c.id == item_id).values(state=state))


def _next_id(db: Connection) -> int:
    """One more than any item has or had; within the transaction of the insert."""
    mine = t.nodes.c.key == _LAST
    last = int(db.execute(sa.select(t.nodes.c.value).where(mine)).scalar() or 0)
    there = db.execute(sa.select(sa.func.max(t.quarantine.c.id))).scalar() or 0
    number = max(last, there) + 1
    db.execute(t.nodes.delete().where(mine))
    db.execute(t.nodes.insert().values(key=_LAST, value=str(number)))
    return number
