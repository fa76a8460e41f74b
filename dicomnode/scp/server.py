"""The receivers' application entity: who gets an association, which contexts, and how many at once.

C-ECHO and C-STORE of every storage class in every transfer syntax, private ones included; other services are added
by the caller. Several processes may serve one listening socket. Facts: PS3.8 9.1.5 and table 9-21, PS3.4 annex B.
"""

from __future__ import annotations

import errno
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import time
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicomnode.errors import Busy, SettingsError
from dicomnode.scp.access import Access
from dicomnode.scp.association import SpoolingAssociation, is_storage
from dicomnode.scp.counts import Counts, Uncounted
from dicomnode.scp.echo import handle_echo
from dicomnode.scp.spool import Spool
from dicomnode.scp.status import (
    CALLED_AE_TITLE_NOT_RECOGNISED,
    CALLING_AE_TITLE_NOT_RECOGNISED,
    LOCAL_LIMIT_EXCEEDED,
    Rejection,
)
from dicomnode.scp.store import handle_store

log = structlog.get_logger(__name__)

FIRST_PDU_S = 8.0  # a client that has not asked for an association by then is not going to
IDLE_S = 120.0  # modalities keep an association open between two acquisitions
MAX_PDU = 256 * 1024  # measured: CPU per object falls up to 128 KiB (DCMTK's maximum) and stays level after
BACKLOG = 256
FULL_WAIT_S = 2.0  # a full receiver leaves new connections to the others for this long before it rejects one
FULL_POLL_S = 0.02
UNASKED_MAX = 200  # connections that have not asked for an association yet; each costs two threads
STOP_IDLE_S = 2.0  # at the end, an association without traffic for this long is between two jobs
YIELD_S = 0.002  # a busy receiver lets an idle one accept first; far below what a sender notices
YIELD_MAX = 5

_REASONS = {
    CALLED_AE_TITLE_NOT_RECOGNISED: "called-ae",
    CALLING_AE_TITLE_NOT_RECOGNISED: "calling-ae",
    LOCAL_LIMIT_EXCEEDED: "limit",
}
_KNOWN_TRANSFER_SYNTAXES = frozenset(AllTransferSyntaxes)
Handler = EventHandlerType


@dataclass(frozen=True, slots=True)
class Service:
    """A further service on the same port: its presentation contexts and its event handlers."""

    contexts: tuple[PresentationContext, ...]
    handlers: tuple[Handler, ...]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a receiver needs to know beside its socket and its spool. ``max_associations`` is this process's share."""

    access: Access
    max_associations: int = 64
    own_uids: frozenset[str] = frozenset()
    tls: ssl.SSLContext | None = None
    first_pdu_s: float = FIRST_PDU_S
    idle_s: float = IDLE_S
    max_pdu: int = MAX_PDU
    services: tuple[Service, ...] = field(default=())
    counts: Counts = field(default_factory=Uncounted)


