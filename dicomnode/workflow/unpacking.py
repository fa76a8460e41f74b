"""Uploaded files by their content, and zip archives unpacked within limits; for the identified zone.

Names in an archive are never used: not as paths, not in messages. An archive inside an archive stays closed. What an
archive says of its size is checked before the first byte is unpacked, and what comes out is counted. Sources: APPNOTE
6.3.10 (ZIP), PS3.10 7.1.
"""

from __future__ import annotations

import errno
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from dicomnode.errors import StorageFull, UploadRefused, UploadTooLarge, UploadWrongKind
from dicomnode.models.pictures import is_picture

MAX_FILES = 5000  # files of an upload, those in archives included
MAX_RATIO = 100  # unpacked to packed; images compress to a half or a third, empty ones to a hundredth
RATIO_FROM = 64 << 20  # bytes; below it a ratio harms nobody
UNPACKED_FACTOR = 4  # an archive may unpack to this many times [web] upload_mb
MAX_DIRECTORY = 16 << 20  # bytes of an archive's list of entries; it is read into memory
HEAD = 132  # bytes that tell a file's kind: preamble and prefix
_BLOCK = 1 << 20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others can ask for gigabytes of memory
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)


class Kind(Enum):
    """What a file is, by its first bytes."""

    DICOM = "DICOM"
    PICTURE = "picture"
    ARCHIVE = "archive"
    EMPTY = "empty"
    OTHER = "not DICOM"


@dataclass(slots=True)
class Unpacked:
    """What an upload holds: files that may be images, and how many others were left, by why."""

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


def kind_of(head: bytes) -> Kind:
    """The kind of a file that begins with ``head`` (``HEAD`` bytes, fewer where it is shorter)."""
    if not head:
        return Kind.EMPTY
    if head[128:132] == b"DICM":
        return Kind.DICOM
    if is_picture(head):
        return Kind.PICTURE
    return Kind.ARCHIVE if head[:4] in (b"PK\x03\x04", b"PK\x05\x06") else Kind.OTHER


def unpack(files: Sequence[Path], folder: Path, max_bytes: int) -> Unpacked:
    """Sort the uploaded files and unpack archives among them into ``folder``; what is of no use is deleted.

    Parameters
    ----------
    max_bytes : int
        What an upload may be; archives may unpack to ``UNPACKED_FACTOR`` times that, all together.

    Raises
    ------
    UploadRefused, UploadTooLarge, UploadWrongKind
        ``empty``, ``encrypted``, ``damaged-archive``, ``too-many-files``, ``archive-bomb``, ``wrong-kind``.
    """
    found = Unpacked()
    archives = 0
    budget = max_bytes * UNPACKED_FACTOR
    for path in files:
        with path.open("rb") as f:
            kind = kind_of(f.read(HEAD))
        if kind in (Kind.DICOM, Kind.PICTURE):
            found.files.append(path)
            continue
        if kind is Kind.ARCHIVE:
            budget -= _open_archive(path, folder / f"archive-{archives}", found, budget)
            archives += 1
        else:
            found.skip(kind.value)
        path.unlink()
    if not found.files:
        _refuse(found, archives)
    return found


def _refuse(found: Unpacked, archives: int) -> None:
    if not found.skipped or set(found.skipped) == {Kind.EMPTY.value}:
        raise UploadRefused("empty", "the upload is empty")
    if archives:
        held = ", ".join(f"{n} files: {why}" for why, n in found.skipped.items())
        raise UploadRefused("no-image", f"no image found ({held})")
    raise UploadWrongKind("wrong-kind", "this is no DICOM, PNG, JPEG or WebP image, nor a zip archive of them")


def _open_archive(path: Path, folder: Path, found: Unpacked, budget: int) -> int:
    """Unpack what may be an image; returns the bytes that the archive's entries unpack to."""
    folder.mkdir(mode=0o700)
    try:
        with path.open("rb") as stream:
            check_directory(stream, 2 * MAX_FILES)  # folders are entries too
            with zipfile.ZipFile(stream) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                unpacked = _check_entries(entries, len(found.files), path.stat().st_size, budget)
                for number, entry in enumerate(entries):
                    _take(archive, entry, folder / f"{number}", found)
    except DAMAGED:
        raise UploadRefused("damaged-archive", "the archive is damaged or cut short") from None
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise StorageFull("no room for the upload") from None
        raise UploadRefused("damaged-archive", "the archive is damaged or cut short") from None
    return unpacked


def check_directory(stream: BinaryIO, max_entries: int) -> None:
    """Before the list of entries is read into memory: how large it says it is.

    Raises
    ------
    UploadTooLarge
        More entries than ``max_entries``, or a list of more than ``MAX_DIRECTORY`` bytes.
    zipfile.BadZipFile
        The list has no end.
    """
    # The only reader of the end record, zip64 included, in the standard library.
    end = zipfile._EndRecData(stream)  # type: ignore[attr-defined]
    if not end:
        raise zipfile.BadZipFile
    entries, size = end[zipfile._ECD_ENTRIES_TOTAL], end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
    if entries > max_entries or size > MAX_DIRECTORY:
        raise UploadTooLarge("too-many-files", f"the archive holds more than {MAX_FILES} files")
    stream.seek(0)


def _check_entries(entries: Sequence[zipfile.ZipInfo], before: int, packed: int, budget: int) -> int:
    if before + len(entries) > MAX_FILES:
        raise UploadTooLarge("too-many-files", f"the archive holds more than {MAX_FILES} files")
    if any(entry.flag_bits & 0x1 for entry in entries):
        raise UploadRefused("encrypted", "the archive is encrypted", advice="send it without a password")
    if any(entry.compress_type not in METHODS for entry in entries):
        raise UploadRefused("damaged-archive", "the archive is packed by a method that is not read")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > budget or (unpacked > RATIO_FROM and unpacked > MAX_RATIO * packed):
        raise UploadTooLarge("archive-bomb", "the archive unpacks to more than is allowed")
    return unpacked


def _take(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, found: Unpacked) -> None:
    with archive.open(entry) as source:  # ends at the size that the entry says, whatever follows
        head = source.read(HEAD)
        kind = kind_of(head)
        if kind not in (Kind.DICOM, Kind.PICTURE):
            found.skip("archive in an archive" if kind is Kind.ARCHIVE else kind.value)
            return
        with target.open("wb") as out:
            out.write(head)
            shutil.copyfileobj(source, out, _BLOCK)
    found.files.append(target)
