"""Ctrl-C as a question that is asked between two files, instead of an exception at any place.

An exception while a worker is being started leaves it half started, and one that comes up inside a finalizer is printed
and forgotten by Python: the run would go on to its end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back; yields a function that raises ``KeyboardInterrupt`` where it was pressed.

    What was pressed and never asked for is raised at the end. In other threads than the main one, and where somebody
    else handles SIGINT, nothing is held back.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    pressed: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        pressed.append(number)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGINT, nor do their children."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
