"""What the header says about one frame: geometry, rescale, window; per-frame functional groups override shared ones.

Reads headers only, never pixels. A single-frame object is a frame whose attributes stand at the top. Facts: PS3.3
C.7.6.2 (image plane), C.7.6.16 (multi-frame functional groups), C.11.1 and C.11.2 (LUTs).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicomnode.errors import InputError

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """One frame's attributes, checked for what is absurd; None where absent or unusable.

    Attributes
    ----------
    position : ImagePositionPatient, mm. ``orientation``: row and column direction, unit vectors.
    spacing : row and column spacing, mm.
    window : first centre and width. ``lacks_rescale``: neither slope and intercept nor a modality LUT.
    """

    modality: str
    photometric: str
    samples: int
    rows: int
    columns: int
    bits_stored: int
    image_type: tuple[str, ...]
    slope: float
    intercept: float
    lacks_rescale: bool
    spacing: tuple[float, float] | None
    position: Vector | None
    orientation: tuple[Vector, Vector] | None
    window: tuple[float, float] | None
    voi_function: str

    @property
    def is_hounsfield(self) -> bool:
        """Whether values after the modality LUT are Hounsfield units."""
        return self.modality == "CT" and not self.lacks_rescale and self.samples == 1

    @property
    def normal(self) -> Vector | None:
        """Row x column, turned so that its largest component is positive (for axial slices: towards the head)."""
        if self.orientation is None:
            return None
        n = np.cross(*self.orientation)
        return -n if n[int(np.abs(n).argmax())] < 0 else n


def number_of_frames(ds: Dataset) -> int:
    """NumberOfFrames, 1 where absent or absurd."""
    value = ds.get("NumberOfFrames")
    try:
        return max(int(value), 1) if value is not None else 1
    except (TypeError, ValueError):
        return 1


def frame_header(ds: Dataset, frame: int = 0) -> FrameHeader:
    """The attributes of one frame.

    Raises
    ------
    InputError
        The object has no such frame.
    """
    if not 0 <= frame < number_of_frames(ds):
        raise InputError(f"has no frame {frame + 1}: it has {number_of_frames(ds)}")
    scopes = list(_scopes(ds, frame))
    slope, intercept = _number(scopes, "RescaleSlope"), _number(scopes, "RescaleIntercept")
    lacks = slope is None or intercept is None or slope == 0
    centre, width = _number(scopes, "WindowCenter"), _number(scopes, "WindowWidth")
    window = (centre, width) if centre is not None and width is not None and width > 0 else None
    return FrameHeader(
        modality=str(ds.get("Modality") or ""),
        photometric=str(ds.get("PhotometricInterpretation") or "").strip().upper(),
        samples=_int(ds, "SamplesPerPixel", 1),
        rows=_int(ds, "Rows", 0),
        columns=_int(ds, "Columns", 0),
        bits_stored=_int(ds, "BitsStored", 16),
        image_type=_image_type(ds, scopes),
        slope=1.0 if lacks or slope is None else slope,
        intercept=0.0 if lacks or intercept is None else intercept,
        lacks_rescale=lacks and "ModalityLUTSequence" not in ds,
        spacing=_spacing(scopes),
        position=_vector(scopes, "ImagePositionPatient", 3),
        orientation=_orientation(scopes),
        window=window,
        voi_function=str(_first(scopes, "VOILUTFunction") or "LINEAR").strip().upper(),
    )


def _scopes(ds: Dataset, frame: int) -> Iterator[Dataset]:
    """Where an attribute of this frame may stand, the most specific first."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence")
    if per_frame and frame < len(per_frame):
        yield from _items(per_frame[frame])
    shared = ds.get("SharedFunctionalGroupsSequence")
    if shared:
        yield from _items(shared[0])
    yield ds


def _items(group: Dataset) -> Iterator[Dataset]:
    for element in group:
        if element.VR == "SQ" and element.value and not element.tag.is_private:
            yield element.value[0]


def _first(scopes: Sequence[Dataset], keyword: str) -> object:
    for scope in scopes:
        value: object = scope.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _number(scopes: Sequence[Dataset], keyword: str) -> float | None:
    """The first value as a finite number, else None."""
    value = _first(scopes, keyword)
    numbers = _floats(value)
    return numbers[0] if numbers else None


def _floats(value: object) -> list[float]:
    items = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
    out: list[float] = []
    for item in items:
        try:
            number = float(item)  # type: ignore[arg-type]  # DS, IS, FD or a wrong string: the except decides
        except (TypeError, ValueError):
            return []
        if not math.isfinite(number):
            return []
        out.append(number)
    return out


def _vector(scopes: Sequence[Dataset], keyword: str, length: int) -> Vector | None:
    numbers = _floats(_first(scopes, keyword))
    return np.array(numbers, dtype=np.float64) if len(numbers) == length else None


def _orientation(scopes: Sequence[Dataset]) -> tuple[Vector, Vector] | None:
    both = _vector(scopes, "ImageOrientationPatient", 6)
    if both is None:
        return None
    row, column = both[:3], both[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if min(lengths) < 0.5 or abs(float(row @ column)) > 0.1:  # not two directions at a right angle
        return None
    return row / lengths[0], column / lengths[1]


def _spacing(scopes: Sequence[Dataset]) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        numbers = _floats(_first(scopes, keyword))
        if len(numbers) == 2 and min(numbers) > 0 and max(numbers) / min(numbers) < 20:
            return numbers[0], numbers[1]
    return None


def _image_type(ds: Dataset, scopes: Sequence[Dataset]) -> tuple[str, ...]:
    """ImageType, or FrameType of an enhanced object (which says it for the frame)."""
    value = _first(scopes[:-1], "FrameType") or ds.get("ImageType") or ()
    parts = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
    return tuple(str(p).strip().upper() for p in parts)


def _int(ds: Dataset, keyword: str, default: int) -> int:
    try:
        return int(ds.get(keyword, default))
    except (TypeError, ValueError):
        return default
