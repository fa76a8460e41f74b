"""The identified header of an object we send: patient and study of the query, rewritten as valid UTF-8 DICOM.

Takes an allow-list of PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2, decodes it from any character set, and leaves out what
would make our object invalid. Never guesses: an identifier that is not valid is left empty, never shortened, since
a shortened one may be another patient's. Logs attribute keywords only, never values.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from io import BytesIO

import structlog
from pydicom import dcmwrite
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode.domain import SCHEME
from dicomnode.errors import InputError
from dicomnode.report.codes import (
    DEVICE_UID,
    IMPLEMENTATION_CLASS_UID,
    MANUFACTURER,
    PRODUCT,
    scheme_item,
)
from dicomnode.report.spec import ObjectSpec, is_uid
from dicomnode.report.uids import Kind

log = structlog.get_logger(__name__)

UTF8 = "ISO_IR 192"
LO_LENGTH, SH_LENGTH, LT_LENGTH, PN_GROUP_LENGTH = 64, 16, 10240, 64  # PS3.5 table 6.2-1
IMPLEMENTATION_VERSION_LENGTH = 16  # SH, PS3.7 D.3.3.2.3
ELLIPSIS = "..."

# What reading one damaged element can raise in pydicom: bad numbers, unknown character sets, truncated values.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OverflowError, EOFError)


def fits(text: str, length: int) -> bool:
    """Whether ``text`` keeps to a length in characters (PS3.5 table 6.2-1) and in bytes too.

    The Standard counts characters; dciodvfy and databases behind many archives count the bytes of UTF-8.
    """
    return len(text.encode("utf-8")) <= length


def clean_text(value: object, length: int | None = None) -> str:
    """``value`` without control characters (PS3.5 6.1.3) or backslash, single-spaced, shortened to ``length``."""
    text = str(value).encode("utf-8", "replace").decode("utf-8").replace("\\", "/")
    text = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())
    if length is None or fits(text, length):
        return text
    kept = text.encode("utf-8")[: length - len(ELLIPSIS)].decode("utf-8", "ignore")
    return kept.rstrip() + ELLIPSIS


def _single(value: object) -> str:
    """One value as text; more values than the attribute may have are not valid and give an empty string."""
    if isinstance(value, (MultiValue, list, tuple)):
        return ""
    return str(value).strip(" \0") if value is not None else ""


def _identifier(length: int) -> Callable[[object], str]:
    def rule(value: object) -> str:
        text = _single(value)
        return text if clean_text(text) == " ".join(text.split()) and len(text) <= length else ""

    return rule


def _text(length: int) -> Callable[[object], str]:
    def rule(value: object) -> str:
        joined = " / ".join(str(v) for v in value) if isinstance(value, (MultiValue, list, tuple)) else value
        return clean_text("" if joined is None else joined, length)

    return rule


def _person_name(value: object) -> str:
    """PN (PS3.5 6.2.1): at most three groups of five components, each group at most 64 characters."""
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if value else ""
    groups = ["^".join(clean_text(c) for c in g.split("^")[:5]).rstrip("^") for g in _single(value).split("=")[:3]]
    return "=".join(g[:PN_GROUP_LENGTH].rstrip() for g in groups).rstrip("=")


def _date(value: object) -> str:
    """DA; the retired form yyyy.mm.dd (PS3.5 6.2 note) is rewritten."""
    text = _single(value).replace(".", "")
    if not re.fullmatch(r"[0-9]{8}", text):
        return ""
    try:
        date.fromisoformat(text)
    except ValueError:
        return ""
    return text


def _time(value: object) -> str:
    """TM; the retired form hh:mm:ss is rewritten."""
    text = _single(value).replace(":", "")
    return text if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?", text, re.ASCII) else ""


def _matching(pattern: str) -> Callable[[object], str]:
    def rule(value: object) -> str:
        text = _single(value)
        return text if re.fullmatch(pattern, text, re.ASCII) else ""

    return rule


_DECIMAL = r"(?=.{1,16}$)[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_OFFSET = r"(?!-0000|-1[34])([+-])(0\d|1[0-4])([0-5]\d)"  # PS3.3 C.12.1.1.8: -1200 to +1400

_IDENTIFIERS = {"PatientID": LO_LENGTH, "AccessionNumber": SH_LENGTH, "StudyID": SH_LENGTH}

# Type 2 in every IOD we write: present, empty when unknown.
_REQUIRED: dict[str, Callable[[object], str]] = {
    "PatientName": _person_name,
    "PatientBirthDate": _date,
    "PatientSex": _matching("[MFO]"),
    "StudyDate": _date,
    "StudyTime": _time,
    "ReferringPhysicianName": _person_name,
    **{keyword: _identifier(length) for keyword, length in _IDENTIFIERS.items()},
}
# Type 3: present only with a value.
_OPTIONAL: dict[str, Callable[[object], str]] = {
    "IssuerOfPatientID": _identifier(LO_LENGTH),
    "PatientBirthTime": _time,
    "OtherPatientNames": _person_name,
    "EthnicGroup": _text(SH_LENGTH),
    "PatientComments": _text(LT_LENGTH),
    "StudyDescription": _text(LO_LENGTH),
    "PatientAge": _matching(r"\d{3}[DWMY]"),
    "PatientSize": _matching(_DECIMAL),
    "PatientWeight": _matching(_DECIMAL),
    "TimezoneOffsetFromUTC": _matching(_OFFSET),
    "InstitutionName": _text(LO_LENGTH),
    "BodyPartExamined": _matching(r"[A-Z0-9_ ]{1,16}"),
    "Laterality": _matching("[RL]"),
}
_PATIENT_STUDY_EXTRA = frozenset(_OPTIONAL) - {"InstitutionName", "BodyPartExamined", "Laterality"}


def _read(header: Dataset, keyword: str) -> object:
    try:
        with disable_value_validation():  # pydicom's warnings quote the value that is wrong
            return header.get(keyword)
    except _UNREADABLE:
        log.warning("header_value_unreadable", attribute=keyword)
        return None


def value_of(header: Dataset, keyword: str) -> str:
    """One attribute of the query's header as valid text, empty when absent or not valid."""
    rule = _REQUIRED.get(keyword) or _OPTIONAL[keyword]
    raw = _read(header, keyword)
    value = "" if raw is None else rule(raw)
    if not value and keyword in _IDENTIFIERS and raw not in (None, ""):
        log.warning("header_identifier_left_empty", attribute=keyword)
    return value


