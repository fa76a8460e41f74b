"""Reads the few attributes the spool needs from a received data set: which study, which series, image or not.

Never decodes pixels and never holds more than a bounded prefix in memory. Which objects count as images follows
PS3.4 table B.5-1; that a data set has Rows (0028,0010) is the Image Pixel module of PS3.3 C.7.6.3.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from dicomnode.errors import InputError

INFLATED_PREFIX_BYTES = 16 * 1024 * 1024  # Rows comes long before this in any object that is not hostile
UID_MAX_CHARS = 64  # PS3.5 9.1

_ROWS = Tag("Rows")
_MAKER_UIDS = ("InstanceCreatorUID", "DeviceUID")  # PS3.3 C.12.1 and C.7.5.1: either names the system that made it
_UIDS = ("SOPClassUID", "SOPInstanceUID", *_MAKER_UIDS, "StudyInstanceUID", "SeriesInstanceUID")
_TAGS = {keyword: Tag(keyword) for keyword in _UIDS}
_WANTED: list[BaseTag | int] = [*_TAGS.values(), _ROWS]
_PLAIN_UID = re.compile(rb"([0-9.]+)[ \0]*")

# They have Rows but show no anatomy as acquired: a segment, a dose grid or a map is never embedded.
_DERIVED_GRIDS = frozenset({SegmentationStorage, RTDoseStorage, ParametricMapStorage})


@dataclass(frozen=True, slots=True)
class Header:
    """What the spool records of a data set. ``own`` is true for objects this node made itself."""

    study_uid: str
    series_uid: str
    sop_class: str
    sop_uid: str
    image: bool
    own: bool


def read_header(
    path: Path, offset: int, transfer_syntax: str, own_uids: Collection[str] = (), head: bytes = b""
) -> Header:
    """The header of the data set that starts at ``offset`` bytes of ``path``.

    ``head`` is the data set's beginning where the caller has it: the file is read only where that does not reach past
    what is wanted.

    Raises
    ------
    InputError
        The data set cannot be read, or has no usable Study Instance UID.
    """
    try:
        ds, whole = _read_head(head, transfer_syntax) or _read_file(path, offset, transfer_syntax)
        study_uid = _uid(ds, "StudyInstanceUID")
        sop_class = _uid(ds, "SOPClassUID")
        header = Header(
            study_uid=study_uid,
            series_uid=_uid(ds, "SeriesInstanceUID"),
            sop_class=sop_class,
            sop_uid=_uid(ds, "SOPInstanceUID"),
            # Cut off before Rows it may be an image: de-identification sees it, and says that it is truncated.
            image=(_ROWS in ds or (not whole and _may_be_image(sop_class))) and sop_class not in _DERIVED_GRIDS,
            own=any(_uid(ds, keyword) in own_uids for keyword in _MAKER_UIDS),
        )
    except OSError as exc:
        raise InputError("the received file cannot be read back", advice="check the disk of [node] data_dir") from exc
    except Exception as exc:  # noqa: BLE001 - pydicom raises almost anything on hostile bytes
        # Not chained: the library's messages repeat values.
        raise InputError(f"the data set cannot be read ({type(exc).__name__})") from None
    if not study_uid or len(study_uid) > UID_MAX_CHARS or not study_uid.isprintable():
        raise InputError("the data set has no usable Study Instance UID (0020,000D)")
    return header


def _read_head(head: bytes, transfer_syntax: str) -> tuple[Dataset, bool] | None:
    """As ``_read``; None where the head ends too early, or fails to be read, for which the file decides."""
    try:
        ds, whole = _read(BytesIO(head), transfer_syntax)
    except Exception:  # noqa: BLE001 - pydicom raises almost anything where data end
        return None
    return (ds, whole) if whole else None


def _read_file(path: Path, offset: int, transfer_syntax: str) -> tuple[Dataset, bool]:
    with path.open("rb") as file:
        file.seek(offset)
        return _read(file, transfer_syntax)


def _read(file: BinaryIO, transfer_syntax: str) -> tuple[Dataset, bool]:
    """The wanted elements, and whether the data set goes on to where Rows would be, as every whole object does."""
    passed: list[int] = []

    def past_rows(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if int(tag) > int(_ROWS):
            passed.append(int(tag))
        return bool(passed)

    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        file = BytesIO(_inflate_prefix(file))
    ds = read_dataset(
        file,
        is_implicit_VR=transfer_syntax == ImplicitVRLittleEndian,
        is_little_endian=transfer_syntax != ExplicitVRBigEndian,
        stop_when=past_rows,
        specific_tags=_WANTED,
    )
    return ds, bool(passed)


def _may_be_image(sop_class: str) -> bool:
    """By its name in PS3.6 ("CT Image Storage"); of a class without a name nobody knows."""
    name = UID(sop_class).name
    return name == sop_class or "Image" in name


def _inflate_prefix(file: BinaryIO) -> bytes:
    """The first bytes of a deflated data set (PS3.5 A.5: raw deflate), so that a bomb stays small."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    return inflate.decompress(file.read(INFLATED_PREFIX_BYTES), INFLATED_PREFIX_BYTES)


def _uid(ds: Dataset, keyword: str) -> str:
    tag = _TAGS[keyword]
    raw: object = ds.get_item(tag) if tag in ds else None
    if isinstance(raw, RawDataElement) and (plain := _PLAIN_UID.fullmatch(raw.value or b"")):
        return plain[1].decode("ascii")  # as nearly all are: pydicom's way to the same text takes twenty times as long
    value = ds.get(keyword)
    return "" if value is None else str(value).strip(" \0")