def bind_listener(host: str, port: int) -> socket.socket:
    """Bind and listen once, in the parent: a taken port is found before any child starts.

    Raises
    ------
    Busy
        Another process has the port.
    SettingsError
        The address cannot be used on this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as exc:
        raise SettingsError(f"{host} is not an address", place="[dicom] host") from exc
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)  # of the processes that wake for a connection only one gets it
    except OSError as exc:
        listener.close()
        if isinstance(exc, PermissionError):
            raise SettingsError(
                f"port {port} needs privileges", place="[dicom] port", advice="use a port above 1023"
            ) from exc
        if exc.errno == errno.EADDRINUSE:
            raise Busy(
                f"port {port} on {host} is in use",
                place="[dicom] port",
                advice="stop the other program or set a free port",
            ) from exc
        raise SettingsError(f"cannot listen on {host}: {exc.strerror}", place="[dicom] host") from exc
    return listener


class _RequestHandler(RequestHandler):
    def _create_association(self) -> SpoolingAssociation:
        server = cast(ReceiverServer, self.server)
        assoc = SpoolingAssociation(server, self.request)
        assoc.acceptor.maximum_length = server.ae.maximum_pdu_size
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = server.ae.implementation_version_name
        assoc.acceptor.supported_contexts = [_copy(context) for context in server.contexts]
        assoc.requestor.address_info = self.remote
        for event, handlers in server._handlers.items():
            bound = [handlers] if isinstance(handlers, tuple) else handlers
            for handler, args in bound:
                assoc.bind(event, handler, args)
        return assoc


class ReceiverServer(ThreadedAssociationServer):
    """Serves associations from a socket that is already listening and may be shared with other processes."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, spool: Spool, options: ServerOptions) -> None:
        self.spool = spool
        self.access = options.access
        self.options = options
        self.stored = 0
        self._listener = listener
        self._admitted: set[SpoolingAssociation] = set()
        self._lock = threading.Lock()
        self._full_since: float | None = None
        self.connections = 0  # open ones, associations or not yet
        ae = AE(ae_title=next(iter(options.access.roles)))
        ae.acse_timeout = options.first_pdu_s
        ae.dimse_timeout = options.idle_s
        ae.network_timeout = options.idle_s
        ae.maximum_pdu_size = options.max_pdu
        ae.maximum_associations = 2**31 - 1  # counted here: pynetdicom also counts connections that ask for nothing
        contexts = [build_context(Verification)]
        handlers: list[Handler] = [
            (evt.EVT_REQUESTED, _admit, [self]),
            (evt.EVT_C_ECHO, handle_echo, []),
            (evt.EVT_C_STORE, handle_store, [options.own_uids]),
        ]
        for service in options.services:
            contexts.extend(service.contexts)
            handlers.extend(service.handlers)
        super().__init__(
            ae, listener.getsockname(), ae.ae_title, contexts, options.tls, handlers, request_handler=_RequestHandler
        )

    def server_bind(self) -> None:
        """Take the shared socket instead of binding one."""
        if self.socket is not None:
            self.socket.close()
        self.socket = self._listener
        self.server_address = self._listener.getsockname()

    def server_activate(self) -> None:
        """The shared socket listens already."""

    def server_close(self) -> None:
        """Close this process's handle; shutting the socket down would end it for the other receivers too."""
        self._listener.close()

    def stop(self, grace_s: float) -> int:
        """Take no more connections, let associations end within ``grace_s``, abort the rest; the number aborted."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()
        end = time.monotonic() + grace_s
        aborted = 0
        while associations := self._open_associations():
            late = time.monotonic() >= end
            for assoc in associations:
                if late or assoc.idle_s > STOP_IDLE_S:
                    assoc.abort()
                    self.leave(assoc)
                    aborted += 1
            time.sleep(0.05)
        return aborted

    def _open_associations(self) -> list[SpoolingAssociation]:
        with self._lock:
            return list(self._admitted)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, unless this receiver is full and another may be free."""
        if threading.active_count() > 2 * (self.options.max_associations + UNASKED_MAX):
            time.sleep(FULL_POLL_S)  # those that ask for nothing are dropped after a few seconds
            raise BlockingIOError
        if self.admitted >= self.options.max_associations:
            now = time.monotonic()
            self._full_since = self._full_since or now
            if now - self._full_since < FULL_WAIT_S:
                time.sleep(FULL_POLL_S)
                raise BlockingIOError
        else:
            self._full_since = None
            # Connections, not associations: of four senders that come at once each receiver gets its share.
            time.sleep(YIELD_S * min(self.connections, YIELD_MAX))
        client, address = self._listener.accept()
        with self._lock:
            self.connections += 1
        client.settimeout(self.options.first_pdu_s)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return client, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own: the TLS handshake, then the association."""
        if self.options.tls is not None:
            try:
                request = self.options.tls.wrap_socket(request, server_side=True)
            except OSError as exc:  # SSLError and TimeoutError too
                self.options.counts.rejected_association("tls")
                log.warning("tls_handshake_failed", error=type(exc).__name__)
                request.close()
                self.connection_ended()
                return
        try:
            super().finish_request(request, client_address)  # starts the association's thread
        except BaseException:
            self.connection_ended()
            raise

    def connection_ended(self) -> None:
        """A connection that was accepted is over."""
        with self._lock:
            self.connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log without a traceback: it may quote what the client sent."""
        log.error("connection_failed")

    def count_stored(self) -> None:
        """One more instance was acknowledged."""
        with self._lock:
            self.stored += 1

    @property
    def admitted(self) -> int:
        """Associations that hold a slot."""
        return len(self._admitted)

    def enter(self, assoc: SpoolingAssociation) -> bool:
        """Give an association a slot, if there is one."""
        with self._lock:
            if len(self._admitted) >= self.options.max_associations:
                return False
            self._admitted.add(assoc)
            return True

    def leave(self, assoc: SpoolingAssociation) -> None:
        """Free an association's slot."""
        with self._lock:
            self._admitted.discard(assoc)


