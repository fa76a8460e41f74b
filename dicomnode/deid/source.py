"""Reads a received object without its pixel data, and finds where the pixel data lie in the file.

The pixel data never pass through memory: their bytes are copied from file to file. A deflated data set (PS3.5 A.5)
is the exception, it is inflated first. Nothing here judges or changes the object. Sources: PS3.5 7.1 (element
encoding), A.4 (fragments), PS3.10 7.1 (file format).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicomnode.deid.quiet import silenced
from dicomnode.errors import QuarantineError

# PS3.5 table 7.1: (7FE0,0008) Float, (7FE0,0009) Double Float, (7FE0,0010) Pixel Data.
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_IDENTITY_KEYWORDS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")
_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_SEQUENCE_DELIMITER = 0xFFFEE0DD
_INFLATED_LIMIT = 1 << 30  # bytes; deflated objects are single images in practice, more is an attack


@dataclass(frozen=True, slots=True)
class PixelSpan:
    """Where the pixel element lies: its own head (tag, VR, length) and its value, in bytes from the file's start.

    ``fragments`` counts the fragments after the offset table, None for native pixel data. ``end`` is where the
    value (and its delimiter) ends; it is beyond the file's end in a truncated file.
    """

    tag: int
    head: int
    value: int
    end: int
    fragments: int | None


@dataclass(slots=True)
class Source:
    """A received object: the data set before the pixel data, the place of the pixel data, and the file's size."""

    path: Path
    ds: FileDataset
    transfer_syntax: UID
    stream: BinaryIO
    size: int
    pixels: PixelSpan | None
    cut_short: bool

    @property
    def deflated(self) -> bool:
        return self.transfer_syntax == DeflatedExplicitVRLittleEndian

    def frames(self) -> int:
        """Number of frames, at least 1."""
        try:
            return max(1, int(self.ds.get("NumberOfFrames") or 1))
        except (TypeError, ValueError):
            return 1

    def native_length(self) -> int:
        """Bytes that the pixel data must have when not compressed, without the padding byte (PS3.5 8.1.1)."""
        return int(get_expected_length(self.ds))


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Whose object it is, for the vault. Identified; has no ``repr``."""

    issuer: str
    patient_id: str


def identify(path: Path, default_issuer: str = "") -> Identity:
    """Issuer and id of the patient; without an id each study is a patient of its own, so that no two are mixed.

    Raises
    ------
    QuarantineError
        ``not-dicom`` or ``truncated``; ``missing-uid`` where there is neither a patient id nor a study UID.
    """
    with silenced():
        source = open_source(path)
        source.stream.close()
        values = {name: str(source.ds.get(name) or "").strip() for name in _IDENTITY_KEYWORDS}
    if values["PatientID"]:
        return Identity(values["IssuerOfPatientID"] or default_issuer, values["PatientID"])
    if values["StudyInstanceUID"]:
        return Identity("study", values["StudyInstanceUID"])
    raise QuarantineError("missing-uid", "StudyInstanceUID is missing or empty", advice="correct it at the sender")


def open_source(path: Path) -> Source:
    """Open and read ``path`` up to its pixel data. The caller closes ``stream``.

    Raises
    ------
    QuarantineError
        ``not-dicom`` or ``truncated``.
    """
    stream: BinaryIO = path.open("rb")
    try:
        return _read(path, stream)
    except BaseException:
        stream.close()
        raise


def _read(path: Path, stream: BinaryIO) -> Source:
    try:
        syntax = _transfer_syntax(stream)
        if syntax == DeflatedExplicitVRLittleEndian:
            stream = _inflated(stream)
        ds = dcmread(stream, stop_before_pixels=True)
        size = _size(stream)
    except InvalidDicomError:
        raise QuarantineError("not-dicom", "not a DICOM file (PS3.10)", advice="nothing to de-identify") from None
    except (EOFError, zlib.error, struct.error, OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise QuarantineError("truncated", "the header cannot be read to its end", advice="send it again") from None
    cut_short = _ends_inside(ds, stream.tell())
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    pixels = None if cut_short else _pixel_span(stream, size, implicit=implicit, little=little)
    return Source(path, ds, syntax, stream, size, pixels, cut_short)


def _size(stream: BinaryIO) -> int:
    here = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(here)
    return size


def _transfer_syntax(stream: BinaryIO) -> UID:
    """(0002,0010) of the file meta; leaves the stream at its start."""
    read_preamble(stream, force=False)
    meta = _read_file_meta_info(stream)
    stream.seek(0)
    syntax = UID(str(meta.get("TransferSyntaxUID", "")))
    if not syntax.is_transfer_syntax:
        raise QuarantineError("unsupported", "the transfer syntax is missing or unknown", place="(0002,0010)")
    return syntax


def _inflated(stream: BinaryIO) -> BinaryIO:
    """The same file with its data set inflated and Explicit VR Little Endian as transfer syntax."""
    read_preamble(stream, force=False)
    meta = _read_file_meta_info(stream)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data = unpacker.decompress(stream.read(), _INFLATED_LIMIT)
    if unpacker.unconsumed_tail:
        raise QuarantineError("unsupported", "the deflated data set is larger than 1 GiB")
    if not unpacker.eof:
        raise EOFError
    stream.close()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    out.write(file_head(meta))
    out.write(data)
    out.seek(0)
    return out


def file_head(meta: FileMetaDataset) -> bytes:
    """Empty preamble, prefix and file meta as bytes (PS3.10 7.1)."""
    head = DicomBytesIO()
    write_file_meta_info(head, meta, enforce_standard=False)
    return b"\0" * 128 + b"DICM" + head.getvalue()


def _ends_inside(ds: FileDataset, position: int) -> bool:
    """Whether the file ends inside an element: pydicom then returns what there is, without an error.

    The last element has to end where reading stopped, be that the pixel data or the end of the file.
    """
    raw: object = ds.get_item(max(ds.keys())) if len(ds) else None
    if not isinstance(raw, RawDataElement) or raw.length == _UNDEFINED:
        return False
    return raw.value_tell + raw.length != position


def _pixel_span(stream: BinaryIO, size: int, *, implicit: bool, little: bool) -> PixelSpan | None:
    """The pixel element at the stream's position, where ``stop_before_pixels`` left it; None where there is none."""
    order = "<" if little else ">"
    head = stream.tell()
    raw = stream.read(12)
    if len(raw) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", raw[:4])
    tag = (group << 16) | element
    if tag not in PIXEL_TAGS:
        return None
    if implicit:
        length, value = struct.unpack(f"{order}L", raw[4:8])[0], head + 8
    elif len(raw) < 12:
        return PixelSpan(tag, head, size, size + 1, None)
    else:  # OB, OW, OF, OD and UN all have a length of 32 bits after two reserved bytes
        length, value = struct.unpack(f"{order}L", raw[8:12])[0], head + 12
    if length != _UNDEFINED:
        return PixelSpan(tag, head, value, value + length, None)
    fragments, end = _fragments(stream, value, size)
    return PixelSpan(tag, head, value, end, fragments)


def _fragments(stream: BinaryIO, start: int, size: int) -> tuple[int, int]:
    """Number of fragments after the offset table, and where the delimiter ends (beyond ``size`` when it is missing)."""
    here, items = start, 0
    while here + 8 <= size:
        stream.seek(here)
        group, element, length = struct.unpack("<HHL", stream.read(8))
        tag = (group << 16) | element
        here += 8
        if tag == _SEQUENCE_DELIMITER:
            return max(0, items - 1), here
        if tag != _ITEM or length == _UNDEFINED:
            break
        here += length
        items += 1
    return max(0, items - 1), size + 1
