"""Group commit: what arrives while one sync is running shares the next one.

A sync costs milliseconds however much it covers, so four associations that store at once should pay for one. No
thread of its own: the first caller works for all who wait, as databases do. Never returns before its item is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    done: bool = False
    result: Result | None = None
    error: BaseException | None = None


class GroupCommit(Generic[Item, Result]):
    """Calls ``work`` with the items of all callers who wait; one call at a time.

    Where a call with several items fails, each is tried alone, so that one bad item fails only its own caller.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._work = work
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: list[_Entry[Item, Result]] = []

    def run(self, item: Item) -> Result:
        """The result for ``item``, or the error that ``work`` raised for it."""
        entry: _Entry[Item, Result] = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
        with self._one_at_a_time:
            if not entry.done:  # whoever held the lock before may have taken this item along
                with self._lock:
                    batch, self._waiting = self._waiting, []
                self._process(batch)
        if entry.error is not None:
            raise entry.error
        assert entry.result is not None
        return entry.result

    def _process(self, batch: list[_Entry[Item, Result]]) -> None:
        try:
            for entry, result in zip(batch, self._work([e.item for e in batch]), strict=True):
                entry.result = result
        except BaseException as exc:  # noqa: BLE001 - it is raised again in the caller's thread
            if len(batch) > 1:
                for entry in batch:
                    self._process([entry])
                return
            batch[0].error = exc
        for entry in batch:
            entry.done = True
