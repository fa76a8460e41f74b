"""Images of a result: series of a case or of the query in order, single frames, thumbnails and sheets of them.

Series and frames are kept in memory within bounds, so that scrolling decodes each frame once. Reads de-identified files
only; what a removal took away is gone here too, as the catalogue is asked each time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicomnode.archive.cases import CaseRow, Cases
from dicomnode.archive.objects import ObjectStore
from dicomnode.archive.thumbnails import Thumbnails, atlas, fitted
from dicomnode.domain import PseudoUid
from dicomnode.errors import DicomnodeError, NotFound
from dicomnode.models.display import (
    PRESETS,
    DisplaySeries,
    FrameAt,
    frame_values,
    order_series,
    picture_series,
    rendered,
    window_of,
)
from dicomnode.models.preprocess import Prepared, prepare_dicom, prepare_picture
from dicomnode.webside.opened import OpenResult, OpenSlice
from dicomnode.workflow.captures import LABELS, prepare_capture

FRAME_BYTES = 128 << 20  # decoded frames in memory: 250 of 512 x 512
STUDIES = 64  # whose series order is kept
QUERY_THUMBNAILS = 64
LOOK_AGAIN_S = 5.0  # a study may get images, lose them, or have them replaced

K = TypeVar("K")
V = TypeVar("V")
Values = npt.NDArray[np.int16]
Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shown:
    """The series of a case or query: in order, where each frame is, and what each file holds (SHA-256)."""

    series: tuple[DisplaySeries, ...]
    places: dict[tuple[str, int], tuple[int, int]] = field(repr=False)  # (instance or path, frame) -> (series, frame)
    digests: dict[Path, str] = field(repr=False)
    checked: float = 0.0

    def frame(self, series: int, frame: int) -> tuple[DisplaySeries, FrameAt]:
        """A frame by its numbers.

        Raises
        ------
        NotFound
            There is no such frame.
        """
        if not 0 <= series < len(self.series) or not 0 <= frame < len(self.series[series].frames):
            raise NotFound("no such frame")
        return self.series[series], self.series[series].frames[frame]


class Kept(Generic[K, V]):
    """The values used last, within a bound; safe for threads."""

    def __init__(self, bound: int, size: Callable[[V], int]) -> None:
        self._bound, self._size, self._used = bound, size, 0
        self._lock = threading.Lock()
        self._held: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._held.get(key)
            if value is not None:
                self._held.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> V:
        with self._lock:
            old = self._held.pop(key, None)
            self._used += self._size(value) - (0 if old is None else self._size(old))
            self._held[key] = value
            while self._used > self._bound and len(self._held) > 1:
                self._used -= self._size(self._held.popitem(last=False)[1])
        return value


class Images:
    """Pictures of cases and queries; safe for threads."""

    def __init__(self, cases: Cases, objects: ObjectStore, thumbnails: Thumbnails) -> None:
        self._cases = cases
        self._objects = objects
        self._thumbnails = thumbnails
        self._shown: Kept[object, Shown] = Kept(STUDIES, lambda _: 1)
        self._frames: Kept[tuple[str, Path, int, float], Values] = Kept(FRAME_BYTES, lambda v: int(v.nbytes))
        self._queries: Kept[tuple[Path, int], Grey] = Kept(QUERY_THUMBNAILS, lambda _: 1)

    def of_case(self, row: CaseRow) -> Shown:
        """The series of a case, by series number."""
        key, now = (row.id, row.study), time.monotonic()
        held = self._shown.get(key)
        if held is not None and now - held.checked < LOOK_AGAIN_S:
            return held
        files = {self._objects.path(f.path): f.sha256 for f in self._cases.files(row.id)}
        if held is not None and held.digests == files:
            return self._shown.put(key, replace(held, checked=now))
        series = tuple(self._with_window(s, files) for s in order_series(files))
        places = {(str(f.instance), f.frame): (i, n) for i, s in enumerate(series) for n, f in enumerate(s.frames)}
        return self._shown.put(key, Shown(series, places, files, now))

    def of_query(self, result: OpenResult) -> Shown:
        """The key slices of a result's query as series."""
        key = ("query", result.id, len(result.slices))
        held = self._shown.get(key)
        if held is not None:
            return held
        there = [s for s in result.slices if s.path.exists()]
        wanted = {(s.path, s.frame) for s in there if not _is_picture(s)}
        pictures = [picture_series(s.path) for s in there if _is_picture(s)]
        series = (*order_series(sorted({path for path, _ in wanted}), only=wanted), *pictures)
        digests = {s.path: hashlib.sha256(f"{result.id}/{s.name}".encode()).hexdigest() for s in there}
        series = tuple(self._with_window(s, digests) for s in series)
        places = {(str(f.path), f.frame): (i, n) for i, s in enumerate(series) for n, f in enumerate(s.frames)}
        return self._shown.put(key, Shown(series, places, digests))

    def _with_window(self, series: DisplaySeries, digests: dict[Path, str]) -> DisplaySeries:
        """With a window where the header says none: from the middle frame's values."""
        if series.window is not None:
            return series
        try:
            at = series.frames[len(series.frames) // 2]
            values = self.values(series, at, digests.get(at.path, ""))
        except DicomnodeError:  # the frame tells it when it is asked for
            return replace(series, window=(128.0, 256.0))
        return replace(series, window=window_of(values))

    def values(self, series: DisplaySeries, at: FrameAt, digest: str) -> Values:
        """Values of a frame, int16 [rows, columns]; ``digest`` of its file, which may be replaced by another."""
        key = (digest, at.path, at.frame, series.scale)
        held = self._frames.get(key)
        if held is not None:
            return held
        if not at.path.exists():
            raise NotFound("the image is no longer here")
        return self._frames.put(key, frame_values(at, series.scale))

    @staticmethod
    def tag(shown: Shown, series: DisplaySeries, at: FrameAt) -> str:
        """Entity tag of a frame's values: the same file, frame and scale give the same bytes."""
        said = f"{shown.digests.get(at.path, '')}/{at.frame}/{series.scale}"
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def prepared(self, at: FrameAt, row: CaseRow | None = None) -> Prepared:
        """The slice as the network saw it when it was embedded; ``row``: of the case, if of one."""
        if not at.path.exists():
            raise NotFound("the image is no longer here")
        if row is not None and row.source == LABELS:
            return prepare_capture(at.path)
        return prepare_picture(at.path) if at.path.suffix == ".png" else prepare_dicom(at.path, at.frame)

    def atlas(self, pictures: Sequence[Grey | None], size: int) -> bytes:
        """Pictures as one WebP; see ``archive.thumbnails.atlas``."""
        return atlas(pictures, size)

    def thumbnail(self, row: CaseRow, instance: PseudoUid, frame: int, path: str | None) -> Grey | None:
        """A case's small picture, made where it is missing; None where the image is gone or holds nothing."""
        held = self._thumbnails.get(row.study, instance, frame)
        if held is not None or path is None:
            return held
        pixels = self._draw(FrameAt(self._objects.path(path), instance, frame), as_it_is=row.source == LABELS)
        if pixels is None:
            return None
        self._thumbnails.put(row.study, instance, frame, pixels)
        kept = self._thumbnails.get(row.study, instance, frame)
        return fitted(pixels) if kept is None else kept

    def query_thumbnail(self, one: OpenSlice) -> Grey | None:
        """The small picture of a query's slice; kept in memory only, it goes when the query does."""
        held = self._queries.get((one.path, one.frame))
        if held is not None:
            return held
        pixels = self._draw(FrameAt(one.path, PseudoUid(""), one.frame))
        return None if pixels is None else self._queries.put((one.path, one.frame), pixels)

    def _draw(self, at: FrameAt, *, as_it_is: bool = False) -> Grey | None:
        try:
            if as_it_is:  # 8 bits, at its own size
                return frame_values(at).astype(np.uint8)
            return np.rint(self.prepared(at).picture * 255).astype(np.uint8)
        except DicomnodeError:
            return None


def _is_picture(one: OpenSlice) -> bool:
    return one.path.suffix == ".png"


def series_json(index: int, series: DisplaySeries, *, outlined: bool) -> dict[str, Any]:
    """A series of ``CaseDetail``."""
    presets = PRESETS if series.is_hounsfield else {}
    return {
        "index": index,
        "description": series.description,
        "modality": series.modality,
        "frames": len(series.frames),
        "rows": series.rows,
        "columns": series.columns,
        "spacing": None if series.spacing is None else list(series.spacing),
        "monochrome1": series.monochrome1,
        "window": list(series.window or (128.0, 256.0)),
        "presets": [{"name": name, "center": c, "width": w} for name, (c, w) in presets.items()],
        "outlined": outlined,
    }


def render_png(values: Values, window: tuple[float, float], *, inverted: bool) -> bytes:
    """Values through a window as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(rendered(values, window, inverted=inverted)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
