"""A receiver process: serves the node's listening socket until told to stop.

The parent binds the port once and passes the socket, so killing one receiver loses no waiting connection. Imports
neither torch nor highdicom: it starts in about a second and stays small. Ends when its parent does, even by SIGKILL.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import structlog

from dicomnode.config import Dicom
from dicomnode.errors import SettingsError
from dicomnode.scp.access import Access
from dicomnode.scp.counts import Counts, Uncounted
from dicomnode.scp.server import ReceiverServer, ServerOptions, Service, tls_context
from dicomnode.scp.spool import RESERVE_BYTES, Spool
from dicomnode.scp.supervisor import watch_parent
from dicomnode.telemetry.dicom_logs import silence_dicom_libraries
from dicomnode.telemetry.heartbeat import BEAT_S, beat, clear_beat
from dicomnode.telemetry.logging import configure_logging

log = structlog.get_logger(__name__)

STOP_GRACE_S = 20.0  # a sender may finish what it is sending; a supervisor waits a little longer than this
POLL_S = 0.5  # until a stop is noticed; connections are accepted at once


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """Everything a receiver needs beside its socket; travels as JSON. Holds paths and AE titles, no secret."""

    name: str
    identified: Path
    runtime: Path
    dicom: Dicom
    own_uids: tuple[str, ...] = ()
    reserve: int = RESERVE_BYTES
    stop_grace_s: float = STOP_GRACE_S

    def to_json(self) -> str:
        """The argument of ``--options``."""
        return json.dumps(
            {
                **{k: v for k, v in asdict(self).items() if k != "dicom"},
                "identified": str(self.identified),
                "runtime": str(self.runtime),
                "dicom": self.dicom.model_dump(mode="json"),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``.

        Raises
        ------
        SettingsError
            The text is not what ``to_json`` writes.
        """
        try:
            record = json.loads(text)
            record["dicom"] = Dicom.model_validate(record["dicom"])
            record["identified"], record["runtime"] = Path(record["identified"]), Path(record["runtime"])
            record["own_uids"] = tuple(record["own_uids"])
            return cls(**record)
        except (ValueError, KeyError, TypeError) as exc:
            raise SettingsError("the receiver's options cannot be read", place="--options") from exc

    def server(self, services: Sequence[Service] = (), counts: Counts | None = None) -> ServerOptions:
        """What the server needs; this process's share of the associations is rounded up."""
        tls = self.dicom.tls
        context = None
        if tls.cert or tls.key or tls.ca or tls.require_client_cert:
            context = tls_context(tls.cert, tls.key, tls.ca, require_client_cert=tls.require_client_cert)
        return ServerOptions(
            access=Access.from_settings(self.dicom),
            max_associations=-(-self.dicom.max_associations // self.dicom.receivers),
            own_uids=frozenset(self.own_uids),
            tls=context,
            services=tuple(services),
            counts=counts or Uncounted(),
        )


def receive(
    listener: socket.socket,
    options: ReceiverOptions,
    stop: threading.Event,
    *,
    services: Sequence[Service] = (),
    counts: Counts | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve ``listener`` until ``stop`` is set; then finish what is being received, within the grace.

    Parameters
    ----------
    listener : socket.socket
        Bound and listening; closed at the end, in this process only.
    services : sequence of Service
        Services beside C-ECHO and C-STORE.
    counts : Counts, optional
        Where what is received is counted.
    ready : callable, optional
        Called once when associations are served.

    Raises
    ------
    SettingsError
        The TLS files cannot be used.
    StorageFull
        There is no room to open the spool.
    """
    silence_dicom_libraries()
    listener.setblocking(False)
    spool = Spool.open(options.identified, reserve=options.reserve, owner=options.name)
    try:
        spool.sweep_own()
        server = ReceiverServer(listener, spool, options.server(services, counts))
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_S}, daemon=True)
        serving.start()
        gc.collect()
        gc.freeze()  # pynetdicom collects garbage while it serves: leave out all that was imported
        log.info("receiver_ready", receiver=options.name)
        if ready is not None:
            ready()
        while serving.is_alive() and not stop.is_set():
            detail = {"associations": server.admitted, "stored": server.stored}
            beat(options.runtime, options.name, state="serving", ready=True, detail=detail)
            stop.wait(BEAT_S)
        beat(options.runtime, options.name, state="stopping", ready=False)
        aborted = server.stop(options.stop_grace_s)
        log.info("receiver_stopped", receiver=options.name, aborted=aborted, stored=server.stored)
    finally:
        spool.close()
        clear_beat(options.runtime, options.name)


def main(argv: Sequence[str] | None = None, services: Sequence[Service] = ()) -> int:
    """``python -m dicomnode.scp.receiver --fd N --options JSON [--parent-fd M]``."""
    parser = argparse.ArgumentParser(prog="dicomnode.scp.receiver", description="A receiver process of the node.")
    parser.add_argument("--fd", type=int, required=True, help="listening socket, inherited")
    parser.add_argument("--parent-fd", type=int, help="pipe that the parent holds open")
    parser.add_argument("--options", required=True, help="ReceiverOptions as JSON")
    arguments = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    configure_logging()
    options = ReceiverOptions.from_json(arguments.options)
    if arguments.parent_fd is not None:
        watch_parent(arguments.parent_fd, grace_s=options.stop_grace_s)
    receive(socket.socket(fileno=arguments.fd), options, stop, services=services)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
