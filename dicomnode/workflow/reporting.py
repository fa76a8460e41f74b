"""From a stored answer and the query's identified header to the objects that are sent.

Everything an object depends on is in the stored answer, the header and the settings: built again, it has the same
UIDs and bytes. Runs in the identified zone; nothing it returns goes anywhere but into the outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicomnode.archive.answers import StoredAnswer
from dicomnode.domain import Answer, PseudoUid
from dicomnode.errors import InputError
from dicomnode.models.headers import READ_ERRORS
from dicomnode.report.codes import COMPREHENSIVE_SR, ENCAPSULATED_PDF, ENHANCED_SR, SECONDARY_CAPTURE, Language
from dicomnode.report.contact_sheet import QueryTile, Tiles, build_contact_sheet
from dicomnode.report.pdf import build_pdf
from dicomnode.report.sheet_image import MAX_CASES, MAX_QUERY
from dicomnode.report.spec import ObjectSpec, Predecessor, QueryImage, ReportSpec
from dicomnode.report.sr import build_sr, to_bytes
from dicomnode.report.uids import Kind, instance_uid, series_uid
from dicomnode.workflow.context import QueryImageRef

SR, SR_ENHANCED, CONTACT_SHEET, PDF = "sr", "sr-enhanced", "contact-sheet", "pdf"
_SOP_CLASS = {
    SR: COMPREHENSIVE_SR,
    SR_ENHANCED: ENHANCED_SR,
    CONTACT_SHEET: SECONDARY_CAPTURE,
    PDF: ENCAPSULATED_PDF,
}
_SERIES = {SR: Kind.SR, SR_ENHANCED: Kind.SR, CONTACT_SHEET: Kind.CONTACT_SHEET, PDF: Kind.PDF}

Picture = Callable[[PseudoUid, int], npt.NDArray[np.uint8] | None]


def result_kinds(objects: Sequence[str]) -> tuple[str, ...]:
    """Kinds of objects for a destination, in the order they are sent."""
    return tuple(k for k in (SR, CONTACT_SHEET, PDF) if k in objects) or (SR,)


def read_header(path: Path) -> Dataset:
    """The original header that a report continues, without pixels.

    Raises
    ------
    InputError
        If the original can no longer be read.
    """
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, *READ_ERRORS) as exc:
        raise InputError(f"the query's original cannot be read ({type(exc).__name__})") from None
    if not ds.get("StudyInstanceUID"):
        raise InputError("the query's original cannot be read (no StudyInstanceUID)")
    return ds


@dataclass(frozen=True, slots=True)
class Reporter:
    """Builds the objects of an answer.

    Attributes
    ----------
    namespace : str
        The site's secret from which UIDs of sent objects are derived.
    link_base : str
        Base of the answer's link, without a slash at the end.
    query_picture, case_picture : callable
        uint8 [rows, columns] of a query's or a case's slice, None where it is no longer kept.
    """

    namespace: str
    language: Language
    link_base: str
    organisation: str
    version: str
    serial: str
    query_picture: Picture
    case_picture: Picture

    def build(
        self,
        kind: str,
        header: Dataset,
        stored: StoredAnswer,
        images: Sequence[QueryImageRef],
        predecessor: StoredAnswer | None,
        started: float,
    ) -> bytes:
        """Encoded PS3.10 file of one kind ("sr", "sr-enhanced", "contact-sheet", "pdf").

        ``started`` is when the study was first answered, seconds since the epoch: the moment of the series.
        """
        common = self._common(kind, header, stored, started)
        if kind in (CONTACT_SHEET, PDF):
            own = self._query_images(stored, images)
            tiles = tiles_of(
                stored.answer,
                self.query_picture,
                self.case_picture,
                images={i.pseudo_uid: i for i in own},
                limit=MAX_CASES if kind == CONTACT_SHEET else None,
            )
            if kind == PDF:
                return to_bytes(build_pdf(header, tiles, ObjectSpec(**common)))
            return to_bytes(build_contact_sheet(header, tiles, ObjectSpec(**common))[0])
        spec = ReportSpec(
            **common,
            sop_class_uid=_SOP_CLASS[kind],
            query_images=self._query_images(stored, images),
            predecessors=self._predecessors(kind, header, predecessor),
        )
        return to_bytes(build_sr(header, stored.answer, spec=spec))

    def link(self, stored: StoredAnswer) -> str:
        """Address of the answer's page."""
        return f"{self.link_base}/v/r/{stored.token}"

    def _common(self, kind: str, header: Dataset, stored: StoredAnswer, started: float) -> dict[str, Any]:
        study = str(header.StudyInstanceUID)
        return {
            "series_instance_uid": series_uid(study, _SERIES[kind], namespace=self.namespace),
            "sop_instance_uid": self._uid(kind, stored),
            "created": datetime.fromtimestamp(stored.created).astimezone(),
            "series_started": datetime.fromtimestamp(started).astimezone(),
            "link": self.link(stored),
            "software_version": self.version,
            "instance_number": stored.instance_number,
            "language": self.language,
            "device_serial": self.serial,
            "organisation": self.organisation,
        }

    def _uid(self, kind: str, stored: StoredAnswer) -> str:
        return instance_uid(stored.token, _SOP_CLASS[kind], namespace=self.namespace)

    def _query_images(self, stored: StoredAnswer, images: Sequence[QueryImageRef]) -> tuple[QueryImage, ...]:
        matched = {m.query_instance for case in stored.answer.cases for m in case.matches}
        found = []
        for image in images:
            if image.pseudo not in matched:
                continue
            ds = read_header(image.path)
            found.append(
                QueryImage(
                    sop_class_uid=image.sop_class_uid,
                    sop_instance_uid=image.sop_instance_uid,
                    series_instance_uid=image.series_instance_uid,
                    series_number=_number(ds.get("SeriesNumber")),
                    instance_number=_number(ds.get("InstanceNumber")),
                    pseudo_uid=image.pseudo,
                )
            )
        return tuple(sorted(found, key=lambda i: (i.series_number or 0, i.instance_number or 0, i.sop_instance_uid)))

    def _predecessors(self, kind: str, header: Dataset, earlier: StoredAnswer | None) -> tuple[Predecessor, ...]:
        if earlier is None:
            return ()
        study = str(header.StudyInstanceUID)
        series = series_uid(study, Kind.SR, namespace=self.namespace)
        return (Predecessor(header.StudyInstanceUID, series, _SOP_CLASS[kind], self._uid(kind, earlier)),)


