"""Small pictures of embedded slices on disk, and sheets of them: what a graph of many cases is drawn with.

De-identified like the archive, made again from it at any time: a file that is missing or damaged is made anew by who
asks. Removed with its study. Never reads a DICOM object.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
from PIL import Image

from dicomnode.domain import PseudoUid

log = structlog.get_logger(__name__)

SIDE = 128  # pixels; a node of the graph is drawn at 24 to 128
QUALITY = 80  # of WebP: 2 to 4 kB a slice
FASTEST = 0  # WebP's method: 2 ms a slice
IN_A_ROW = 8
HELD = 4096  # decoded pictures in memory, 16 KiB each

Grey = npt.NDArray[np.uint8]


class Thumbnails:
    """The folder of thumbnails; safe for threads and processes.

    Parameters
    ----------
    folder : Path
        Root; folders are made when something is put.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, str, int], tuple[int, Grey]] = OrderedDict()

    def put(self, study: PseudoUid, instance: PseudoUid, frame: int, pixels: Grey) -> None:
        """Keep a picture, uint8 [rows, columns], fitted into 128 by 128.

        What cannot be written is no error: it is made again when it is asked for.
        """
        path = self._path(study, instance, frame)
        part = path.with_suffix(f".{threading.get_ident()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(fitted(pixels)).save(part, "WEBP", quality=QUALITY, method=FASTEST)
            part.replace(path)
        except OSError as exc:
            log.warning("thumbnail_not_kept", code=errno.errorcode.get(exc.errno or 0, ""))

    def get(self, study: PseudoUid, instance: PseudoUid, frame: int) -> Grey | None:
        """The picture, uint8 [128, 128]; None where it was never made or is damaged."""
        key, path = (study, instance, frame), self._path(study, instance, frame)
        try:
            written = path.stat().st_mtime_ns  # another process may have removed or replaced it
            with self._lock:
                held = self._held.get(key)
                if held is not None and held[0] == written:
                    self._held.move_to_end(key)
                    return held[1]
            with Image.open(path, formats=("WEBP",)) as image:
                pixels = np.asarray(image.convert("L"))
        except (OSError, ValueError, SyntaxError):
            return None
        if pixels.shape != (SIDE, SIDE):
            return None
        self._hold(key, written, pixels)
        return pixels

    def remove_study(self, study: PseudoUid) -> None:
        """Delete a study's pictures; no error when there are none."""
        with self._lock:
            for key in [key for key in self._held if key[0] == study]:
                del self._held[key]
        shutil.rmtree(self._of(study), ignore_errors=True)

    def _hold(self, key: tuple[str, str, int], written: int, pixels: Grey) -> None:
        with self._lock:
            self._held[key] = (written, pixels)
            self._held.move_to_end(key)
            while len(self._held) > HELD:
                self._held.popitem(last=False)

    def _of(self, study: PseudoUid) -> Path:
        return self.folder / hashlib.sha256(study.encode()).hexdigest()[:2] / study

    def _path(self, study: PseudoUid, instance: PseudoUid, frame: int) -> Path:
        return self._of(study) / f"{instance}-{frame}.webp"


def fitted(pixels: Grey) -> Grey:
    """uint8 [128, 128]: scaled to fit, in the middle, black beside it."""
    image = Image.fromarray(pixels)
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = np.zeros((SIDE, SIDE), dtype=np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    how = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR
    small[top : top + size[1], left : left + size[0]] = np.asarray(image.resize(size, how))
    return small


def atlas(pictures: Sequence[Grey | None], size: int) -> bytes:
    """WebP of pictures as squares of ``size`` pixels, eight a row; a missing one is transparent."""
    columns = min(IN_A_ROW, max(1, len(pictures)))
    rows = -(-max(1, len(pictures)) // IN_A_ROW)
    sheet = Image.new("LA", (columns * size, rows * size), (0, 0))
    for n, pixels in enumerate(pictures):
        if pixels is not None:
            picture = Image.fromarray(pixels)
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            solid = Image.new("L", (size, size), 255)
            sheet.paste(Image.merge("LA", (picture, solid)), (n % IN_A_ROW * size, n // IN_A_ROW * size))
    buffer = BytesIO()
    whole = len(pictures) == columns * rows and all(p is not None for p in pictures)
    sheet.convert("RGB" if whole else "RGBA").save(buffer, "WEBP", quality=QUALITY, method=FASTEST)
    return buffer.getvalue()
