"""Writes CT files with a marker in every attribute of Table E.1-1, in every place where one can hide.

For tests of de-identification: at top level, in items two deep, in a sequence encoded as UN, in a private block, in
overlays and curves, in unknown attributes, in file meta, preamble and behind the pixel data.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom.config
from pydicom import dcmwrite
from pydicom.charset import default_encoding
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.deid import table

CT = "1.2.840.10008.5.1.4.1.1.2"
DATE = "19770314"
WORD = "PHIX"  # begins every marker that is text
UID_ROOT = "1.2.826.0.1.3680043.9999."
PLACES = ("top", "nested", "un", "private", "groups", "meta", "preamble", "trailing")
_NESTED_IN, _DEEPER_IN, _UN_SEQUENCE = 0x00081115, 0x0008114A, 0x00082218  # kept sequences: the table has none of them
# The frame that makes the file a CT: planted in items only, the object would be no image without them.
_FRAME_OF_OBJECT = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}


@dataclass(frozen=True)
class Planted:
    """The file, and the marker bytes of each planted attribute (none where the VR holds no marker of its own)."""

    path: Path
    markers: dict[int, bytes]


def plantable() -> list[int]:
    """Tags of the table, and those of the dictionary beyond it that hold UIDs, dates, times, persons."""
    risky = ("UI", "DA", "DT", "TM", "PN", "AE")
    tags = {row.tag for row in table.rows()}
    tags |= {tag for tag, entry in DicomDictionary.items() if entry[0] in risky}
    return sorted(tag for tag in tags if tag >> 16 not in (0x0000, 0x0002, 0x0004))


def vr_of(tag: int) -> str:
    row = table.by_tag().get(tag)
    return (row.vr if row else DicomDictionary[tag][0]) or "LO"


def value_of(tag: int) -> Any:
    """A value of the right form that no de-identified object may hold."""
    number = plantable().index(tag) if tag in plantable() else tag & 0xFFFF
    text = f"{WORD}{number:05d}"
    by_vr: dict[str, Any] = {
        "DA": DATE, "DT": f"{DATE}101112.123456", "TM": "101112.98765", "AS": "095Y", "UI": f"{UID_ROOT}{number}",
        "PN": f"{WORD}{number:05d}^Given", "DS": f"77{number:05d}", "IS": f"77{number:05d}", "US": 54321, "UL": 54321,
        "SS": 4321, "SL": 4321, "FD": 5432.5, "FL": 5432.5, "OB": f"{text}Z".encode(), "OW": f"{text}Z".encode(),
        "UN": f"{text}Z".encode(), "UR": f"http://{text}/",
    }  # fmt: skip
    return by_vr.get(vr_of(tag), text)


def marker_of(tag: int) -> bytes | None:
    """What to look for in the bytes of the result; None where the value is a bare number, a time or an age."""
    vr = vr_of(tag)
    if vr in ("TM", "AS", "US", "UL", "SS", "SL", "FD", "FL"):
        return None
    if vr in ("DA", "DT"):
        return DATE.encode()
    if vr == "SQ":
        return f"{WORD}SQ{tag:08X}".encode()
    value = value_of(tag)
    return value if isinstance(value, bytes) else str(value).split("^")[0].encode()


def element_of(tag: int) -> DataElement:
    """The planted element: for a sequence one item with a name and a UID, which have rules of their own."""
    if vr_of(tag) != "SQ":
        return DataElement(tag, vr_of(tag), value_of(tag))
    item = Dataset()
    item.PersonName = f"{WORD}SQ{tag:08X}^Given"
    item.ReferencedSOPInstanceUID = f"{UID_ROOT}{tag}"
    return DataElement(tag, "SQ", Sequence([item]))


def _item(tags: Iterable[int]) -> Dataset:
    item = Dataset()
    for tag in tags:
        item.add(element_of(tag))
    return item


def base_ct() -> Dataset:
    """A small CT without anything that identifies: 16 x 16 pixels."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, f"{UID_ROOT}1.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{UID_ROOT}1.2", f"{UID_ROOT}1.3"
    ds.Modality, ds.Manufacturer, ds.ImageType = "CT", "GE MEDICAL SYSTEMS", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientPosition, ds.KVP, ds.BodyPartExamined = "HFS", "120", "CHEST"
    ds.Rows = ds.Columns = 16
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.add_new(0x7FE00010, "OW", bytes(range(256)) * 2)
    return ds


