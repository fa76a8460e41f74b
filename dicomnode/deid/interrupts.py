"""Ctrl-C and SIGTERM as a question that is asked between two files, instead of an end at any place.

An exception while a worker is being started leaves it half started, and one that comes up inside a finalizer is printed
and forgotten by Python: the run would go on to its end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# What happens to each signal where nobody has said otherwise.
_USUAL: dict[signal.Signals, signal.Handlers | Callable[[int, FrameType | None], object]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold both back; yields a function that raises ``KeyboardInterrupt`` where one has come.

    What came and was never asked for is raised at the end. In other threads than the main one nothing is held back,
    nor is a signal that somebody else handles.
    """
    mine = threading.current_thread() is threading.main_thread()
    held = [number for number, usual in _USUAL.items() if mine and signal.getsignal(number) == usual]
    pressed: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        pressed.append(number)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    for number in held:
        signal.signal(number, remember)
    try:
        yield check
    finally:
        for number in held:
            signal.signal(number, _USUAL[number])
    check()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGINT, nor do their children."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