def uid_of(header: Dataset, keyword: str) -> str:
    """A UID of the query's header.

    Raises
    ------
    InputError
        When it is missing or not a UID: without it the report cannot join the study.
    """
    text = _single(_read(header, keyword))
    if not is_uid(text):
        raise InputError("the query has no valid UID here, so no report can be filed with it", place=keyword)
    return text


def _code_items(header: Dataset, keyword: str) -> list[Dataset]:
    """The complete code items of a sequence, as new data sets (basic coded entry, PS3.3 8.1)."""
    kept = []
    sequence = _read(header, keyword)
    for item in sequence if isinstance(sequence, Sequence) else []:
        value, scheme, meaning = (
            clean_text(_read(item, k) or "") for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
        )
        if (
            all((value, scheme, meaning))
            and fits(value, SH_LENGTH)
            and fits(scheme, SH_LENGTH)
            and fits(meaning, LO_LENGTH)
        ):
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
            kept.append(code)
    return kept


def patient_and_study(header: Dataset) -> Dataset:
    """Patient, General Study and Patient Study modules of the query, valid, decoded, in a new data set.

    Parameters
    ----------
    header : Dataset
        An original instance of the query study, in any character set; pixel data is not looked at.

    Returns
    -------
    Dataset
        Every type 2 attribute present (empty when unknown); Specific Character Set ISO_IR 192.

    Raises
    ------
    InputError
        When Study Instance UID is missing or not a UID.
    """
    ds = Dataset()
    ds.SpecificCharacterSet = UTF8
    ds.StudyInstanceUID = uid_of(header, "StudyInstanceUID")
    for keyword in _REQUIRED:
        setattr(ds, keyword, value_of(header, keyword))
    for keyword in sorted(_PATIENT_STUDY_EXTRA):
        if value := value_of(header, keyword):
            setattr(ds, keyword, value)
    if not ds.PatientID:
        ds.pop("IssuerOfPatientID", None)
    if procedures := _code_items(header, "ProcedureCodeSequence"):
        ds.ProcedureCodeSequence = procedures
    # A query that is itself de-identified must say how, or the mark is not valid (PS3.3 C.7.1.1, type 1C).
    method = clean_text(_read(header, "DeidentificationMethod") or "", LO_LENGTH)
    if _single(_read(header, "PatientIdentityRemoved")) == "YES" and method:
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = method
    return ds


def local_moment(moment: datetime, ds: Dataset) -> datetime:
    """``moment`` in the offset that the object declares, else in its own (PS3.3 C.12.1.1.8)."""
    offset = re.fullmatch(_OFFSET, ds.get("TimezoneOffsetFromUTC") or "")
    if offset is None:
        return moment
    shift = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
    return moment.astimezone(timezone(-shift if offset[1] == "-" else shift))


def new_object(header: Dataset, spec: ObjectSpec, *, kind: Kind, sop_class_uid: str, modality: str) -> Dataset:
    """An object of ours without content: patient, study, series, equipment and SOP Common modules, and file meta.

    Raises
    ------
    InputError
        When the query has no valid Study Instance UID.
    """
    ds = patient_and_study(header)
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = spec.sop_instance_uid
    created = local_moment(spec.created, ds)
    ds.InstanceCreationDate = ds.ContentDate = created.strftime("%Y%m%d")
    ds.InstanceCreationTime = ds.ContentTime = created.strftime("%H%M%S.%f")
    ds.InstanceCreatorUID = DEVICE_UID
    ds.CodingSchemeIdentificationSequence = [scheme_item(SCHEME, "")]

    ds.Modality = modality
    ds.SeriesInstanceUID = spec.series_instance_uid
    ds.SeriesNumber = kind.series_number
    ds.InstanceNumber = spec.instance_number
    if spec.series_started is not None:
        started = local_moment(spec.series_started, ds)
        ds.SeriesDate, ds.SeriesTime = started.strftime("%Y%m%d"), started.strftime("%H%M%S.%f")

    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = PRODUCT
    ds.SoftwareVersions = clean_text(spec.software_version, LO_LENGTH)
    if serial := clean_text(spec.device_serial, LO_LENGTH):
        ds.DeviceSerialNumber = serial
    if institution := clean_text(spec.organisation, LO_LENGTH) or value_of(header, "InstitutionName"):
        ds.InstitutionName = institution

    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    ds.file_meta.MediaStorageSOPInstanceUID = UID(spec.sop_instance_uid)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = _version_name(spec.software_version)
    return ds


def _version_name(version: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9_.]", "_", version)
    return f"{PRODUCT.upper()}_{kept}"[:IMPLEMENTATION_VERSION_LENGTH].rstrip("_.")


def to_bytes(ds: Dataset) -> bytes:
    """The object as a PS3.10 file, Explicit VR Little Endian; the same object always gives the same bytes."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()
