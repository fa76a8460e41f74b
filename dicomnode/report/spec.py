"""What the caller decides about an object before it is built: UIDs, moment, language, link, query images.

Frozen and complete: no clock, no settings, no defaults that change between two runs, so that the same answer always
gives the same bytes. Original UIDs live here: identified zone only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from dicomnode.domain import OriginalUid, PseudoUid
from dicomnode.report.codes import COMPREHENSIVE_SR, ENHANCED_SR, Language

UID_LENGTH = 64  # PS3.5 9.1


def is_uid(text: str) -> bool:
    """Whether ``text`` is a UID (PS3.5 9.1); silent, where pydicom would log the value."""
    return 0 < len(text) <= UID_LENGTH and re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+", text) is not None


def _require_uid(value: str, what: str) -> None:
    if not is_uid(value):
        raise ValueError(f"{what} is not a valid UID")


@dataclass(frozen=True, slots=True)
class QueryImage:
    """One image of the query study: as the hospital knows it, and the pseudonymous UID that ``Match`` knows it by."""

    sop_class_uid: str
    sop_instance_uid: OriginalUid
    series_instance_uid: OriginalUid
    series_number: int | None
    instance_number: int | None
    pseudo_uid: PseudoUid


@dataclass(frozen=True, slots=True)
class Predecessor:
    """An earlier report of the same study, for Predecessor Documents Sequence (PS3.3 C.17.2)."""

    study_instance_uid: OriginalUid
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _require_uid(getattr(self, name), f"predecessor {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSpec:
    """What every object needs.

    Attributes
    ----------
    created : datetime
        Moment of the answer, with time zone. Written in the study's own offset where the study declares one.
    series_started : datetime or None
        Moment of the first answer of this series: Series Date and Time are left out when None.
    link : str
        Address of the answer's page, without fragment.
    software_version, device_serial, organisation : str
        Of this node; ``organisation`` becomes Institution Name, else that of the query is kept.
    """

    series_instance_uid: str
    sop_instance_uid: str
    created: datetime
    link: str
    software_version: str
    instance_number: int = 1
    language: Language = Language.EN
    device_serial: str = ""
    organisation: str = ""
    series_started: datetime | None = None

    def __post_init__(self) -> None:
        _require_uid(self.series_instance_uid, "series_instance_uid")
        _require_uid(self.sop_instance_uid, "sop_instance_uid")
        if self.instance_number < 1:
            raise ValueError("instance_number counts from 1")
        for moment in (self.created, self.series_started):
            if moment is not None and moment.utcoffset() is None:
                raise ValueError("created and series_started need a time zone")
        # "en" and "es" from settings or JSON are welcome; anything else is a ValueError here, not in the report.
        object.__setattr__(self, "language", Language(self.language))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSpec(ObjectSpec):
    """What a Structured Report needs besides.

    Attributes
    ----------
    query_images : tuple of QueryImage
        The images that were searched with (key slices), so that matches can name them.
    sop_class_uid : str
        Comprehensive SR, or Enhanced SR for a peer that takes no other.
    predecessors : tuple of Predecessor
        Earlier reports in this series, oldest first.
    """

    query_images: tuple[QueryImage, ...] = ()
    sop_class_uid: str = COMPREHENSIVE_SR
    predecessors: tuple[Predecessor, ...] = ()

    def __post_init__(self) -> None:
        ObjectSpec.__post_init__(self)
        if self.sop_class_uid not in (COMPREHENSIVE_SR, ENHANCED_SR):
            raise ValueError("sop_class_uid must be Comprehensive SR or Enhanced SR")
        if any(p.sop_instance_uid == self.sop_instance_uid for p in self.predecessors):
            raise ValueError("a report cannot be its own predecessor")
