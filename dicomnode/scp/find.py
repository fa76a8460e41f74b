"""C-FIND as SCP, Study Root (PS3.4 annex C), on the de-identified repository; and similarity by C-FIND.

Reads identifiers, asks a ``Repository``, streams its rows. Answers hold pseudonymous values only; no identifier, and no
value of one, is ever logged. Relational queries are not supported, except for similarity, where there is no hierarchy.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.events import Event
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]  # made at import

from dicomnode.archive.finding import Condition, Level, Row
from dicomnode.errors import DicomnodeError, InputError
from dicomnode.scp.association import MAX_IN_MEMORY, NotAuthorised, SpoolingAssociation
from dicomnode.scp.keys import IdentifierMismatch, Query, read_level, read_query
from dicomnode.scp.server import Service
from dicomnode.scp.similar import Asked, read_similar, write_similar
from dicomnode.scp.status import (
    CANCELLED,
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    PENDING,
    PENDING_UNSERVED_KEYS,
    SUCCESS,
)

log = structlog.get_logger(__name__)

MAX_MATCHES = 10_000  # of one request; a larger answer is a mistake far more often than a wish
COMMENT_LENGTH = 64  # of Error Comment, VR LO
TRANSFER_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)

Response = tuple[int | Dataset, Dataset | None]


@dataclass(frozen=True, slots=True)
class SimilarRow:
    """A similar case: attributes of its best matching instance, similarity 0..1 and rank from 1."""

    row: Row
    similarity: float
    rank: int


class Repository(Protocol):
    """What is queried; safe for threads."""

    def pseudonymous(self, uid: str) -> Iterable[str]:
        """UIDs under which the repository may know one, original or pseudonymous."""

    def find(self, level: Level, conditions: Sequence[Condition], wanted: Collection[str]) -> Iterator[Row]:
        """Entities that fulfil the conditions."""

    def similar(
        self, instance: str, maximum: int | None, conditions: Sequence[Condition], wanted: Collection[str]
    ) -> tuple[str, list[SimilarRow]]:
        """The image asked about by its pseudonymous UID ("": unknown), and its similar cases in order of rank."""


def find_service(repository: Callable[[], Repository]) -> Service:
    """C-FIND for a receiver: contexts and handlers. ``repository`` is called at each request, first of all then."""
    context = build_context(StudyRootQueryRetrieveInformationModelFind, list(TRANSFER_SYNTAXES))
    return Service(
        (context,),
        ((evt.EVT_C_FIND, handle_find, [repository]), (evt.EVT_SOP_EXTENDED, _refuse_extensions, [])),
    )


def handle_find(event: Event, repository: Callable[[], Repository]) -> Iterator[Response]:
    """Answer one C-FIND request; yields (status, identifier) as pynetdicom sends them."""
    assoc = cast(SpoolingAssociation, event.assoc)
    counts = assoc.server.options.counts
    began, sent, outcome = time.monotonic(), 0, "aborted"  # as it stays where the peer goes away in between
    try:
        for answer in _answers(event, assoc, repository):
            if event.is_cancelled:
                outcome = "cancelled"
                yield CANCELLED, None
                return
            if sent == MAX_MATCHES:
                outcome = "too-many"
                yield _status(OUT_OF_RESOURCES, f"more than {MAX_MATCHES} matches: narrow the query"), None
                return
            yield answer
            sent += 1
        outcome = "answered"
        yield SUCCESS, None
    except DicomnodeError as exc:
        outcome = "refused" if isinstance(exc, InputError | NotAuthorised) else "failed"
        status = exc.dimse_status if outcome == "refused" else CANNOT_UNDERSTAND
        log.warning("find_refused", code=exc.code, status=f"{status:04X}", line=exc.line)
        yield _status(status, str(exc)), None
    except Exception as exc:  # noqa: BLE001 - whatever it is, the peer must hear that there is no answer
        outcome = "failed"
        log.error("find_failed", error=type(exc).__name__)  # noqa: TRY400 - a traceback may quote the identifier
        yield _status(CANNOT_UNDERSTAND, "the query could not be answered"), None
    finally:
        counts.find(outcome)
        log.info("find_done", outcome=outcome, count=sent, seconds=round(time.monotonic() - began, 3))


def _answers(event: Event, assoc: SpoolingAssociation, opened: Callable[[], Repository]) -> Iterator[Response]:
    allowed = {name for name in ("find", "similar") if assoc.server.access.allows(assoc.calling, name)}
    if not allowed:
        raise NotAuthorised("query")
    repository = opened()
    asked, query = _read(event, repository)
    service = "similar" if asked is not None and asked.instance else "find"
    if service not in allowed:
        raise NotAuthorised("ask for similar images" if service == "similar" else "query")
    status = PENDING if query.all_served else PENDING_UNSERVED_KEYS
    if asked is None or not asked.instance:
        for row in repository.find(query.level, query.conditions, query.wanted):
            yield status, _identifier(query, row, assoc.called)
        return
    assoc.server.options.counts.query("find")
    known, cases = repository.similar(asked.instance, asked.maximum, query.conditions, query.wanted)
    for case in cases:
        answer = _identifier(query, case.row, assoc.called)
        write_similar(answer, asked, known, case.similarity, case.rank)
        yield status, answer


def _read(event: Event, repository: Repository) -> tuple[Asked | None, Query]:
    """The request, read whole: pydicom decodes an element when it is asked for."""
    try:
        _require_bounded(event)
        identifier = event.identifier
        identifier.decode()
        for _ in identifier.iterall():
            continue
    except Exception as exc:  # noqa: BLE001 - pydicom has no common error for data sets that are none
        raise InputError(f"the identifier cannot be read ({type(exc).__name__})") from None
    asked = read_similar(identifier)
    if asked is None or not asked.instance:
        return asked, read_query(identifier, repository.pseudonymous)
    if read_level(identifier) is not Level.IMAGE:
        raise IdentifierMismatch("similar images are asked for at IMAGE level", place="QueryRetrieveLevel")
    return asked, read_query(identifier, repository.pseudonymous, relational=True, others=asked.tags)


def _require_bounded(event: Event) -> None:
    """Before pydicom inflates a deflated identifier (PS3.5 A.5) whole: 1 MB on the wire may be 1 GB in memory.

    Raises
    ------
    ValueError
        It inflates to more than an identifier may have.
    """
    request = cast(C_FIND, event.request)
    if event.context.transfer_syntax != DeflatedExplicitVRLittleEndian or request.Identifier is None:
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(inflate.decompress(request.Identifier.getvalue(), MAX_IN_MEMORY + 1)) > MAX_IN_MEMORY:
        raise ValueError("an identifier without end")


def _identifier(query: Query, row: Row, called: str) -> Dataset:
    answer = Dataset()
    answer.SpecificCharacterSet = "ISO_IR 192"
    answer.QueryRetrieveLevel = query.level.name
    answer.RetrieveAETitle = called
    answer.InstanceAvailability = "ONLINE"
    for keyword in query.wanted:
        setattr(answer, keyword, _value(row[keyword]))
    return answer


def _value(value: Any) -> Any:
    return "" if value is None else value


def _status(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status = code
    status.ErrorComment = comment[:COMMENT_LENGTH]
    return status


def _refuse_extensions(event: Event) -> dict[str, bytes]:
    """Relational queries and all other extensions: no (PS3.4 C.5.1.1.1, one byte each)."""
    asked: dict[str, bytes] = event.app_info  # type: ignore[attr-defined]  # events carry what their kind has
    uid = StudyRootQueryRetrieveInformationModelFind
    return {uid: bytes(len(asked[uid]))} if uid in asked else {}
