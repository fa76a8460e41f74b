"""What the catalogue keeps of a de-identified object, read from its header without the pixels."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicomnode.archive.regions import described_region, joined, regions_in
from dicomnode.domain import Pseudonym, PseudoUid, Shows, Untaught
from dicomnode.errors import InputError

_BAND_YEARS = 10
_BAND_TOP = 90  # PS3.15 and HIPAA: ages over 89 are one group
_READ_ERRORS = (  # what pydicom raises on a damaged file
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One de-identified object. UIDs pseudonymous, dates shifted, ``bytes`` the file's size."""

    uid: PseudoUid
    series_uid: PseudoUid
    study_uid: PseudoUid
    patient: Pseudonym
    sop_class: str
    transfer_syntax: str
    modality: str
    series_number: int | None
    series_description: str
    number: int | None
    frames: int
    rows: int | None
    columns: int | None
    study_date: str
    study_description: str
    body_part: str
    manufacturer: str
    sex: str
    age_band: str
    bytes: int


def age_band(age: str) -> str:
    """Ten-year band of a DICOM age string (PS3.5 6.2 AS): ``043Y`` -> ``40-49``, over 89 -> ``90+``, else empty."""
    if len(age) != 4 or not age[:3].isdigit() or age[3] not in "DWMY":
        return ""
    years = int(age[:3]) if age[3] == "Y" else 0
    if years >= _BAND_TOP:
        return f"{_BAND_TOP}+"
    low = years // _BAND_YEARS * _BAND_YEARS
    return f"{low}-{low + _BAND_YEARS - 1}"


def _text(ds: Dataset, keyword: str, limit: int) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value)[:limit]


def _int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _sex(value: str) -> str:
    """Of PatientSex its enumerated values (PS3.3 C.7.1.1); whatever else stands there is not kept."""
    return value if value in ("M", "F", "O") else ""


def read_record(path: Path) -> InstanceRecord:
    """Read a de-identified file's record.

    Raises
    ------
    InputError
        If the file is not the DICOM object that the archive wrote.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the values are judged here, and the warning may quote them
            return _record(path)
    except _READ_ERRORS as exc:
        raise InputError(f"not an object of the archive ({type(exc).__name__})", place=path.name) from None


def shown_by(records: Iterable[InstanceRecord], instances: Collection[PseudoUid], *, body_part: bool = False) -> Shows:
    """What those records show that are among ``instances``, all where none is.

    The region is what descriptions name; with ``body_part`` also what Body Part Examined says where they name none.
    """
    records = list(records)
    among = [r for r in records if r.uid in instances] or records
    regions = {
        described_region(r.series_description, r.study_description)
        or (joined(regions_in(r.body_part)) if body_part else "")
        for r in among
    }
    return Shows("/".join(sorted({r.modality for r in among})), joined(regions))


def said_of_study(
    records: Collection[InstanceRecord], embedded: Collection[PseudoUid], taught: tuple[Shows, ...]
) -> dict[str, Any]:
    """What an answer says of a study asked about, as its headers do: ``modality``, ``region`` where descriptions name
    one, and ``untaught`` where the model was taught nothing like it (``Answer.query``)."""
    shows, told = (shown_by(records, embedded, body_part=body_part) for body_part in (False, True))
    said: dict[str, Any] = shows.as_json()
    if told.outside(taught):
        said["untaught"] = Untaught(taught, told).as_json()
    return said


def _record(path: Path) -> InstanceRecord:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return InstanceRecord(
        uid=PseudoUid(str(ds.SOPInstanceUID)),
        series_uid=PseudoUid(str(ds.SeriesInstanceUID)),
        study_uid=PseudoUid(str(ds.StudyInstanceUID)),
        patient=Pseudonym(str(ds.PatientID)),
        sop_class=str(ds.SOPClassUID),
        transfer_syntax=str(ds.file_meta.TransferSyntaxUID),
        modality=_text(ds, "Modality", 16) or "OT",
        series_number=_int(ds.get("SeriesNumber")),
        series_description=_text(ds, "SeriesDescription", 64),
        number=_int(ds.get("InstanceNumber")),
        frames=_int(ds.get("NumberOfFrames")) or 1,
        rows=_int(ds.get("Rows")),
        columns=_int(ds.get("Columns")),
        study_date=_text(ds, "StudyDate", 8),
        study_description=_text(ds, "StudyDescription", 64),
        body_part=_text(ds, "BodyPartExamined", 16),
        manufacturer=_text(ds, "Manufacturer", 64),
        sex=_sex(_text(ds, "PatientSex", 16)),
        age_band=age_band(_text(ds, "PatientAge", 4)),
        bytes=path.stat().st_size,
    )
