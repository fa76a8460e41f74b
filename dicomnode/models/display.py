"""Series as people look at them: frames in the order of their position, and the values of one frame.

Values are those after the modality LUT (Hounsfield units for CT) as int16, so that window and level are left to the
viewer; colour becomes luminance. Works on de-identified files; loads no network. Facts: PS3.3 C.7.6.2 (geometry),
C.11.1 (modality LUT), C.11.2 (window); presets as radiology texts give them.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from dicomnode.domain import PseudoUid
from dicomnode.errors import InputError
from dicomnode.models.frames import FrameHeader, frame_header, number_of_frames
from dicomnode.models.headers import NO_IMAGE_MODALITIES, READ_ERRORS, modality_of
from dicomnode.models.preprocess import LUMINANCE, UnusableImage, decode, read_header

# centre, width in HU
PRESETS: Final[dict[str, tuple[float, float]]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
LOW, HIGH = -32768, 32767  # of int16
COARSE = 1024.0  # values that stay below this and have fractions are stretched, so that their steps do not show
STRETCHED = 16384.0
PERCENTILES = (1.0, 99.0)  # of a frame that says no window

Values = npt.NDArray[np.int16]
_GEOMETRY = [
    "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "InstanceNumber",
    "AcquisitionNumber", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsStored", "PixelRepresentation", "ImageType", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
    "ImagePositionPatient", "ImageOrientationPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FrameAt:
    """Where a frame is: its file, the instance, and the frame in it, from 0."""

    path: Path
    instance: PseudoUid
    frame: int


@dataclass(frozen=True, slots=True)
class DisplaySeries:
    """Frames of one series and size, head (or last along the normal) first.

    Attributes
    ----------
    spacing : row and column spacing in mm, None where not known.
    window : centre and width for the values of ``frame_values``; None: ask ``window_of`` a frame.
    scale : by which values are multiplied to fit int16; 1 for CT.
    """

    uid: str
    number: int
    description: str
    modality: str
    rows: int
    columns: int
    spacing: tuple[float, float] | None
    monochrome1: bool
    window: tuple[float, float] | None
    is_hounsfield: bool
    scale: float
    frames: tuple[FrameAt, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    at: FrameAt
    head: FrameHeader
    ds: Dataset

    @property
    def order(self) -> tuple[Any, ...]:
        """Acquisition, instance number, file, frame: where there is no geometry."""
        numbers = (_whole(self.ds.get("AcquisitionNumber")), _whole(self.ds.get("InstanceNumber")))
        return (*numbers, self.at.path.name, self.at.frame)


def order_series(paths: Iterable[Path], only: set[tuple[Path, int]] | None = None) -> tuple[DisplaySeries, ...]:
    """The image series among de-identified files, by series number. What shows no image or is damaged is left out.

    Parameters
    ----------
    paths : files of one study.
    only : (file, frame) that are wanted; None: all.
    """
    groups: dict[tuple[str, int, int], list[_Seen]] = defaultdict(list)
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are judged here; the warning may quote them
            try:
                ds = dcmread(path, stop_before_pixels=True, specific_tags=_GEOMETRY)
                seen = [_seen(path, ds, n) for n in range(number_of_frames(ds)) if only is None or (path, n) in only]
            except (InvalidDicomError, *READ_ERRORS, InputError):
                continue
        if modality_of(ds) in NO_IMAGE_MODALITIES:
            continue
        for one in seen:
            if one.head.rows > 0 and one.head.columns > 0:
                groups[str(ds.get("SeriesInstanceUID") or ""), one.head.rows, one.head.columns].append(one)
    made = [_series(uid, group) for (uid, _, _), group in groups.items()]
    return tuple(sorted(made, key=lambda s: (s.number, s.uid, -len(s.frames), s.rows, s.columns)))


def _seen(path: Path, ds: Dataset, frame: int) -> _Seen:
    at = FrameAt(path, PseudoUid(str(ds.get("SOPInstanceUID") or "")), frame)
    return _Seen(at, frame_header(ds, frame), ds)


def _series(uid: str, group: list[_Seen]) -> DisplaySeries:
    ordered = _in_order(group)
    middle = ordered[len(ordered) // 2]
    head = middle.head
    scale = 1.0 if head.is_hounsfield else _scale(ordered)
    return DisplaySeries(
        uid=uid,
        number=_whole(middle.ds.get("SeriesNumber")),
        description=str(middle.ds.get("SeriesDescription") or "").strip(),
        modality=head.modality,
        rows=head.rows,
        columns=head.columns,
        spacing=head.spacing,
        monochrome1=head.photometric == "MONOCHROME1",
        window=_window(head, scale),
        is_hounsfield=head.is_hounsfield,
        scale=scale,
        frames=tuple(s.at for s in ordered),
    )


def _in_order(group: list[_Seen]) -> list[_Seen]:
    """By orientation and from the head down; by number where a frame has no place."""
    placed: list[tuple[tuple[float, ...], float, tuple[Any, ...], _Seen]] = []
    for one in group:
        normal, position = one.head.normal, one.head.position
        if normal is None or position is None:
            return sorted(group, key=lambda s: s.order)
        # Rounded to about 6 degrees: slices of a stack share one orientation but for noise.
        plane = tuple(round(float(v), 1) + 0.0 for v in normal)
        placed.append((plane, -round(float(position @ normal), 3), one.order, one))
    return [p[3] for p in sorted(placed, key=lambda p: p[:3])]


def _scale(ordered: list[_Seen]) -> float:
    """So that no frame of the series leaves int16, and that fractions are not lost."""
    peak, fractions = 0.0, False
    for one in ordered:
        low, high = _range(one)
        peak = max(peak, abs(low), abs(high))
        fractions = fractions or one.head.slope % 1 != 0
    if peak > HIGH:
        return HIGH / peak
    return STRETCHED / peak if fractions and 0 < peak < COARSE else 1.0


def _range(one: _Seen) -> tuple[float, float]:
    """Smallest and largest value that the header allows, after rescale."""
    bits = min(max(one.head.bits_stored, 1), 32)
    if "ModalityLUTSequence" in one.ds:
        return 0.0, 65535.0  # PS3.3 C.11.1.1: entries of at most 16 bits
    if one.ds.get("PixelRepresentation") == 1:
        ends = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    else:
        ends = (0.0, 2.0**bits - 1)
    return ends[0] * one.head.slope + one.head.intercept, ends[1] * one.head.slope + one.head.intercept


def _window(head: FrameHeader, scale: float) -> tuple[float, float] | None:
    if head.samples > 1 or head.photometric == "PALETTE COLOR" or (head.bits_stored <= 8 and head.window is None):
        top = 255.0 if head.bits_stored <= 8 or head.photometric == "PALETTE COLOR" else (2.0**head.bits_stored - 1)
        return top * scale / 2, top * scale
    if head.window is not None:
        return head.window[0] * scale, max(head.window[1] * scale, 1.0)
    return PRESETS["lung"] if head.is_hounsfield else None


def picture_series(path: Path) -> DisplaySeries:
    """A grey picture as a series of one frame.

    Raises
    ------
    UnusableImage
        It cannot be read.
    """
    with _open(path) as image:
        columns, rows = image.size
    frames = (FrameAt(path, PseudoUid(""), 0),)
    return DisplaySeries("", 1, "", "", rows, columns, None, False, (127.5, 255.0), False, 1.0, frames)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=("PNG",))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise UnusableImage("undecodable", "the picture cannot be read") from exc


def frame_values(at: FrameAt, scale: float = 1.0) -> Values:
    """Values of one frame, int16 [rows, columns], clipped to what int16 holds.

    Raises
    ------
    UnusableImage
        Reasons: not-dicom, truncated, no-pixels, undecodable, too-large, no-frame.
    """
    if at.path.suffix == ".png":
        with _open(at.path) as image:
            return np.asarray(image.convert("L"), dtype=np.int16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = read_header(at.path)
        try:
            head = frame_header(ds, at.frame)
        except InputError as exc:
            raise UnusableImage("no-frame", exc.line) from exc
        values = _values(decode(at.path, ds, head, at.frame), ds, head)
    scaled = values if scale == 1.0 else values * np.float32(scale)
    clipped: Values = np.rint(np.nan_to_num(scaled)).clip(LOW, HIGH).astype("<i2")
    return clipped


def _values(stored: npt.NDArray[Any], ds: Dataset, head: FrameHeader) -> npt.NDArray[np.float32]:
    if head.photometric == "PALETTE COLOR":
        try:
            stored = apply_color_lut(stored, ds)
        except (AttributeError, ValueError, KeyError) as exc:
            raise UnusableImage("undecodable", "the palette of the image cannot be applied") from exc
        if stored.dtype == np.uint16 and stored.max(initial=0) > 255:
            stored = stored >> 8
    if stored.ndim == 3:
        return np.asarray(stored[..., :3].astype(np.float32) @ np.array(LUMINANCE, dtype=np.float32))
    if stored.ndim != 2:
        raise UnusableImage("undecodable", f"a frame has {stored.ndim} dimensions")
    if "ModalityLUTSequence" in ds:
        return np.asarray(apply_modality_lut(stored, ds), dtype=np.float32)
    return np.asarray(stored.astype(np.float32) * np.float32(head.slope) + np.float32(head.intercept))


def window_of(values: Values) -> tuple[float, float]:
    """Centre and width that show a frame which says no window: the 1st to 99th percentile."""
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return (low + high) / 2, max(high - low, 1.0)


def rendered(values: Values, window: tuple[float, float], *, inverted: bool = False) -> npt.NDArray[np.uint8]:
    """uint8 [rows, columns] by a window (PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."""
    centre, width = window
    unit = ((values.astype(np.float32) - np.float32(centre)) / np.float32(max(width, 1e-3)) + 0.5).clip(0, 1)
    grey: npt.NDArray[np.uint8] = np.rint((1 - unit if inverted else unit) * 255).astype(np.uint8)
    return grey


def _whole(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0
