"""Writes a de-identified object: new file meta, header, pixel element; the file appears whole or not at all.

The pixel bytes are copied from file to file, or come from pixel_mask.py. Knows nothing of rules. Sources: PS3.10 7.1
(file format), PS3.5 A.5 (deflated).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicomnode.deid.pixel_mask import PixelOutcome
from dicomnode.deid.source import Source, file_head
from dicomnode.domain import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.durable import sync_folder
from dicomnode.errors import QuarantineError

_COPY_BLOCK = 1 << 20
_META_LENGTH_VALUE = 128 + 4 + 8  # preamble, prefix, head of (0002,0000), PS3.10 7.1


def file_meta(ds: Dataset, source: Source) -> FileMetaDataset:
    """A new file meta group with nothing of the sender's (PS3.10 table 7.1-1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = source.transfer_syntax
    # PS3.10 7.1: of what wrote the file; the node's constant under 2.25 (docs/conformance.md).
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


@contextlib.contextmanager
def whole_file(dst: Path, *, fsync: bool) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file beside ``dst`` that takes its name when the block ends well, and is deleted when not."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=dst.parent, prefix=".deid-", delete=False) as temporary:
        path = Path(temporary.name)
        try:
            yield cast(BinaryIO, temporary), path
            if fsync:
                os.fsync(temporary.fileno())
            path.replace(dst)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    if fsync:
        sync_folder(dst.parent)


def write_object(out: BinaryIO, source: Source, expected: int | None, pixels: PixelOutcome) -> None:
    """Preamble, file meta and header from the data set, then the pixel element: the source's bytes or masked ones."""
    if not source.deflated:
        dcmwrite(out, source.ds, enforce_file_format=True)
        _write_pixels(out, source, expected, pixels)
        return
    meta = source.ds.file_meta
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with tempfile.SpooledTemporaryFile(max_size=_COPY_BLOCK) as plain:
        stream = cast(BinaryIO, plain)
        dcmwrite(stream, source.ds, enforce_file_format=True)
        _write_pixels(stream, source, expected, pixels)
        stream.seek(_META_LENGTH_VALUE)
        body = stream.tell() + 4 + int.from_bytes(stream.read(4), "little")
        meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        out.write(file_head(meta))
        stream.seek(body)
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        while block := stream.read(_COPY_BLOCK):
            out.write(packer.compress(block))
        out.write(packer.flush())


def _write_pixels(out: BinaryIO, source: Source, expected: int | None, pixels: PixelOutcome) -> None:
    if pixels.element is None:
        _copy_pixels(out, source, expected)
        return
    pixels.element.seek(0)
    shutil.copyfileobj(pixels.element, out, _COPY_BLOCK)


def _copy_pixels(out: BinaryIO, source: Source, expected: int | None) -> None:
    """The pixel element as it stands in the source; native values lose what lies beyond the last pixel."""
    span = source.pixels
    assert span is not None
    stream = source.stream
    stream.seek(span.head)
    head = stream.read(span.value - span.head)
    length = span.end - span.value
    if expected is not None and length > expected + expected % 2:
        length = expected + expected % 2
        order = "little" if source.transfer_syntax.is_little_endian else "big"
        head = head[:-4] + length.to_bytes(4, "little" if order == "little" else "big")
    out.write(head)
    copied = 0
    while copied < length:
        block = stream.read(min(_COPY_BLOCK, length - copied))
        if not block:
            raise QuarantineError("truncated", "the file ends inside the pixel data", advice="send it again")
        out.write(block)
        copied += len(block)
