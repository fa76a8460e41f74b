"""An association as the receivers need it: data sets go to disk as they come, whatever their size.

Built on pynetdicom's Association; overrides only where its behaviour would lose data or let a client block others:
it keeps data sets in a shared temporary folder, and a full disk ends its thread instead of answering A700.
Facts: PS3.7 9.3.1 (C-STORE), pynetdicom 3.0.4 ``association.py`` and ``dimse.py``.
"""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import structlog
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_FIND, C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicomnode.errors import DicomnodeError, InputError
from dicomnode.scp.incoming import Incoming
from dicomnode.scp.status import NOT_AUTHORISED
from dicomnode.scp.transport import IDLE_WAIT_S, BoundedSocket, WakingDul
from dicomnode.scp.wire import IS_COMMAND, IS_LAST, Fragment, file_head, store_request, store_response

if TYPE_CHECKING:
    from pynetdicom.dimse_primitives import DimseServiceType

    from dicomnode.scp.server import ReceiverServer

log = structlog.get_logger(__name__)

# Of a command, or of a data set that is not stored: an identifier with a thousand UIDs has 64 kB.
MAX_IN_MEMORY = 1024 * 1024


def is_storage(sop_class: UID) -> bool:
    """Whether a SOP class is stored by C-STORE, as far as one can know: private and unknown ones are taken to be."""
    return uid_to_service_class(sop_class) in (StorageServiceClass, ServiceClass)


def _in_memory(message: DIMSEMessage) -> int:
    """Bytes of an unfinished message that are held in memory."""
    return message.encoded_command_set.tell() + cast(BytesIO, message.data_set).tell()


class NotAuthorised(DicomnodeError):
    """The peer may not use the service (``[[dicom.peers]] services``)."""

    code = "not-authorised"
    dimse_status = NOT_AUTHORISED

    def __init__(self, what: str = "store") -> None:
        super().__init__(f"the peer may not {what} here", place="[[dicom.peers]] services")


