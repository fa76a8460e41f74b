"""Who gets the result of a study: the caller if it takes results, otherwise every peer that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Destination:
    """A peer as a receiver of results. ``objects``: kinds it wants ("sr", "contact-sheet", "pdf")."""

    name: str
    ae_title: str
    host: str
    port: int
    results: bool
    objects: tuple[str, ...]

    @classmethod
    def of(cls, peer: Any, objects: tuple[str, ...]) -> Destination:
        """A ``config.Peer``; ``objects`` where it names none of its own."""
        return cls(peer.name, peer.ae_title, peer.host, peer.port, peer.results, peer.objects or objects)


def destinations_for(calling: str, peers: Sequence[Destination]) -> list[Destination]:
    """The destinations of a study that ``calling`` (AE title) sent.

    Two peers may share an AE title (PS3.8 does not forbid it across hosts); each that takes results is sent to.
    """
    takers = [p for p in peers if p.results]
    own = [p for p in takers if p.ae_title == calling]
    return own or takers