@contextlib.contextmanager
def _leaving_un() -> Iterator[None]:
    """Keep pydicom from turning UN into the VR that it knows."""
    before = pydicom.config.replace_un_with_known_vr
    pydicom.config.replace_un_with_known_vr = False
    try:
        yield
    finally:
        pydicom.config.replace_un_with_known_vr = before


def _as_un(tags: Iterable[int]) -> bytes:
    """A sequence's value in Implicit VR Little Endian, as PS3.5 6.2.2 wants it inside UN."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, _item(tags), default_encoding)
    body = buffer.getvalue()
    return b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body


def plant(path: Path, tags: Iterable[int] | None = None, places: Iterable[str] = PLACES) -> Planted:
    """Write a CT with ``tags`` (default: all) planted in ``places``."""
    chosen, where = list(plantable() if tags is None else tags), set(places)
    ds = base_ct()
    extra: dict[int, bytes] = {}
    if "top" in where:
        for tag in chosen:
            if tag not in _FRAME_OF_OBJECT:
                ds.add(element_of(tag))
    if "nested" in where:
        deeper = Dataset()
        deeper.add(DataElement(_DEEPER_IN, "SQ", Sequence([_item(chosen)])))
        ds.add(DataElement(_NESTED_IN, "SQ", Sequence([_item(chosen), deeper])))
    if "un" in where:
        # values of the Explicit VR lengths fit; attributes that the dictionary lacks cannot be told apart in here
        known = list(chosen)
        with _leaving_un():
            ds.add(DataElement(_UN_SEQUENCE, "UN", _as_un(known)))
    if "private" in where:
        block = ds.private_block(0x0009, "ACME PHIX-CREATOR", create=True)
        block.add_new(0x01, "LO", "PHIX-PRIVATE")
        block.add_new(0x02, "SQ", Sequence([_item(chosen)]))
        ds.add(DataElement(0x00111234, "LO", "PHIX-ORPHAN"))
        extra |= {0x00090010: b"PHIX-CREATOR", 0x00091001: b"PHIX-PRIVATE", 0x00111234: b"PHIX-ORPHAN"}
    if "groups" in where:
        for tag in (0x60003000, 0x60023000, 0x50003000):
            ds.add(DataElement(tag, "OW", b"PHIX-GROUPS!"))
        ds.add(DataElement(0x60004000, "LT", "PHIX-GROUPS!"))
        ds.add(DataElement(0x0018EFF0, "LO", "PHIX-UNKNOWN"))
        extra |= {0x60003000: b"PHIX-GROUPS!", 0x0018EFF0: b"PHIX-UNKNOWN"}
    if "trailing" in where:
        ds.add(DataElement(0xFFFCFFFC, "OB", b"PHIX-TRAILER"))
        extra[0xFFFCFFFC] = b"PHIX-TRAILER"
    _write(path, ds, where, extra)
    markers = {tag: marker for tag in chosen if (marker := marker_of(tag)) is not None}
    return Planted(path, markers | extra)


def _write(path: Path, ds: Dataset, where: set[str], extra: dict[int, bytes]) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    if "meta" in where:
        meta.SourceApplicationEntityTitle = "PHIX-META-AE"
        meta.PrivateInformationCreatorUID = f"{UID_ROOT}777777"
        meta.PrivateInformation = b"PHIX-META-PRIVATE!"
        extra |= {0x00020016: b"PHIX-META-AE", 0x00020102: b"PHIX-META-PRIVATE", 0x00020100: b"777777"}
    ds.file_meta = meta
    out = io.BytesIO()
    with _leaving_un():
        dcmwrite(out, ds, enforce_file_format=True)
    raw = out.getvalue()
    if "preamble" in where:
        raw = b"PHIX-PREAMBLE".ljust(128, b".") + raw[128:]
        extra[0] = b"PHIX-PREAMBLE"
    path.write_bytes(raw)