class SpoolingDimse(DIMSEServiceProvider):
    """Sends the data set of a C-STORE request fragment by fragment into an ``Incoming`` file."""

    def __init__(self, assoc: SpoolingAssociation) -> None:
        super().__init__(assoc)
        self._untaken: list[Incoming] = []
        self._storing: C_STORE | None = None  # a request whose data set is coming in
        self.last_active = time.monotonic()
        self.msg_queue = _Requests(assoc)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Decode one fragment at a time, so that a file is open before the first fragment of its data set.

        What belongs to a stored data set goes into its file as it lies in the PDU; pynetdicom sees the rest.
        """
        self.last_active = time.monotonic()
        for context_id, data in cast(Iterable[Fragment], primitive.presentation_data_value_list):
            if self._storing is not None or self.message is None:
                taken = self._take_fragment(context_id, data)
                if taken is None:
                    self.dul.event_queue.put("Evt19")
                    return
                if taken:
                    continue
            message, rest = self.message, data
            if isinstance(message, C_STORE_RQ) and message._data_set_file is not None and not data[0] & IS_COMMAND:
                cast(Incoming, message._data_set_file).write(data[1:])
                if not data[0] & IS_LAST:
                    continue
                rest = data[:1]
            single = P_DATA()
            single.presentation_data_value_list.append((context_id, bytes(rest)))
            super().receive_primitive(single)
            message = self.message
            if message is not None and _in_memory(message) > MAX_IN_MEMORY:
                log.warning("message_too_long", bytes=_in_memory(message))
                self.dul.event_queue.put("Evt19")  # PS3.8 table 9-10: invalid PDU, which ends the association
                return
            if isinstance(message, C_STORE_RQ) and message._data_set_file is None:
                incoming = self._open_for(message)
                self._untaken.append(incoming)
                message._data_set_file = incoming  # type: ignore[assignment]  # all that is used of it is write and flush

    def _take_fragment(self, context_id: int, data: memoryview) -> bool | None:
        """Take what belongs to a plain C-STORE, as nearly all do, past pynetdicom: its way costs more than the pixels.

        False: pynetdicom's. None: no fragment of the message that is coming in (PS3.7 8.1: one after another).
        """
        request = self._storing
        if request is None:
            plain = store_request(data[1:]) if data[0] & 3 == IS_COMMAND | IS_LAST else None
            if plain is None:
                return False
            self._storing = request = C_STORE()
            request.MessageID, request.Priority = plain.message_id, plain.priority
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(plain.sop_class), UID(plain.sop_uid)
            request.DataSet = BytesIO()
            request._context_id = context_id
            incoming = self._open(context_id, UID(plain.sop_class), UID(plain.sop_uid))
            self._untaken.append(incoming)
            request._dataset_file = incoming  # type: ignore[assignment]  # taken back in ``take``
            return True
        if data[0] & IS_COMMAND or context_id != request._context_id:
            return None
        cast(Incoming, request._dataset_file).write(data[1:])
        if data[0] & IS_LAST:
            self._storing = None
            self.msg_queue.put((context_id, request))
        return True

    def _open_for(self, message: C_STORE_RQ) -> Incoming:
        command = message.command_set
        try:
            sop_class, sop_uid = command.AffectedSOPClassUID, command.AffectedSOPInstanceUID
        except AttributeError:
            sop_class = sop_uid = UID("")
        return self._open(message.context_id or 0, sop_class, sop_uid)

    def _open(self, context_id: int, sop_class: UID, sop_uid: UID) -> Incoming:
        assoc = cast(SpoolingAssociation, self.assoc)
        context = assoc._accepted_cx.get(context_id)
        if context is None:  # pynetdicom aborts such a request before any handler sees it
            return Incoming.refused(DicomnodeError("data set under a context that was not accepted"))
        if not assoc.server.access.allows(assoc.calling, "store"):
            return Incoming.refused(NotAuthorised())
        try:
            head = file_head(sop_class, sop_uid, context.transfer_syntax[0])
        except (AttributeError, TypeError, ValueError):
            return Incoming.refused(InputError("C-STORE request without usable SOP class and instance UIDs"))
        return assoc.server.spool.incoming(head)

    def get_msg(self, block: bool = False) -> Any:
        """As pynetdicom's, but its reactor, which asks without blocking, waits here instead of polling."""
        if block:
            return super().get_msg(block=True)
        try:
            return self.msg_queue.get(timeout=IDLE_WAIT_S)
        except queue.Empty:
            return None, None

    def wake(self) -> None:
        """End the wait of the reactor; it finds no message and looks at everything else."""
        self.msg_queue.put((None, None))

    def answer_store(self, request: C_STORE, context_id: int, status: int) -> None:
        """Send a C-STORE response."""
        sop_class, sop_uid = cast(UID, request.AffectedSOPClassUID), cast(UID, request.AffectedSOPInstanceUID)
        response = P_DATA()
        command = store_response(cast(int, request.MessageID), sop_class, sop_uid, status)
        response.presentation_data_value_list.append((context_id, command))
        self.dul.send_pdu(response)

    def take(self, request: C_STORE) -> Incoming:
        """The file of a request being served; from now on the caller's to keep or abandon."""
        incoming = cast(Incoming, request._dataset_file)
        request._dataset_file = None  # pynetdicom would delete the file after the handler
        self._untaken.remove(incoming)
        return incoming

    def abandon_untaken(self) -> None:
        """Delete what was received in part, or never served."""
        while self._untaken:
            self._untaken.pop().abandon()


