"""What the web side is given: its options and, as protocols, the services it calls.

It opens no database and no image itself; the composition root hands it what answers these calls. Services may block:
they are called in worker threads.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict
from urllib.parse import urlsplit

from dicomnode.config import Auth
from dicomnode.errors import SettingsError
from dicomnode.web.access import Principal
from dicomnode.web.bundle import HERE as VIEWER

EXPIRED: Literal["expired"] = "expired"
REQUIRED_PARTS = ("receiver", "worker", "index", "model")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


LinkState = Literal["open", "expired", "unknown"]


class Readiness(TypedDict):
    """Whether a part can do its work, and a word on it that identifies nobody."""

    ready: bool
    detail: str


class WebServices(Protocol):
    """What the application calls."""

    def readiness(self) -> Mapping[str, Readiness]:
        """State of the parts by name; ``/readyz`` needs those of ``WebOptions.required_parts``."""

    def answer(self, token: str, actor: str) -> dict[str, Any] | Literal["expired"] | None:
        """The object of ``Answer.as_json`` behind a link; "expired", or None where there is no such link.

        Asked once when a page is opened, and for an image whose page was not: the place for the audit entry.
        """

    def link_state(self, token: str) -> LinkState:
        """Whether a link leads somewhere; opens nothing."""

    def thumbnail(self, token: str, instance_uid: str) -> bytes | None:
        """PNG of a repository slice in this answer; None where it is gone."""

    def metrics(self) -> bytes:
        """The Prometheus text of the whole node."""


@dataclass(frozen=True, slots=True)
class GraphAsk:
    """What a graph is asked with; nothing given: the stored answer as it is.

    Attributes
    ----------
    k : int or None
        Cases wanted.
    text : str
        Words that a finding's text or code must all hold.
    status, modality : str
        Only cases with these; empty: all.
    start : str
        Handle of the case to ask from; empty: the query.
    """

    k: int | None = None
    text: str = ""
    status: str = ""
    modality: str = ""
    start: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it must be asked now."""
        return self != GraphAsk()


@dataclass(frozen=True, slots=True)
class WhyAsk:
    """Two frames to compare, by their numbers in ``CaseDetail``; what is not given is the best matching pair's."""

    query_series: int | None = None
    query_frame: int | None = None
    series: int | None = None
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class FrameData:
    """A frame's bytes, made when asked for, and the entity tag that they have."""

    tag: str
    content: Callable[[], bytes]


class ResultServices(Protocol):
    """What the routes below ``/api/v1/results`` call.

    Each raises ``NotFound`` where there is no such result, case or frame, or it is not for this principal, and
    ``Expired`` where its link no longer works. The objects are those of ``web.api.schema``.
    """

    def result(self, result_id: str, who: Principal) -> dict[str, Any]:
        """What is said of a result; recorded as an opening."""

    def graph(self, result_id: str, ask: GraphAsk, who: Principal) -> dict[str, Any]:
        """Cases and how they lie to one another."""

    def atlas(self, result_id: str, cases: Sequence[str], size: int, who: Principal) -> bytes:
        """Thumbnails of cases as one WebP."""

    def case(self, result_id: str, case: str, who: Principal) -> dict[str, Any]:
        """What is known of a case; recorded as a view of it."""

    def frame(self, result_id: str, case: str, series: int, frame: int, who: Principal) -> FrameData:
        """Values of a frame: int16 little endian, row by row."""

    def rendered(
        self,
        result_id: str,
        case: str,
        series: int,
        frame: int,
        window: tuple[float | None, float | None],
        who: Principal,
    ) -> FrameData:
        """A frame as PNG through a window (centre, width)."""

    def masks(self, result_id: str, case: str, series: int, frame: int, who: Principal) -> FrameData:
        """What the network outlines in a frame, as PNG."""

    def why(self, result_id: str, case: str, ask: WhyAsk, who: Principal) -> dict[str, Any]:
        """What makes two frames alike."""

    def contact_sheet(self, result_id: str, kind: str, language: str, who: Principal) -> bytes:
        """The stored answer as "png" or "pdf"."""


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How the web side is reached.

    Attributes
    ----------
    host, port : str, int
        Where it listens (``[web] host``, ``port``).
    public_url : str
        Base of the links in reports; its host is let in beside the loopback names.
    auth : Auth
        ``[web] auth``; without a method: loopback only, and whoever is there is the local administrator.
    language : {"en", "es"}
        Language where a browser asks for neither.
    required_parts : tuple of str
        Parts without which ``/readyz`` is not 200.
    viewer : Path
        Folder of the built viewer; the plain page is served where it is not there.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""
    auth: Auth = field(default_factory=Auth)
    language: Literal["en", "es"] = "en"
    required_parts: tuple[str, ...] = REQUIRED_PARTS
    viewer: Path = VIEWER

    def check(self) -> None:
        """Refuse what would open patients' images to a network.

        Raises
        ------
        SettingsError
            A host other than loopback without sign-in; or a bad public URL.
        """
        if not is_loopback(self.host) and not self.auth.method:
            raise SettingsError(
                f"{self.host} can be reached from the network and [web] auth is empty",
                place="[web] host",
                advice='set it to {method = "users"}, or listen on 127.0.0.1',
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
