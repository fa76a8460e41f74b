"""C-ECHO and C-STORE as SCU: delivers finished DICOM files to a peer, byte for byte as they are.

Never re-encodes, never logs or raises with a UID: errors name the peer and the status. What is worth another try is a
``PeerError``, what is not a ``PeerRefused``. Statuses: PS3.4 table B.2-1, PS3.7 annex C; rejections: PS3.8 table 9-21.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import time

from dicomnode.errors import InputError, PeerError, PeerRefused
from dicomnode.scu.checkpoint import guard

log = structlog.get_logger(__name__)

MAX_CONTEXTS = 128  # PS3.8 7.1.1.13: context ids are the odd numbers of one byte
_META_START = 144  # PS3.10 7.1: preamble, prefix and the 12 bytes of the group length itself
MAX_PDU = 256 * 1024
SUCCESS = 0x0000
DUPLICATE_INSTANCE = 0x0111  # PS3.7 C.5.7: the peer has it, which is what we want
PRIORITY_MEDIUM = 0x0000
_REJECTED_PERMANENT = 1  # PS3.8 table 9-21
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116})  # PS3.7 C.4
_TEMPORARY = frozenset({0x0110, 0x0210, 0x0213})  # processing failure, duplicate invocation, resource limitation


class Peer(Protocol):
    """What is needed of a peer; ``dicomnode.config.Peer`` has it."""

    @property
    def name(self) -> str: ...

    @property
    def ae_title(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: for the TCP connection, for the answer to the association request, for the answer to a message."""

    connect: float = 10.0
    association: float = 30.0
    response: float = 120.0  # some archives answer a C-STORE only after they have written it


@dataclass(frozen=True, slots=True)
class _Instance:
    """An encoded data set: where it starts, and what the peer must accept for it."""

    source: Path | bytes
    offset: int
    sop_class: UID
    sop_uid: UID
    transfer_syntax: UID

    @property
    def context(self) -> tuple[UID, UID]:
        return self.sop_class, self.transfer_syntax


def echo(peer: Peer, calling_ae: str, timeouts: Timeouts = Timeouts()) -> float:
    """C-ECHO a peer; the seconds it took to answer, association included.

    Raises
    ------
    PeerError
        It cannot be reached, does not answer or rejects the association.
    PeerRefused
        It does not offer the Verification service.
    """
    start = time.monotonic()
    with _association(peer, calling_ae, [build_context(Verification)], timeouts) as assoc:
        if not assoc.accepted_contexts:
            raise PeerRefused(f"peer {peer.name} does not offer C-ECHO")
        status = assoc.send_c_echo()
        _check(peer, status, "C-ECHO")
    return time.monotonic() - start


def accepts(peer: Peer, calling_ae: str, sop_class: str, timeouts: Timeouts = Timeouts()) -> bool:
    """Whether a peer takes a SOP class by C-STORE, asked by negotiation: nothing is sent.

    Raises
    ------
    PeerError, PeerRefused
        As ``echo``.
    """
    contexts = [build_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
    # A peer that accepts no context at all may abort; with C-ECHO beside it the answer is unambiguous.
    contexts.append(build_context(Verification))
    with _association(peer, calling_ae, contexts, timeouts) as assoc:
        return any(context.abstract_syntax == sop_class for context in assoc.accepted_contexts)


def send_files(items: Iterable[Path | bytes], peer: Peer, calling_ae: str, timeouts: Timeouts = Timeouts()) -> None:
    """C-STORE finished DICOM files to a peer.

    Parameters
    ----------
    items : iterable of Path or bytes
        DICOM files (PS3.10), sent in this order where one association can carry them all. Files are streamed.
    peer : Peer
        Where to.
    calling_ae : str
        Our AE title.

    Raises
    ------
    InputError
        An item is not a DICOM file; nothing has been sent.
    PeerError
        Worth another try: not reachable, association rejected, aborted, timed out, A7xx or another temporary status.
        Some items may have been stored; sending all again is right.
    PeerRefused
        For good: a SOP class is not accepted, or an object is refused. The other items have been sent.
    """
    instances = [_read(item) for item in items]
    refused: list[str] = []
    for part in _parts(instances):
        wanted = list(dict.fromkeys(instance.context for instance in part))
        with _association(peer, calling_ae, [build_context(*pair) for pair in wanted], timeouts) as assoc:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]): c for c in assoc.accepted_contexts}
            for number, instance in enumerate(part, start=1):
                context = accepted.get(instance.context)
                if context is None:
                    refused.append(f"{instance.sop_class.name} not accepted")
                    continue
                try:
                    _check(peer, _store(assoc, context, instance, number), instance.sop_class.name)
                except PeerRefused as exc:
                    refused.append(exc.line)
    if refused:
        reasons = "; ".join(dict.fromkeys(refused))
        raise PeerRefused(f"peer {peer.name} refused {len(refused)} of {len(instances)} objects: {reasons}")