class SpoolingAssociation(Association):
    """An accepted association whose ``dimse`` is a ``SpoolingDimse``."""

    def __init__(self, server: ReceiverServer, client_socket: socket.socket) -> None:
        super().__init__(server.ae, MODE_ACCEPTOR)
        self.server = server
        self._server = server
        self._serving = False
        self.name = f"AcceptorThread@{id(self):x}"  # pynetdicom finds its associations by this name
        dimse = SpoolingDimse(self)
        self.dimse = dimse
        self.dul = WakingDul(self, dimse.wake)
        # Setting them passes them on to the timers of the upper layer.
        self.acse_timeout, self.network_timeout = server.options.first_pdu_s, server.options.idle_s
        self._bounded = BoundedSocket(self, client_socket, time.monotonic() + server.options.first_pdu_s)
        self.set_socket(self._bounded)

    @property
    def calling(self) -> str:
        """The peer's AE title, as it names itself."""
        return cast(A_ASSOCIATE, self.requestor.primitive).calling_ae_title.strip()

    @property
    def called(self) -> str:
        """Our AE title that the peer called."""
        return cast(A_ASSOCIATE, self.requestor.primitive).called_ae_title.strip()

    def request_arrived(self) -> None:
        """The association request is read: from here a slow peer has the idle time."""
        self._bounded.request_arrived(self.network_timeout)

    def run(self) -> None:
        """The association from its request to its end."""
        try:
            super().run()
        finally:
            self.server.connection_ended()

    def run_reactor(self) -> None:
        """Serve until the association ends, then free its slot and drop a half-received data set."""
        try:
            super().run_reactor()
        finally:
            self.server.leave(self)
            cast(SpoolingDimse, self.dimse).abandon_untaken()
            if not self.dul.is_alive():
                self._bounded.close_wake()

    @property
    def idle_s(self) -> float:
        """Seconds since anything was received or answered."""
        return 0.0 if self._serving else time.monotonic() - cast(SpoolingDimse, self.dimse).last_active

    def serve_at_once(self, request: C_STORE, context_id: int) -> bool:
        """Serve a store in the thread that read it, where that is possible: no other thread has to wake up for it.

        Not before the reactor serves, not past a request that waits for it, and not where the end is an abort.
        """
        ready = self.is_established and not self._serving and self.dimse.msg_queue.empty()
        if not ready or self._accepted_cx.get(context_id) is None or not request.is_valid_request:
            return False
        self._serve_request(request, context_id)
        return True

    def _serve_request(self, msg: DimseServiceType, context_id: int) -> None:
        self._serving = cast(WakingDul, self.dul).serving = True
        if isinstance(msg, C_FIND) and msg.Identifier is None:
            msg.Identifier = BytesIO()  # pynetdicom would not answer at all; so it is an identifier without a level
        if isinstance(msg, C_STORE) and msg.MessageIDBeingRespondedTo is None:
            self._serve_store(msg, context_id)
        elif not msg.is_valid_request:
            log.warning("request_invalid")
            self.abort()
        else:
            super()._serve_request(msg, context_id)
        self.dul._idle_timer.restart()  # time spent in our handler is not the peer's silence
        cast(SpoolingDimse, self.dimse).last_active = time.monotonic()
        self._serving = cast(WakingDul, self.dul).serving = False

    def _serve_store(self, request: C_STORE, context_id: int) -> None:
        """As pynetdicom, which knows no service for private SOP classes, and leaves a broken request unanswered."""
        context = self._accepted_cx.get(context_id)
        if context is None or not request.is_valid_request:
            log.warning("store_request_invalid")
            self.abort()
            return
        status = evt.trigger(self, evt.EVT_C_STORE, {"request": request, "context": context.as_tuple})
        if self.is_established:
            cast(SpoolingDimse, self.dimse).answer_store(request, context_id, cast(int, status))


class _Requests(queue.Queue[Any]):
    """The requests that wait for the reactor; a store is served before it gets here."""

    def __init__(self, assoc: SpoolingAssociation) -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        context_id, request = item
        store = isinstance(request, C_STORE) and request.MessageIDBeingRespondedTo is None
        if not (store and self._assoc.serve_at_once(request, context_id)):
            super().put(item, block, timeout)
