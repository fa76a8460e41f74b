"""What ``dicomnode deid`` is given: the files below folders, single files, and the entries of zip archives.

Nothing is opened here but the lists of entries of archives. Symbolic links are never followed; what lies out of the
given folders, cannot be read, or is no file is told as a problem, and the walk goes on. Names in an archive are never
used as paths. Sources: PS3.10 8 (DICOMDIR), APPNOTE 6.3.10 (ZIP).
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.errors import QuarantineError, StorageFull, UploadTooLarge, UsageError
from dicomnode.workflow.unpacking import DAMAGED, MAX_RATIO, METHODS, RATIO_FROM, check_directory

ARCHIVE_SUFFIX = ".zip"
ARCHIVE_HEADS = (b"PK\x03\x04", b"PK\x05\x06")
MAX_ENTRIES = 200_000  # of one archive; its list of entries is held in memory
MEMBER_MARK = "!"  # between an archive and the entry in it, where a path is shown
_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Input:
    """One file, or one entry of an archive. Identified: paths may be names of patients.

    Parameters
    ----------
    root : Path
        The given folder that it was found in, the parent of a file that was given itself.
    path : Path
        The file, or the archive.
    stamp : str
        Size and time of change, and the checksum of an entry: tells whether it is still the same.
    member : int
        Number of the entry in the archive, -1 for a file.
    name : str
        The entry's name, as the archive says; for people, never a path.
    reason, problem : str
        Why it is not processed: a word of docs/quarantine.md, or ``unreadable``, and a line.
    """

    root: Path
    path: Path
    stamp: str = ""
    member: int = -1
    name: str = ""
    reason: str = ""
    problem: str = ""

    @property
    def place(self) -> bytes:
        """What it is recognised by: path and entry, as bytes."""
        return os.fsencode(self.path) + (f"\0{self.member}\0{self.name}".encode("utf-8", "backslashreplace"))

    @property
    def shown(self) -> str:
        """The path below its root, for people; it may hold names."""
        relative = os.path.relpath(self.path, self.root)
        text = f"{relative}{MEMBER_MARK}{self.name}" if self.member >= 0 else relative
        return printable(text)

    @property
    def folders(self) -> tuple[bytes, ...]:
        """The folders around it, outermost first, each by its whole path; an archive is a folder too."""
        places = [self.path, *self.path.parents] if self.member >= 0 else list(self.path.parents)
        steps = [os.fsencode(place) for place in reversed(places) if place != self.root and self.root in place.parents]
        inside = [part for part in self.name.replace("\\", "/").split("/")[:-1] if part not in ("", ".", "..")]
        here = os.fsencode(self.path)
        for part in inside:
            here += b"\0" + part.encode("utf-8", "backslashreplace")
            steps.append(here)
        return tuple(steps)


def printable(text: str) -> str:
    """A path or name as it may be shown: what is no printable character becomes "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)


def find(paths: Sequence[Path], without: Path | None = None) -> Iterator[Input]:
    """Everything below ``paths`` in a fixed order, but what lies in ``without`` (the folder that is written to).

    The paths are checked at once, the rest is found while it is read.

    Raises
    ------
    UsageError
        A path does not exist, or lies in ``without``.
    """
    roots = []
    for given in paths:
        if not given.exists():
            raise UsageError("no such file or folder", place=str(given))
        root = Path(os.path.realpath(given))
        if without is not None and (root == without or without in root.parents):
            raise UsageError("an input lies in the folder that is written to", place=str(given))
        roots.append(root)
    return itertools.chain.from_iterable(
        _below(root if root.is_dir() else root.parent, root, roots, without) for root in roots
    )