def tiles_of(
    answer: Answer,
    query_picture: Picture,
    case_picture: Picture,
    *,
    images: Mapping[PseudoUid, QueryImage] = MappingProxyType({}),
    limit: int | None = None,
) -> Tiles:
    """What sheet and PDF show of an answer: query slices in the order of the cases they matched, and the cases' slices.

    Parameters
    ----------
    images : mapping, optional
        Where the query's slices lie in the hospital's study; one that is not there is shown without a number.
    limit : int, optional
        Read no more pictures of cases than this: a contact sheet draws ``MAX_CASES``.
    """
    best = {c.rank: max(c.matches, key=lambda m: m.similarity) for c in answer.cases if c.matches}
    wanted = dict.fromkeys(m.query_instance for m in best.values())
    read = ((uid, query_picture(uid, 0)) for uid in wanted)
    shown = dict(islice(((uid, pixels) for uid, pixels in read if pixels is not None), MAX_QUERY))
    matched = {c.rank: case_picture(best[c.rank].instance, 0) for c in answer.cases[:limit] if c.rank in best}
    places = {uid: place for place, uid in enumerate(shown)}
    return Tiles(
        answer=answer,
        query=tuple(QueryTile(pixels, images.get(uid)) for uid, pixels in shown.items()),
        cases={rank: pixels for rank, pixels in matched.items() if pixels is not None},
        pairs={rank: places[m.query_instance] for rank, m in best.items() if m.query_instance in places},
    )


def _number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None
