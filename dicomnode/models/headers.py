"""Headers of a study's files as planes: one record a frame, with its kind, orientation and place along the normal.

Reads no pixel data. What is no image, and what shows numbers rather than anatomy, is named and passed over.
Facts: PS3.3 C.7.6.1.1.2 (ImageType), C.7.6.2 (image plane), PS3.4 B.5 (storage SOP classes).
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterable, Set
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicomnode.domain import Shows
from dicomnode.errors import InputError
from dicomnode.models.frames import FrameHeader, frame_header, number_of_frames

AXIAL_COS = 0.8  # a gantry or table tilt of up to 37 degrees is still axial
# Modalities whose images are projections: that they have no slice geometry is no fault (PS3.3 C.7.3.1.1.1).
PROJECTIONS = frozenset({"CR", "DX", "MG", "IO", "PX", "RF", "XA", "US", "IVUS", "NM", "ES", "XC", "OP", "GM", "SM"})
# Objects with rows and columns that show no patient, or nothing an image network can compare.
NO_IMAGE_MODALITIES = frozenset(
    {
        "SR",
        "KO",
        "PR",
        "SEG",
        "RTDOSE",
        "RTSTRUCT",
        "RTPLAN",
        "RTRECORD",
        "REG",
        "FID",
        "RWV",
        "DOC",
        "ECG",
        "AU",
        "PLAN",
    }
)
# What the node compares are slices of these; an absent modality (Type 1 in every image) is left to the pixels.
SLICE_MODALITIES = frozenset({"CT", "MR", ""})
A_MODALITY = re.compile(r"[A-Z]{2,9}")  # defined terms of PS3.3 C.7.3.1.1.1; anything else is not repeated
SECONDARY_CAPTURE = re.compile(r"^1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.|$)")
_PAGES = "patient protocol|screen ?save|protocol page|exam summary"
SCREEN = re.compile(f"dose|{_PAGES}", re.IGNORECASE)
# Of acquired and derived images: "low dose chest" is how a screening CT is called.
DOSE_PAGE = re.compile(f"dose[ _-]*(report|record|info|summary|sheet|page|result)|{_PAGES}", re.IGNORECASE)
LOCALIZER = re.compile(r"localizer|localiser|scout|topogram|surview|scanogram|\bloc\b", re.IGNORECASE)
REFORMAT_TYPES = frozenset(
    {"MPR", "MIP", "MINIP", "REFORMATTED", "PROJECTION IMAGE", "VRT", "SSD", "CSA MPR", "AVERAGE"}
)
REFORMAT = re.compile(r"\b(mpr|mip|minip|vrt|3d|cor(onal)?|sag(ittal)?)\b", re.IGNORECASE)
LUNG_WORDS = re.compile(r"lung|pulm|parenq|parenchym|thorax.*(b[5-8]0|bl)", re.IGNORECASE)
# Siemens B50 to B80, Bl57, I50 to I80, Br59 and higher; GE LUNG, BONEPLUS; Philips L, YC; Canon FC50 to FC59, FC8x.
LUNG_KERNEL = re.compile(r"^(b[5-8]\d|bl\d|i[5-8]\d|br(59|[67]\d)|lung|boneplus|l$|y[bc]$|fc5\d|fc8\d)", re.IGNORECASE)
# What pydicom raises on truncated or mangled files, beside InvalidDicomError.
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    struct.error,
    BytesLengthException,
    NotImplementedError,
)


class Tier(IntEnum):
    """Kinds of images, best first; a study is answered from the best kind it holds."""

    AXIAL = 0
    PROJECTION = 1
    AXIAL_DERIVED = 2
    OTHER_PLANE = 3
    REFORMAT = 4
    NO_GEOMETRY = 5
    LOCALIZER = 6


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """What the planes of a series share."""

    uid: str
    modality: str
    description: str
    kernel: str
    lung: bool


@dataclass(frozen=True, slots=True)
class Plane:
    """One frame. ``along``: mm along the normal, None without geometry; ``group``: orientation and size."""

    path: Path
    instance_uid: str
    frame: int
    series: SeriesHeader
    tier: Tier
    group: tuple[float | int, ...]
    along: float | None
    order: tuple[int, int, str, int]


@dataclass(frozen=True, slots=True)
class Read:
    """Planes, and what was passed over: (series uid, reason, why, number of instances)."""

    planes: tuple[Plane, ...]
    passed: tuple[tuple[str, str, str, int], ...]


def read_planes(paths: Iterable[Path], *, gated: bool = True, taught: Set[str] = frozenset()) -> Read:
    """Every frame of every file; files that hold no image are counted by series and reason.

    ``gated`` False: images of all modalities; else of CT, MR and those in ``taught``.
    """
    planes: list[Plane] = []
    passed: dict[tuple[str, str, str], int] = {}

    def leave(uid: str, reason: str, why: str) -> None:
        passed[uid, reason, why] = passed.get((uid, reason, why), 0) + 1

    for path in sorted(paths):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd values are judged below; the warning may quote them
                ds = dcmread(path, stop_before_pixels=True)
                refusal = _refusal(ds, gated, taught)
                if refusal is None:
                    planes += _planes(path, ds)
                else:
                    leave(str(ds.get("SeriesInstanceUID") or ""), *refusal)
        except InvalidDicomError:
            leave("", "not-dicom", "a file is not DICOM")
        except (*READ_ERRORS, InputError):
            leave("", "unreadable", "a file's header cannot be read to its end")
    return Read(tuple(planes), tuple((uid, reason, why, n) for (uid, reason, why), n in passed.items()))


def _refusal(ds: Dataset, gated: bool, taught: Set[str]) -> tuple[str, str] | None:
    """(reason, why) where the object cannot be embedded."""
    modality = modality_of(ds)
    if not ds.get("Rows") or not ds.get("Columns"):
        return "not-an-image", "the object holds no image"
    if modality in NO_IMAGE_MODALITIES:
        return "unsupported-kind", f"{modality} objects show no image to compare"
    if gated and modality not in SLICE_MODALITIES | taught:
        named = modality if A_MODALITY.fullmatch(modality) else "such"
        return "unsupported-kind", f"{named} objects hold no CT or MR slices"
    types = {str(v).upper() for v in (ds.get("ImageType") or ())}
    words = f"{ds.get('SeriesDescription') or ''} {' '.join(types)}"
    capture = SECONDARY_CAPTURE.match(str(ds.get("SOPClassUID") or "")) is not None
    derived = "DERIVED" in types or "SECONDARY" in types
    if "SCREEN SAVE" in types or (capture and SCREEN.search(words)) or (derived and DOSE_PAGE.search(words)):
        return "dose-screen", "a screen of dose or protocol data"
    if capture and modality in {"CT", "MR", "PT", ""}:
        return "secondary-capture", "a captured screen, not an acquired image"
    return None


def modality_of(ds: Dataset) -> str:
    """Modality in capital letters, "" where it is absent."""
    return str(ds.get("Modality") or "").upper()


def beyond_slices(taught: Iterable[Shows]) -> frozenset[str]:
    """Of what a model was taught, the modalities beside CT and MR: their images are searched too."""
    return frozenset(m for shows in taught for m in shows.modality.split("/")) - SLICE_MODALITIES


def claim_of(path: Path, taught: Set[str] = frozenset()) -> tuple[str, str]:
    """Of a DICOM file's headers: its modality, and why it holds no CT or MR slice nor an image of ``taught``, else "".

    Raises
    ------
    InputError, OSError
        Its header cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path, stop_before_pixels=True)
        found = _refusal(ds, True, taught)
    return modality_of(ds), "" if found is None else found[1]