def _admit(event: Event, server: ReceiverServer) -> None:
    """Reject what is unknown or too much before anything is negotiated; prefer transfer syntaxes we know."""
    assoc = cast(SpoolingAssociation, event.assoc)
    try:
        assoc.request_arrived()
        rejection = _rejection(server, assoc)
        if rejection is None:
            server.options.counts.association()
            _support_what_is_asked(server, assoc)
            return
    except Exception as exc:  # noqa: BLE001 - pynetdicom would go on and accept: a request we cannot judge is aborted
        log.error("association_request_failed", error=type(exc).__name__)  # noqa: TRY400 - may quote the request
        assoc.abort()
        assoc.is_aborted = True
        return
    server.options.counts.rejected_association(_REASONS[rejection])
    log.warning(
        "association_rejected",
        calling=assoc.calling,
        called=assoc.called,
        result=rejection.result,
        source=rejection.source,
        reason=_REASONS[rejection],
    )
    assoc.acse.send_reject(*rejection)
    assoc.kill()  # returns when the rejection is sent and the connection is closed


def _rejection(server: ReceiverServer, assoc: SpoolingAssociation) -> Rejection | None:
    if server.access.role(assoc.called) is None:
        return CALLED_AE_TITLE_NOT_RECOGNISED
    if not server.access.knows(assoc.calling):
        return CALLING_AE_TITLE_NOT_RECOGNISED
    if not server.enter(assoc):
        return LOCAL_LIMIT_EXCEEDED
    return None


def _support_what_is_asked(server: ReceiverServer, assoc: SpoolingAssociation) -> None:
    """Support every storage class the peer proposes: standard, retired or private, in any transfer syntax.

    As pynetdicom's UNRESTRICTED_STORAGE_SERVICE, which is a switch for the whole process.
    """
    served = {context.abstract_syntax for context in server.contexts}
    wanted: dict[UID, list[str | bytes | UID]] = {}
    for context in cast(A_ASSOCIATE, assoc.requestor.primitive).presentation_context_definition_list:
        context.transfer_syntax = _known_first(context.transfer_syntax)
        sop_class = cast(UID, context.abstract_syntax)
        if sop_class not in served and is_storage(sop_class):
            wanted.setdefault(sop_class, []).extend(context.transfer_syntax)
    supported = assoc.acceptor.supported_contexts
    assoc.acceptor.supported_contexts = supported + [_context(uid, syntaxes) for uid, syntaxes in wanted.items()]


def _context(sop_class: UID, syntaxes: list[str | bytes | UID]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = sop_class
    context.transfer_syntax = list(dict.fromkeys(syntaxes))
    return context


def _known_first(proposed: Sequence[UID]) -> list[str | bytes | UID]:
    """The peer's order, with transfer syntaxes that nobody here can decode moved to the end."""
    return sorted(proposed, key=lambda uid: uid not in _KNOWN_TRANSFER_SYNTAXES)


def _copy(context: PresentationContext) -> PresentationContext:
    copy = build_context(cast(UID, context.abstract_syntax), list(context.transfer_syntax))
    copy.scu_role, copy.scp_role = context.scu_role, context.scp_role
    return copy


def tls_context(cert: str, key: str, ca: str = "", *, require_client_cert: bool = False) -> ssl.SSLContext:
    """The server's TLS context: TLS 1.2 or later (PS3.15 B.9, BCP 195).

    Raises
    ------
    SettingsError
        A file is missing or is not what it should be, or client certificates are asked for without a ``ca``.
    """
    if not (cert and key):
        raise SettingsError("cert and key are both needed", place="[dicom.tls]")
    if require_client_cert and not ca:
        raise SettingsError("require_client_cert needs ca", place="[dicom.tls] ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except OSError as exc:
        raise SettingsError("cert and key cannot be loaded as a pair", place="[dicom.tls] cert, key") from exc
    if ca:
        try:
            context.load_verify_locations(ca)
        except OSError as exc:
            raise SettingsError("ca cannot be loaded", place="[dicom.tls] ca") from exc
        context.verify_mode = ssl.CERT_REQUIRED if require_client_cert else ssl.CERT_OPTIONAL
    return context
