"""Reads a multipart upload (RFC 7578) from the connection to files, within limits; never into memory.

Files are numbered: the names that a browser sends are not kept. Only the fields that are asked for are read. The folder
is the caller's, so is its removal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from dicomnode.errors import StorageFull, UploadRefused, UploadTooLarge, UploadWrongKind

FILE_FIELD = "file"
MAX_FIELD_BYTES = 2048
MAX_FIELDS = 16
OVERHEAD_BYTES = 1024  # of a part's boundary and headers; a browser sends about 200
WRITE_FROM = 1 << 20  # bytes that are collected before they are parsed and written in one go
DRAIN_S = 10.0
IDLE_S = 30.0  # a sender that is silent for longer is let go
SLOWEST = 16 << 10  # bytes a second, on the average: each upload holds one of few places


class Received:
    """What came: the files in order, and the values of the other fields."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.fields: dict[str, str] = {}
        self.bytes = 0


async def receive(
    stream: AsyncIterator[bytes], content_type: str, length: str, folder: Path, *, max_bytes: int, max_files: int
) -> Received:
    """Write the files of a multipart body to ``folder``.

    Parameters
    ----------
    stream : async iterator of bytes
        The body.
    content_type, length : str
        Headers of the request; ``length`` may be empty.
    max_bytes, max_files : int
        Of all files together.

    Raises
    ------
    UploadTooLarge
        ``too-large`` or ``too-many-files``; from the header where it says so, else as soon as it is.
    UploadWrongKind
        ``not-multipart``.
    UploadRefused
        ``truncated``: not a whole multipart body; ``idle``: the sender fell silent.
    StorageFull
        The disk is full.
    """
    most = max_bytes + max_files * OVERHEAD_BYTES
    if length.isdigit() and int(length) > most:
        raise _too_large(max_bytes)
    form = _Form(content_type, folder, max_bytes, max_files)
    pending, came, began = bytearray(), 0, time.monotonic()
    try:
        async for chunk in _timed(stream):
            came += len(chunk)
            if came > most:  # parts that are no file, and what follows the last one, cost time too
                raise _too_large(max_bytes)
            if time.monotonic() - began > IDLE_S + came / SLOWEST:
                raise UploadRefused("idle", "the upload comes too slowly")
            pending += chunk
            if len(pending) >= WRITE_FROM:
                await run_in_threadpool(form.feed, bytes(pending))
                pending.clear()
        await run_in_threadpool(form.feed, bytes(pending))
        return await run_in_threadpool(form.finish)
    finally:
        form.close()


async def drain(stream: AsyncIterator[bytes]) -> None:
    """Read what is still being sent to a refused request: a browser shows the answer only when it could send all."""
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read to its end
        async with asyncio.timeout(DRAIN_S):
            async for _ in stream:
                continue


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge("too-large", f"the upload is larger than {max_bytes >> 20} MiB", advice="[web] upload_mb")


async def _timed(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    chunks = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UploadRefused("idle", "the upload stopped half-way") from None
        yield chunk


class _Form:
    """Callbacks of the parser. A refusal is kept and raised by ``feed``."""

    def __init__(self, content_type: str, folder: Path, max_bytes: int, max_files: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise UploadWrongKind("not-multipart", "an upload is sent as multipart/form-data, in fields named file")
        self._received = Received()
        self._folder, self._max_bytes, self._max_files = folder, max_bytes, max_files
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._name = ""
        self._out: BinaryIO | None = None
        self._text = bytearray()
        self._whole = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._part_opens,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._ends,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError:
            raise UploadRefused("truncated", "the upload is not a whole multipart body") from None
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("no room for the upload") from None
            raise

    def finish(self) -> Received:
        if not self._whole:
            raise UploadRefused("truncated", "the upload is not a whole multipart body")
        return self._received

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None

    def _part_begins(self) -> None:
        self._disposition, self._name = b"", ""
        self._header.clear()
        self._value.clear()
        self._text.clear()

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _part_opens(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == FILE_FIELD:
            if len(self._received.files) >= self._max_files:
                raise UploadTooLarge("too-many-files", f"the upload holds more than {self._max_files} files")
            path = self._folder / f"{len(self._received.files)}"
            self._received.files.append(path)
            self._out = path.open("xb")
        elif len(self._received.fields) >= MAX_FIELDS:
            raise UploadTooLarge("too-large", "the upload has too many fields")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._out is None:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD_BYTES:
                raise UploadTooLarge("too-large", "a field of the upload is too long")
            return
        self._received.bytes += end - start
        if self._received.bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._out.write(data[start:end])

    def _part_ends(self) -> None:
        if self._out is None:
            self._received.fields[self._name] = self._text.decode("utf-8", "replace")
        self.close()

    def _ends(self) -> None:
        self._whole = True