def _planes(path: Path, ds: Dataset) -> list[Plane]:
    modality, description = modality_of(ds), str(ds.get("SeriesDescription") or "").strip()
    kernel = _kernel(ds)
    lung = modality == "CT" and bool(LUNG_KERNEL.match(kernel) or LUNG_WORDS.search(description))
    uid = str(ds.get("SeriesInstanceUID") or "")
    series = SeriesHeader(uid, modality, description, kernel, lung)
    instance = str(ds.get("SOPInstanceUID") or "")
    number, acquisition = _whole(ds.get("InstanceNumber")), _whole(ds.get("AcquisitionNumber"))
    out = []
    for frame in range(number_of_frames(ds)):
        head = frame_header(ds, frame)
        along, group = _place(head)
        order = (acquisition, number, str(path), frame)
        out.append(Plane(path, instance, frame, series, _tier(head, series), group, along, order))
    return out


def _place(head: FrameHeader) -> tuple[float | None, tuple[float | int, ...]]:
    normal = head.normal
    if normal is None or head.position is None:
        return None, (head.rows, head.columns)
    # Rounded to about 6 degrees: slices of a stack share one orientation but for noise.
    rounded = tuple(round(float(v), 1) + 0.0 for v in normal)
    return float(head.position @ normal), (head.rows, head.columns, *rounded)


def _tier(head: FrameHeader, series: SeriesHeader) -> Tier:
    types = set(head.image_type)
    if "LOCALIZER" in types or (series.modality in {"CT", "MR", "PT"} and LOCALIZER.search(series.description)):
        return Tier.LOCALIZER
    if series.modality in PROJECTIONS:
        return Tier.PROJECTION
    normal = head.normal
    if normal is None or head.position is None:
        return Tier.NO_GEOMETRY
    axial = bool(abs(normal[2]) >= AXIAL_COS)
    if types & REFORMAT_TYPES or ("DERIVED" in types and (REFORMAT.search(series.description) or not axial)):
        return Tier.REFORMAT
    if "DERIVED" in types:
        return Tier.AXIAL_DERIVED
    return Tier.AXIAL if axial else Tier.OTHER_PLANE


def _kernel(ds: Dataset) -> str:
    value = ds.get("ConvolutionKernel") or ""
    if not isinstance(value, str):
        value = value[0] if len(value) else ""
    return str(value).strip()


def _whole(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0
