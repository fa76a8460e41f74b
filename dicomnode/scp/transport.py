"""The wire below an association: PDUs bounded in size and time, and threads that sleep until something happens.

pynetdicom 3.0.4 reads a PDU of any announced length, waits for the rest of one forever, and polls every millisecond:
16 idle associations cost a quarter of a core. Nothing here decides what is accepted. Facts: PS3.8 9.3, ``dul.py``.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT, A_RELEASE, P_DATA
from pynetdicom.transport import AssociationSocket

from dicomnode.scp.wire import P_DATA_TF, DataPdu

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

RECV_BYTES = 256 * 1024
# An A-ASSOCIATE-RQ with 128 contexts of 40 transfer syntaxes each is under 400 kB; P-DATA is bounded by our maximum.
MAX_PDU_BYTES = 2 * 1024 * 1024
IDLE_WAIT_S = 0.1  # how late a thread notices what nobody wakes it for: timers and a local abort
CLOSED_WAIT_S = 0.001
CLOSED_CHECK_S = 0.25
_CLOSING = "Sta13"  # PS3.8 table 9-10: waiting for the transport connection to close
_ESTABLISHED = "Sta6"  # PS3.8 table 9-10: data transfer
HEADER_BYTES = 6  # PS3.8 9.3.1: type, reserved, length


class BoundedSocket(AssociationSocket):
    """Reads a PDU within a size and a time, and can be woken while it waits for one."""

    def __init__(self, assoc: Association, client_socket: socket.socket, deadline: float) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self.deadline: float | None = deadline  # monotonic; until the association is requested
        self._header = b""
        self._buffer = bytearray()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def request_arrived(self, timeout: float | None) -> None:
        """From here a slow peer has ``timeout`` seconds of silence."""
        self.deadline = None
        if self.socket is not None:
            self.socket.settimeout(timeout)

    def wake(self) -> None:
        """End the wait in ``ready``; from any thread."""
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # it is full of wake-ups already

    def close_wake(self) -> None:
        """Close the pipe; only when no thread waits any more."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    @property
    def ready(self) -> bool:
        """Whether a PDU can be read; waits a while for one where there is nothing else to do."""
        if self.socket is None or not self._is_connected:
            time.sleep(CLOSED_WAIT_S)
            return False
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True  # decrypted bytes that poll cannot see
        dul = self.assoc.dul
        busy = not dul.event_queue.empty() or dul.state_machine.current_state == _CLOSING
        poll = select.poll()  # select() fails above 1024 open files
        try:
            fd = self.socket.fileno()
            poll.register(fd, select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            events = {fd_ready for fd_ready, _ in poll.poll(0 if busy else IDLE_WAIT_S * 1000)}
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # PS3.8 table 9-10: transport connection closed
            return False
        if self._wake_read in events:
            os.read(self._wake_read, 4096)
        return fd in events

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly ``nr_bytes``, fewer when the peer closes.

        Raises
        ------
        OSError
            The PDU is longer than any we would accept, or did not arrive in time; pynetdicom closes the connection.
        """
        if self._header:
            header, self._header = self._header, b""
            return bytearray(header)
        if nr_bytes > MAX_PDU_BYTES:
            raise OSError("PDU longer than the announced maximum")
        data = bytearray(nr_bytes)
        with memoryview(data) as view:
            done = self._fill(view)
        del data[done:]
        return data

    def next_data(self) -> memoryview | None:
        """The next PDU if it is a whole P-DATA-TF, in a buffer that the next call uses again; None where it is another.

        Memory of its own for each PDU would cost more time than the data in it. What is not data is left to ``recv``.

        Raises
        ------
        OSError
            As ``recv``, or the peer closed the connection.
        """
        header = bytearray(HEADER_BYTES)
        if self._fill(memoryview(header)) < HEADER_BYTES:
            raise OSError("closed by the peer")
        if header[0] != P_DATA_TF:
            self._header = bytes(header)
            return None
        size = HEADER_BYTES + int.from_bytes(header[2:], "big")
        if size > MAX_PDU_BYTES:
            raise OSError("PDU longer than the announced maximum")
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        pdu = memoryview(self._buffer)[:size]
        pdu[:HEADER_BYTES] = header
        if HEADER_BYTES + self._fill(pdu[HEADER_BYTES:]) < size:
            raise OSError("closed by the peer")
        return pdu

    def _fill(self, view: memoryview) -> int:
        """Read into all of ``view``; the bytes read, fewer when the peer closes."""
        done = 0
        peer = cast(socket.socket, self.socket)
        while done < len(view):
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeoutError("the association request did not arrive in time")
            got = peer.recv_into(view[done : done + RECV_BYTES])
            if not got:
                break
            done += got
        return done


class WakingDul(DULServiceProvider):
    """An upper layer whose thread waits for the socket or for something to send, and wakes the association's."""

    def __init__(self, assoc: Association, wake_association: Callable[[], None]) -> None:
        super().__init__(assoc)
        self.to_user_queue = _EndingQueue(wake_association)
        self._run_loop_delay = 0.0  # ``ready`` does the waiting
        self.serving = False

    def idle_timer_expired(self) -> bool:
        """As pynetdicom's, but time that we spend on a request is not the peer's silence."""
        return not self.serving and super().idle_timer_expired()

    def _read_pdu_data(self) -> None:
        """As pynetdicom's, but data of an association that is established goes straight to where it belongs.

        PDU after PDU, as long as there is nothing else to do: a turn of the reactor costs more than a PDU.
        """
        while self.state_machine.current_state == _ESTABLISHED and isinstance(self.socket, BoundedSocket):
            try:
                data = self.socket.next_data()
                pdu = None if data is None else DataPdu(data)
            except OSError:
                self.event_queue.put("Evt17")  # PS3.8 table 9-10: transport connection closed
                return
            except ValueError:
                self.event_queue.put("Evt19")  # invalid PDU
                return
            if pdu is None:
                break
            self.assoc.dimse.receive_primitive(cast(P_DATA, pdu))
            self._idle_timer.restart()
            if self._kill_thread or self.to_provider_queue.queue or not self.socket.ready or self.event_queue.queue:
                return
        super()._read_pdu_data()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """As pynetdicom's, but a connection that is closed is not waited for: probes of a balancer come by hundreds."""
        end = time.monotonic() + (timeout or 0)
        while wait and timeout is not None:
            rest = end - time.monotonic()
            if rest <= 0 or self._kill_thread:  # the thread that would bring it has ended
                break
            primitive: Any = super().receive_pdu(wait=True, timeout=min(rest, CLOSED_CHECK_S))
            if primitive is not None:
                return primitive
        return super().receive_pdu(wait=wait and timeout is None, timeout=None)

    def send_pdu(self, primitive: _PDUPrimitiveType) -> None:
        """Queue a primitive and wake the thread that sends it."""
        super().send_pdu(primitive)
        self._wake()

    def kill_dul(self) -> None:
        """End the thread."""
        super().kill_dul()
        self._wake()

    def stop_dul(self) -> bool:
        """End the thread if the connection is closed."""
        self._wake()
        return super().stop_dul()

    def _wake(self) -> None:
        if isinstance(self.socket, BoundedSocket) and threading.get_ident() != self.ident:
            self.socket.wake()


class _EndingQueue(queue.Queue[Any]):
    """Calls back when an association is to end, so that its thread need not look every millisecond."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        if isinstance(item, (A_RELEASE, A_ABORT, A_P_ABORT)):
            self._wake()
