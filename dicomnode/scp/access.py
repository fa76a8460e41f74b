"""Who may do what: our AE titles with their roles, and the peers with their services.

Never a security boundary by itself: an AE title is a claim that anyone on the network can make (PS3.8 7.1.1.3);
use ``[dicom.tls] require_client_cert`` where the network is not trusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dicomnode.config import Dicom
from dicomnode.domain import Role


@dataclass(frozen=True, slots=True)
class Access:
    """Roles by our AE title, services by the calling AE title."""

    roles: dict[str, Role]
    services: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, ae_titles: Iterable[tuple[str, Role]], peers: Iterable[tuple[str, Iterable[str]]]) -> Access:
        """From (title, role) and (AE title, services); peers that share an AE title share their services."""
        services: dict[str, frozenset[str]] = {}
        for title, names in peers:
            services[title.strip()] = services.get(title.strip(), frozenset()) | frozenset(names)
        return cls({title.strip(): role for title, role in ae_titles}, services)

    @classmethod
    def from_settings(cls, dicom: Dicom) -> Access:
        """From ``[[dicom.ae_titles]]`` and ``[[dicom.peers]]``."""
        return cls.of(
            ((entry.title, entry.role) for entry in dicom.ae_titles),
            ((peer.ae_title, peer.services) for peer in dicom.peers),
        )

    def knows(self, calling: str) -> bool:
        """Whether a peer has this AE title."""
        return calling in self.services

    def role(self, called: str) -> Role | None:
        """The role of one of our AE titles; None where it is not ours."""
        return self.roles.get(called)

    def allows(self, calling: str, service: str) -> bool:
        """Whether the peer may use the service. C-ECHO is answered to every known peer."""
        services = self.services.get(calling)
        return services is not None and (service == "echo" or service in services)
