"""Delivery: sends each pending result to its peer until it is taken or refused for good. At least once.

The rows of ``results`` are the queue and the bytes in the outbox never change, so a kill between sending and marking
only sends the same object again, and the PACS keeps one. A peer that is down costs one connection attempt a round,
with a backoff up to five minutes, and does not delay other peers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import structlog

from dicomnode.archive.answers import Answers, Result
from dicomnode.archive.database import Changes
from dicomnode.errors import DicomnodeError, PeerRefused
from dicomnode.telemetry.metrics import Metrics
from dicomnode.workflow.context import Folders
from dicomnode.workflow.peers import Destination

log = structlog.get_logger(__name__)

POLL_S = 0.5
AFTER_FAULT_S = 2.0
FIRST_BACKOFF_S = 2.0
MAX_BACKOFF_S = 300.0
WRITTEN_WITHIN_S = 600.0  # a step's retries and a restart; later the report step itself has the result sent again

Send = Callable[[Destination, Path], None]


def backoff_s(attempts: int) -> float:
    """Seconds to wait after the n-th failed attempt (n from 0): 2, 4, 8 ... 300."""
    return float(min(FIRST_BACKOFF_S * 2 ** min(attempts, 16), MAX_BACKOFF_S))


WAITS = tuple(backoff_s(n) for n in range(9))  # as far as they differ


class Outbox:
    """The results that wait for delivery.

    Parameters
    ----------
    send : callable
        ``send(destination, file)``; raises ``PeerRefused`` when another try will not help, ``PeerError`` when it may.
    after : callable
        Called after each delivery, to delete what is no longer needed.
    """

    def __init__(
        self,
        answers: Answers,
        folders: Folders,
        destinations: Sequence[Destination],
        send: Send,
        metrics: Metrics,
        after: Callable[[], None],
    ) -> None:
        self._answers = answers
        self._folders = folders
        self._peers = {d.name: d for d in destinations}
        self._send = send
        self._metrics = metrics
        self._after = after
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(self._peers)), thread_name_prefix="deliver")
        self._busy: dict[str, Future[None]] = {}
        self._changes = Changes(answers.engine)
        self._at_rest = False

    def tick(self) -> None:
        """One round: start a delivery for each peer that has something due and no delivery under way."""
        for name in [n for n, under_way in self._busy.items() if under_way.done()]:
            self._busy.pop(name).result()  # a fault of the last round is told, not lost
        changed = self._changes.since_last()
        if self._at_rest and not changed:
            return
        due = sorted(self._answers.due(time.time(), WAITS), key=lambda r: r.destination)
        for name, results in groupby(due, key=lambda r: r.destination):
            if name not in self._busy:
                self._busy[name] = self._pool.submit(self._deliver, name, list(results))
        self._at_rest = not due and self._answers.count_pending() == 0

    def run(self, stop: threading.Event) -> None:
        """Tick until told to stop."""
        while not stop.wait(POLL_S):
            try:
                self.tick()
            except DicomnodeError as exc:
                log.warning("outbox_failed", code=exc.code, line=exc.line)
                stop.wait(1.0)
            except Exception:  # a database that is away, a fault: nothing may end the delivery
                log.exception("outbox_failed")
                stop.wait(AFTER_FAULT_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, name: str, results: list[Result]) -> None:
        for position, result in enumerate(results):
            if self._being_written(result):
                continue
            try:
                self._send_one(name, result)
            except PeerRefused as exc:
                self._failed(result, exc)
            except DicomnodeError as exc:
                # The peer is down or busy: what else waits for it would fail alike.
                for waiting in results[position:]:
                    self._later(waiting, exc)
                return
            else:
                self._answers.mark_delivered(result.id)
                self._metrics.result("delivered")
                log.info(
                    "result_delivered", result=result.id, peer=name, kind=result.kind, attempts=result.attempts + 1
                )
                self._after()

    def _being_written(self, result: Result) -> bool:
        """Whether the report step has yet to write the object: it comes after its row, later still after a kill."""
        untried = result.attempts == 0 and result.resends == 0
        young = time.time() - result.created < WRITTEN_WITHIN_S
        return untried and young and not self._folders.sent(result.id).exists()

    def _send_one(self, name: str, result: Result) -> None:
        peer = self._peers.get(name)
        if peer is None:
            raise PeerRefused("no such peer in the settings any more", place=f"peer {name}")
        file = self._folders.sent(result.id)
        if not file.exists():
            raise PeerRefused("the object is no longer kept", advice="send the study again")
        self._send(peer, file)

    def _failed(self, result: Result, exc: DicomnodeError) -> None:
        self._answers.mark_failed(result.id, str(exc))
        self._metrics.result("failed")
        log.error("result_refused", result=result.id, peer=result.destination, code=exc.code, line=exc.line)

    def _later(self, result: Result, exc: DicomnodeError) -> None:
        wait = backoff_s(result.attempts)
        self._answers.mark_retry(result.id, next_try=time.time() + wait, error=str(exc))
        self._metrics.result("retried")
        log.warning("result_waits", result=result.id, peer=result.destination, seconds=wait, line=exc.line)
