"""What a receiver counts; ``telemetry.metrics.Metrics`` does, and ``Uncounted`` where nobody asks."""

from __future__ import annotations

from typing import Protocol


class Counts(Protocol):
    """Counters of a receiver; arguments are words of closed sets, never anything of a data set."""

    def received(self, outcome: str, size: int = 0) -> None:
        """An instance came: stored, duplicate, version, ignored, refused, failed; ``size`` bytes where stored."""

    def find(self, outcome: str) -> None:
        """A C-FIND request ended: answered, cancelled, too-many, refused, failed, aborted."""

    def query(self, source: str) -> None:
        """Somebody asked for similar cases."""

    def association(self) -> None:
        """An association was accepted."""

    def rejected_association(self, reason: str) -> None:
        """An association was rejected: calling-ae, called-ae, limit, tls."""


class Uncounted:
    """Counts nothing."""

    def received(self, outcome: str, size: int = 0) -> None:
        """Do nothing."""

    def find(self, outcome: str) -> None:
        """Do nothing."""

    def query(self, source: str) -> None:
        """Do nothing."""

    def association(self) -> None:
        """Do nothing."""

    def rejected_association(self, reason: str) -> None:
        """Do nothing."""
