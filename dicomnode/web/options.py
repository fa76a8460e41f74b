"""What the web side is given: its options and, as protocols, the services it calls.

It opens no database and no image itself; the composition root hands it what answers these calls. Services may block:
they are called in worker threads.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict
from urllib.parse import urlsplit

from dicomnode.errors import SettingsError

EXPIRED: Literal["expired"] = "expired"
REQUIRED_PARTS = ("receiver", "worker", "index", "model")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Readiness(TypedDict):
    """Whether a part can do its work, and a word on it that identifies nobody."""

    ready: bool
    detail: str


class WebServices(Protocol):
    """What the application calls."""

    def readiness(self) -> Mapping[str, Readiness]:
        """State of the parts by name; ``/readyz`` needs those of ``WebOptions.required_parts``."""

    def answer(self, token: str) -> dict[str, Any] | Literal["expired"] | None:
        """The object of ``Answer.as_json`` behind a link; "expired", or None where there is no such link.

        Asked once when a page is opened, and for an image whose page was not: the place for the audit entry.
        """

    def thumbnail(self, token: str, instance_uid: str) -> bytes | None:
        """PNG of a repository slice in this answer; None where it is gone."""

    def metrics(self) -> bytes:
        """The Prometheus text of the whole node."""


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How the web side is reached.

    Attributes
    ----------
    host, port : str, int
        Where it listens (``[web] host``, ``port``).
    public_url : str
        Base of the links in reports; its host is let in beside the loopback names.
    auth : mapping
        ``[web] auth``; empty: loopback only, and whoever is there is the local administrator.
    language : {"en", "es"}
        Language where a browser asks for neither.
    required_parts : tuple of str
        Parts without which ``/readyz`` is not 200.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""
    auth: Mapping[str, Any] = field(default_factory=dict)
    language: Literal["en", "es"] = "en"
    required_parts: tuple[str, ...] = REQUIRED_PARTS

    def check(self) -> None:
        """Refuse what would open patients' images to a network.

        Raises
        ------
        SettingsError
            A host other than loopback; or a sign-in that this version cannot ask for; or a bad public URL.
        """
        if not is_loopback(self.host) and not self.auth:
            raise SettingsError(
                f"{self.host} can be reached from the network and [web] auth is empty",
                place="[web] host",
                advice="listen on 127.0.0.1 behind a proxy that signs people in, and set public_url to its address",
            )
        if self.auth:
            raise SettingsError(
                "sign-in is not part of this version, and pages are not served without the one that is asked for",
                place="[web] auth",
                advice="leave it empty with host = 127.0.0.1, and let a proxy in front sign people in",
            )
        if self.public_url and (urlsplit(self.public_url).scheme not in ("http", "https") or not self._public_host):
            raise SettingsError("not an http or https address", place="[web] public_url")

    @property
    def _public_host(self) -> str:
        return urlsplit(self.public_url).netloc.lower()

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Values of the Host header that are answered, without port for the loopback names."""
        names = {*LOOPBACK_NAMES, self._public_host}
        if ":" not in self.host:
            names.add(self.host.lower())
        return frozenset(names - {""})

    def allows_host(self, host: str) -> bool:
        """Whether a Host header is one of ours: DNS rebinding lets a foreign page call us by its own name."""
        host = host.lower()
        name, colon, port = host.rpartition(":")
        if colon and port.isdecimal():
            return host == self._public_host or (name in self.allowed_hosts and name != self._public_host)
        return host in self.allowed_hosts

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header is our own page: the host that was called, or the public address."""
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() in {host.lower(), self._public_host} - {""}


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