def _read(item: Path | bytes) -> _Instance:
    place = str(item) if isinstance(item, Path) else "object in memory"
    try:
        with _open(item) as file:
            read_preamble(file, force=False)
            meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_past_meta)
            length = meta.get("FileMetaInformationGroupLength")
            instance = _Instance(
                source=item,
                offset=file.tell() if length is None else _META_START + length,
                sop_class=UID(meta.MediaStorageSOPClassUID),
                sop_uid=UID(meta.MediaStorageSOPInstanceUID),
                transfer_syntax=UID(meta.TransferSyntaxUID),
            )
            size = file.seek(0, SEEK_END)
    except OSError as exc:
        raise InputError("cannot be read", place=place) from exc
    except Exception as exc:  # noqa: BLE001 - whatever pydicom raises on a damaged file; its text may quote values
        raise InputError(f"is not a DICOM file that can be sent ({type(exc).__name__})", place=place) from None
    if size <= instance.offset:  # a peer would wait for a data set that never comes
        raise InputError("has no data set", place=place)
    return instance


def _open(item: Path | bytes) -> BinaryIO:
    return item.open("rb") if isinstance(item, Path) else BytesIO(item)


def _past_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag.group != 2  # PS3.10 7.1: file meta information is group 0002


def _parts(instances: Sequence[_Instance]) -> Iterator[list[_Instance]]:
    """Split so that each part needs no more presentation contexts than an association has."""
    part: list[_Instance] = []
    contexts: set[tuple[UID, UID]] = set()
    for instance in instances:
        if instance.context not in contexts and len(contexts) == MAX_CONTEXTS:
            yield part
            part, contexts = [], set()
        part.append(instance)
        contexts.add(instance.context)
    if part:
        yield part


@contextmanager
def _association(
    peer: Peer, calling_ae: str, contexts: list[PresentationContext], timeouts: Timeouts
) -> Iterator[Association]:
    """An association with a peer, released at the end. It may have no accepted context; then nothing can be sent."""
    ae = AE(ae_title=calling_ae)
    ae.connection_timeout = timeouts.connect
    ae.acse_timeout = timeouts.association
    ae.dimse_timeout = timeouts.response
    ae.network_timeout = timeouts.response
    connected = threading.Event()
    handlers: list[EventHandlerType] = [(evt.EVT_CONN_OPEN, lambda _event: connected.set())]
    try:
        assoc = ae.associate(peer.host, peer.port, contexts, peer.ae_title, max_pdu=MAX_PDU, evt_handlers=handlers)
    except OSError as exc:
        raise _unreachable(peer) from exc
    try:
        if not assoc.is_established:
            _check_association(peer, assoc, connected=connected.is_set())
        guard(assoc)
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def _check_association(peer: Peer, assoc: Association, *, connected: bool) -> None:
    """Raise unless the peer accepted the association and merely none of its contexts."""
    answer = assoc.acceptor.primitive
    if answer is None:
        if connected:
            raise PeerError(f"peer {peer.name} did not answer the association request", advice="is it a DICOM port?")
        raise _unreachable(peer)
    if answer.result == 0:
        return
    reason = f"result {answer.result}, source {answer.result_source}, reason {answer.diagnostic}"
    # "Permanent" (PS3.8 table 9-21) too heals: when somebody registers the titles, or the peer has started up.
    advice = "register our AE title and the called AE title there" if answer.result == _REJECTED_PERMANENT else ""
    raise PeerError(f"peer {peer.name} rejected the association ({reason})", advice=advice)


def _unreachable(peer: Peer) -> PeerError:
    return PeerError(
        f"peer {peer.name} cannot be reached at {peer.host} port {peer.port}",
        advice="check [[dicom.peers]] host and port, and that it runs",
    )


def _store(assoc: Association, context: PresentationContext, instance: _Instance, number: int) -> Dataset:
    """As pynetdicom's ``send_c_store``, which sends files untouched only by a process-wide switch, and bytes never."""
    if not assoc.is_established:
        return Dataset()
    request = C_STORE()
    request.MessageID = (number - 1) % 0xFFFF + 1
    request.Priority = PRIORITY_MEDIUM
    request.AffectedSOPClassUID = instance.sop_class
    request.AffectedSOPInstanceUID = instance.sop_uid
    if isinstance(instance.source, Path):
        request._dataset_path = (instance.source, instance.offset)
    else:
        request.DataSet = BytesIO(instance.source[instance.offset :])
    assoc._reactor_checkpoint.clear()  # the association's own thread must not take the answer
    try:
        assoc.dimse.send_msg(request, cast(int, context.context_id))
        _, response = assoc.dimse.get_msg(block=True)
    finally:
        assoc._reactor_checkpoint.set()
    if response is None:
        assoc._handle_no_response()
        return Dataset()
    return assoc._check_received_status(response)


def _check(peer: Peer, response: Dataset, what: str) -> None:
    """Raise unless the response says that the peer has done it.

    Raises
    ------
    PeerError
        No valid response, or a status worth another try.
    PeerRefused
        Any other failure.
    """
    if "Status" not in response:
        raise PeerError(f"peer {peer.name} did not answer ({what}): timed out or aborted")
    status = int(response.Status)
    if status in (SUCCESS, DUPLICATE_INSTANCE) or status in _WARNINGS or status & 0xF000 == 0xB000:
        return
    line = f"peer {peer.name} answered {status:04X} ({what})"
    if status in _TEMPORARY or status & 0xFF00 == 0xA700:
        raise PeerError(line)
    raise PeerRefused(line)
