"""A sender and the association's own thread: who may take what arrives is never in doubt."""

from __future__ import annotations

import threading
import time

from dicomnode.scu.checkpoint import Checkpoint


class Reactor(threading.Thread):
    """As pynetdicom's: passes the checkpoint, then takes whatever has arrived; and it may be scheduled late."""

    def __init__(self, late_s: float) -> None:
        super().__init__(daemon=True)
        self.checkpoint = Checkpoint(self)
        self.late_s = late_s
        self.may_take = False
        self.stop = False

    def run(self) -> None:
        while not self.stop:
            self.checkpoint.wait()
            time.sleep(self.late_s)
            self.may_take = True
            time.sleep(self.late_s)
            self.may_take = False


def test_once_the_checkpoint_is_cleared_the_thread_takes_nothing_until_it_is_set():
    reactor = Reactor(0.02)
    reactor.start()
    for _ in range(10):
        reactor.checkpoint.clear()
        taken = [reactor.may_take for _ in range(20) if not time.sleep(0.003)]
        reactor.checkpoint.set()
        assert not any(taken)
    reactor.stop = True
    reactor.join(5)


def test_clearing_it_again_at_once_is_as_safe():
    """The thread was told to go on but has not begun to: it stays."""
    reactor = Reactor(0.02)
    reactor.start()
    reactor.checkpoint.clear()
    for _ in range(200):
        reactor.checkpoint.set()
        reactor.checkpoint.clear()
        assert not reactor.may_take
    reactor.checkpoint.set()
    reactor.stop = True
    reactor.join(5)


def test_a_thread_that_has_ended_is_not_waited_for():
    reactor = Reactor(0.0)
    reactor.stop = True
    reactor.start()
    reactor.join(5)
    began = time.monotonic()
    reactor.checkpoint.clear()
    assert time.monotonic() - began < 1.0


def test_the_thread_itself_may_clear_it():
    passed = threading.Event()

    class Releasing(threading.Thread):
        def run(self) -> None:
            checkpoint.clear()
            passed.set()

    thread = Releasing(daemon=True)
    checkpoint = Checkpoint(thread)
    thread.start()
    assert passed.wait(5)
