"""Runs the application on uvicorn: on a socket that is already bound, without access logs, with a graceful stop.

Access logs are off because their lines would hold the tokens of links. Never binds by itself where a socket is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dicomnode.errors import Busy, SettingsError

BACKLOG = 128
GRACE_S = 10  # for requests under way when the node stops
MAX_REQUESTS = 256  # connections at once, idle ones too; more are answered 503
HEAD_S = 20.0  # in which the head of a request comes
FLUSH_S = 120.0  # in which the rest of an answer is read, once nothing more is asked
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EACCES)


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises
    ------
    Busy
        The port is taken.
    SettingsError
        The address is not of this machine, or the port is not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise SettingsError(f"{host} is not an address of this machine", place="[web] host") from exc
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if isinstance(exc, PermissionError) or exc.errno in _NOT_OURS:
            raise SettingsError(f"cannot listen on {host}:{port}: {exc.strerror}", place="[web] host") from exc
        raise Busy(f"port {port} is taken", place="[web] port", advice="stop the other program or set another") from exc
    return sock


def serve(app: ASGIApp, sock: socket.socket, stop: threading.Event | None = None) -> None:
    """Serve until stopped; then answer what is under way, for ten seconds at most, and return.

    Parameters
    ----------
    app : ASGI application
        From ``create_app``.
    sock : socket.socket
        Bound, as by ``bind``, or ``socket.socket(fileno=fd)`` of an inherited one. Closed at the end.
    stop : threading.Event, optional
        Ends the serving when set; signals are then the caller's. Without it SIGINT and SIGTERM end it.
    """
    config = uvicorn.Config(
        app,
        http=_Prompt,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        limit_concurrency=MAX_REQUESTS,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config) if stop is None else _Stoppable(config)
    watcher = None
    ended = threading.Event()
    if stop is not None:
        watcher = threading.Thread(target=_watch, args=(server, stop, ended), name="web-stop", daemon=True)
        watcher.start()
    try:
        server.run(sockets=[sock])
    finally:
        ended.set()
        if watcher is not None:
            watcher.join()
        sock.close()


class _Prompt(H11Protocol):
    """Lets go of a client that neither asks nor reads: uvicorn counts its connection and would wait for ever.

    No timer runs while a request is answered; what reads a body has its own.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._watch(HEAD_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._watch(HEAD_S)

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's; a client that does not read its answer is cut off in the end."""
        super().timeout_keep_alive_handler()
        self._unwatch()
        self._watch(FLUSH_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Stoppable(uvicorn.Server):
    """Leaves signals to the process that set ``stop``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _watch(server: uvicorn.Server, stop: threading.Event, ended: threading.Event) -> None:
    while not ended.is_set():
        if stop.wait(0.2):
            server.should_exit = True
            return
