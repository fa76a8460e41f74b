"""Where an association's own thread waits while somebody sends a request and reads the answer.

pynetdicom 3.0.4 lets that thread pass such a point for a moment after it was closed, when a busy machine schedules it
late; it then takes the answer, and the sender waits for the whole timeout. This one closes for certain. It stands in
for ``Association._reactor_checkpoint``, a ``threading.Event``; it sends and reads nothing itself.
"""

from __future__ import annotations

import threading

from pynetdicom.association import Association

CHECK_S = 0.05  # how late the end of the thread is noticed


class Checkpoint:
    """Open while set. ``clear`` returns when the thread is certain not to pass."""

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread
        self._changed = threading.Condition()
        self._open = True
        self._waits = False

    def is_set(self) -> bool:
        """Whether the thread may pass."""
        return self._open

    def set(self) -> None:
        """Let the thread pass."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Close, and wait until the thread waits here or has ended."""
        with self._changed:
            self._open = False
            while not self._waits and self._thread.is_alive() and threading.current_thread() is not self._thread:
                self._changed.wait(CHECK_S)

    def wait(self, timeout: float | None = None) -> bool:
        """Called by the thread: return when it may pass."""
        with self._changed:
            while not self._open:
                self._waits = True
                self._changed.notify_all()
                self._changed.wait(timeout)
                if timeout is not None:
                    break
            self._waits = False
            return self._open


def guard(assoc: Association) -> None:
    """Give an association that was just established a checkpoint that holds."""
    former = assoc._reactor_checkpoint
    assoc._reactor_checkpoint = Checkpoint(assoc)  # type: ignore[assignment]  # all that is used of it is above
    former.set()  # the thread may wait at the former one
