"""C-STORE as SCP (PS3.4 annex B): the data set is already in a file; make it durable, give it a row, then answer.

Never decodes pixels, never refuses an object for its class or content: what cannot be read goes to quarantine as a
study of its own, so that nothing is lost. A duplicate is 0000 (some senders abort their whole job on anything else).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import structlog
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicomnode.domain import Role
from dicomnode.errors import DicomnodeError, InputError
from dicomnode.scp.association import SpoolingAssociation, SpoolingDimse
from dicomnode.scp.header import Header, read_header
from dicomnode.scp.incoming import Incoming
from dicomnode.scp.records import ReceivedFile, Stored, StoredKind
from dicomnode.scp.status import PROCESSING_FAILURE, SUCCESS

log = structlog.get_logger(__name__)

_OUTCOMES = {StoredKind.NEW: "stored", StoredKind.DUPLICATE: "duplicate", StoredKind.VERSION: "version"}


def handle_store(event: Event, own_uids: Collection[str]) -> int:
    """Store one instance and return the status of the C-STORE response.

    Parameters
    ----------
    event : pynetdicom.events.Event
        ``EVT_C_STORE`` of a ``SpoolingAssociation``.
    own_uids : collection of str
        Implementation class and device UIDs of the node: its own results are kept but never start a study.
    """
    assoc = cast(SpoolingAssociation, event.assoc)
    request = cast(C_STORE, event.request)
    incoming = cast(SpoolingDimse, assoc.dimse).take(request)
    counts = assoc.server.options.counts
    try:
        stored = _store(assoc, request, str(event.context.transfer_syntax), incoming, own_uids)
    except DicomnodeError as exc:
        incoming.abandon()
        counts.received("refused")
        log.warning("store_refused", code=exc.code, status=f"{exc.dimse_status:04X}", bytes=incoming.size)
        return exc.dimse_status
    except Exception as exc:  # noqa: BLE001 - whatever it is, the sender must hear that the object was not kept
        incoming.abandon()
        counts.received("failed")
        log.error("store_failed", error=type(exc).__name__)  # noqa: TRY400 - a traceback may quote the data set
        return PROCESSING_FAILURE
    assoc.server.count_stored()
    counts.received(_OUTCOMES[stored.kind], 0 if stored.kind is StoredKind.DUPLICATE else incoming.size)
    if stored.kind is StoredKind.VERSION:
        log.warning("instance_version", study_row=stored.study_id, row=stored.instance_id, version=stored.version)
    return SUCCESS


def _store(
    assoc: SpoolingAssociation, request: C_STORE, transfer_syntax: str, incoming: Incoming, own_uids: Collection[str]
) -> Stored:
    incoming.close()
    if incoming.error is not None:
        raise incoming.error
    affected_class, affected_uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
    implementation = str(assoc.requestor.implementation_class_uid)
    try:
        header = read_header(incoming.path, incoming.offset, transfer_syntax, own_uids, incoming.head)
    except InputError as exc:
        # Kept as an image without a study: only so does a job, and with it a person, get to see it.
        log.warning("instance_unreadable", line=exc.line, bytes=incoming.size)
        header = Header("", "", affected_class, affected_uid, image=True, own=False)
    own = header.own or implementation in own_uids
    received = ReceivedFile(
        path=incoming.path,
        sha256=incoming.sha256,
        size=incoming.size,
        study_uid=header.study_uid,
        series_uid=header.series_uid,
        sop_class=header.sop_class or affected_class,
        sop_uid=header.sop_uid or affected_uid,
        transfer_syntax=transfer_syntax,
        image=header.image and not own,
        called=assoc.called,
        calling=assoc.calling,
        role=assoc.server.access.role(assoc.called) or Role.QUERY,  # admitted associations always have a role
    )
    return assoc.server.spool.store(received)