def _below(root: Path, start: Path, roots: Sequence[Path], without: Path | None) -> Iterator[Input]:
    """Depth first, each folder in the order of its names, without recursion."""
    pending: list[Path] = [start]
    while pending:
        path = pending.pop()
        if path == without:
            continue
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                with os.scandir(path) as entries:
                    names = sorted((entry.name for entry in entries), reverse=True)
                pending.extend(path / name for name in names)
            elif stat.S_ISLNK(mode):
                yield from _link(root, path, roots)
            elif stat.S_ISREG(mode):
                yield from _file(root, path)
            else:
                yield Input(root, path, reason="unreadable", problem="neither a file nor a folder")
        except OSError as exc:
            yield Input(root, path, reason="unreadable", problem=_refused(exc))


def _link(root: Path, path: Path, roots: Sequence[Path]) -> Iterator[Input]:
    """Nothing where the link leads to what is found by its own name."""
    target = Path(os.path.realpath(path))
    if not target.exists():
        yield Input(root, path, reason="link", problem="a symbolic link that leads nowhere")
    elif not any(target == other or other in target.parents for other in roots):
        yield Input(root, path, reason="link", problem="a symbolic link out of the folder; it was not followed")


def _file(root: Path, path: Path) -> Iterator[Input]:
    found = path.stat()
    stamp = f"{found.st_size}:{found.st_mtime_ns}"
    if path.suffix.lower() == ARCHIVE_SUFFIX:
        with path.open("rb") as stream:
            is_archive = stream.read(4) in ARCHIVE_HEADS
        if is_archive:
            yield from _entries(Input(root, path, stamp))
            return
    yield Input(root, path, stamp)


def _entries(archive: Input) -> Iterator[Input]:
    """The entries of an archive that are no folders; a refused archive is one input with a problem."""
    try:
        with open_archive(archive.path) as opened:
            for number, entry in enumerate(opened.infolist()):
                if not entry.is_dir():
                    stamp = f"{archive.stamp}:{entry.file_size}:{entry.CRC}"
                    yield Input(archive.root, archive.path, stamp, number, entry.filename)
    except QuarantineError as exc:
        yield Input(archive.root, archive.path, archive.stamp, reason=exc.reason, problem=exc.line)


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip archive whose entries may be unpacked one by one.

    Raises
    ------
    QuarantineError
        ``damaged-archive``, ``archive-bomb`` or ``encrypted``.
    OSError
        It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            check_directory(stream, MAX_ENTRIES)
        archive = zipfile.ZipFile(path)
    except UploadTooLarge:
        raise QuarantineError("archive-bomb", f"the archive lists more than {MAX_ENTRIES} files") from None
    except DAMAGED:
        raise QuarantineError("damaged-archive", "the archive is damaged or cut short") from None
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    problem = None
    if any(entry.flag_bits & 0x1 for entry in entries):
        problem = QuarantineError("encrypted", "the archive is encrypted", advice="unpack it with its password")
    elif any(entry.compress_type not in METHODS for entry in entries):
        problem = QuarantineError("damaged-archive", "the archive is packed by a method that is not read")
    elif unpacked > RATIO_FROM and unpacked > MAX_RATIO * path.stat().st_size:
        problem = QuarantineError("archive-bomb", "the archive unpacks to more than is allowed")
    if problem is not None:
        archive.close()
        raise problem
    return archive


def unpack(archive: zipfile.ZipFile, member: int, target: Path) -> None:
    """Write one entry to ``target``, mode 0600, never more bytes than the archive says.

    Raises
    ------
    QuarantineError
        ``damaged-archive``, or an archive in the archive.
    StorageFull
        There is no room.
    """
    try:
        with (
            archive.open(archive.infolist()[member]) as source,
            os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out,
        ):
            head = source.read(4)
            if head in ARCHIVE_HEADS:
                raise QuarantineError("not-dicom", "an archive in the archive; it stays closed", advice="unpack it")
            out.write(head)
            shutil.copyfileobj(source, out, _BLOCK)
    except (*DAMAGED, IndexError):
        raise QuarantineError("damaged-archive", "the entry of the archive is damaged") from None
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFull("no room to unpack an archive", advice="free some space, then run it again") from None
        raise


def _refused(exc: OSError) -> str:
    return f"it cannot be read ({errno.errorcode.get(exc.errno or 0, type(exc).__name__)})"
