"""From a DICOM frame or a plain picture to what the networks take: float32 [224, 224] in 0..1.

CT: padding masked on stored values, modality LUT, fixed lung window (never the header's), body-centred square. Other
modalities: VOI LUT, else the 1st to 99th percentile of the foreground; padded to a square. Plain pictures: grey,
scaled to 224x224 as in training. One frame is decoded at a time. Whatever cannot be used raises ``UnusableImage``
with a stable reason; it never guesses Hounsfield units. Facts: PS3.3 C.7.6.3.1, C.11.1, C.11.2; research of windows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from dicomnode.errors import InputError
from dicomnode.models.frames import FrameHeader, frame_header
from dicomnode.models.headers import READ_ERRORS
from dicomnode.models.pictures import upright_grey

SIDE = 224  # the side at which the shipped networks were trained
LUNG_WINDOW = (-600.0, 1500.0)  # centre, width in HU
SOFT_WINDOW = (40.0, 400.0)  # how people look at a slice without lung; the networks never see it
LUNG_HU = (-950.0, -500.0)
LEAST_LUNG = 0.006  # of what lies between the edges of the body: no slice with lung to be seen has less
EDGE = 2  # pixels
AIR_HU = -1024.0
BODY_HU = -300.0  # over this: body, or table
BODY_BLOCK = 8  # pixels; a block is body when most of it is, so table tops and cables fall away
BODY_SHARE = 0.75
BODY_MARGIN = 1.04
FOREGROUND_PERCENTILES = (1.0, 99.0)
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")
MAX_PIXELS = 100_000_000  # a frame larger than this is not decoded (a mammogram has 20 million)
MASK_SIDE = 1024  # of a mask laid on a frame: finer than 224 pixels can tell anyway
WINDOW_WASHED_OUT = 0.98  # share of pixels at one end: the header's window is of no use

# Part of every pack's identity: change a rule above, change the version.
SPEC: Final[dict[str, Any]] = {
    "version": 1,
    "side": SIDE,
    "ct": {"window": list(LUNG_WINDOW), "crop": "body-square", "margin": BODY_MARGIN},
    "other": {"range": "voi-lut or foreground percentiles", "percentiles": list(FOREGROUND_PERCENTILES), "fit": "pad"},
    "picture": {"fit": "stretch"},
    "network": "per-image standardisation, eps 0.05",
}

Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, may reach outside the image
PixelBox = tuple[int, int, int, int]


class UnusableImage(InputError):
    """A frame or picture that cannot be embedded. ``reason`` is a stable word, ``line`` a sentence for people."""

    code = "unusable-image"

    def __init__(self, reason: str, line: str, *, place: str = "", advice: str = "") -> None:
        super().__init__(line, place=place, advice=advice)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame ready for the network.

    Attributes
    ----------
    pixels : float32 [224, 224] in 0..1.
    box : what of the frame they show: left, top, right, bottom in its pixels; may reach outside.
    frame : rows and columns of the frame.
    notes : what was assumed ("pixel spacing is missing: square pixels assumed").
    soft : CT without lung: the same cut in a window of soft tissue, float32 [224, 224]; else None.
    """

    pixels: Floats
    box: PixelBox
    frame: tuple[int, int]
    notes: tuple[str, ...] = ()
    soft: Floats | None = None

    @property
    def picture(self) -> Floats:
        """What people are shown of it, float32 [224, 224] in 0..1: an abdomen is black and white in a lung window."""
        return self.pixels if self.soft is None else self.soft

    @property
    def place(self) -> tuple[float, float, float, float]:
        """The box in shares of the frame: 0, 0, 1, 1 is all of it."""
        (rows, columns), (left, top, right, bottom) = self.frame, self.box
        return left / columns, top / rows, right / columns, bottom / rows


def prepare_dicom(path: Path, frame: int = 0) -> Prepared:
    """One frame of a DICOM file.

    Parameters
    ----------
    path : file with pixel data.
    frame : index from 0.

    Raises
    ------
    UnusableImage
        Reasons: not-dicom, truncated, no-pixels, undecodable, too-large, no-rescale, not-finite, constant, no-frame.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes odd values in its warnings; they are judged here
        return _prepare(path, frame)


def prepare_dicom_mask(path: Path, mask: npt.NDArray[np.bool_], frame: int = 0) -> npt.NDArray[np.bool_]:
    """A mask drawn on a frame, bool [rows, columns], cut and scaled as ``prepare_dicom`` does with the frame.

    Returns
    -------
    bool [224, 224]
        False outside the frame.

    Raises
    ------
    UnusableImage
        As ``prepare_dicom``.
    InputError
        The mask has not the frame's size.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grey, _, _, box, _ = _placed(path, frame)
    if mask.shape != grey.shape:
        raise InputError(f"is {mask.shape[1]}x{mask.shape[0]}, its image {grey.shape[1]}x{grey.shape[0]}")
    return _resample(mask.astype(np.float32), box, 0.0) > 0.5


def mask_on_frame(
    mask: npt.NDArray[np.bool_], box: PixelBox, frame: tuple[int, int], most: int = MASK_SIDE
) -> npt.NDArray[np.bool_]:
    """The way back: a mask of the prepared slice, bool [224, 224], laid on the frame it was cut from.

    Parameters
    ----------
    box, frame : of ``Prepared``.
    most : the longer side of what is given; a larger frame's mask is that much coarser, in the same shape.

    Returns
    -------
    bool [rows, columns]
        False outside the box.
    """
    (rows, columns), (left, top, right, bottom) = frame, box
    scale = min(1.0, most / max(rows, columns))
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    # Pixel centres of the result to places of the mask (Pillow adds the half pixels itself).
    across, down = mask.shape[1] / (right - left), mask.shape[0] / (bottom - top)
    way = (across * columns / size[0], 0.0, -left * across, 0.0, down * rows / size[1], -top * down)
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    laid = grey.transform(size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR, fillcolor=0)
    return np.asarray(laid) > 127


def _prepare(path: Path, frame: int) -> Prepared:
    grey, head, ds, box, notes = _placed(path, frame)
    unit = _unit(grey, head, ds, notes)
    fill = _hounsfield_unit(np.float32(AIR_HU)) if head.is_hounsfield else np.float32(unit.min())
    soft = None
    if head.is_hounsfield and _lung_share(grey, box) < LEAST_LUNG:
        soft = _resample(_hounsfield_unit(grey, SOFT_WINDOW), box, 0.0)
    return Prepared(_resample(unit, box, float(fill)), box, (grey.shape[0], grey.shape[1]), tuple(notes), soft)


def _placed(path: Path, frame: int) -> tuple[Floats, FrameHeader, Dataset, PixelBox, list[str]]:
    """Real-world values of a frame, its headers, the square that is cut out of it, and notes."""
    ds = read_header(path)
    try:
        head = frame_header(ds, frame)
    except InputError as e:
        raise UnusableImage("no-frame", e.line) from e
    stored = decode(path, ds, head, frame)
    grey, notes = _grey(stored, ds, head)
    spacing = head.spacing
    if spacing is None:
        spacing = (1.0, 1.0)
        notes.append("pixel spacing is missing: square pixels assumed")
    box = body_square(grey, spacing) if head.is_hounsfield else None
    if box is None:
        box = _whole_square(grey.shape, spacing)
    return grey, head, ds, _whole_pixels(box), notes


def prepare_picture(path: Path) -> Prepared:
    """A PNG, JPEG or WebP picture: upright, grey, both sides scaled to 224, as the networks were trained.

    Raises
    ------
    UnusableImage
        Reasons: undecodable, too-large, constant.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large()
            grey = upright_grey(image)
        return whole_picture(_finite(picture_pixels(grey)), grey)
    except Image.DecompressionBombError as e:  # Pillow's own limit, beyond ours
        raise _too_large() from e
    except (OSError, ValueError, SyntaxError) as e:
        raise UnusableImage("undecodable", "the file is not a picture that can be read") from e


def _too_large() -> UnusableImage:
    return UnusableImage("too-large", "the picture has more than 100 million pixels")


def whole_picture(pixels: Floats, image: Image.Image) -> Prepared:
    """Pixels that show all of a picture, as ``picture_pixels`` gives them."""
    return Prepared(pixels, (0, 0, image.width, image.height), (image.height, image.width))


def picture_pixels(image: Image.Image) -> Floats:
    """float32 [224, 224] in 0..1 of an open picture; 16-bit pictures are scaled by their own range."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(((values - low) / ((high - low) or 1.0) * 255).astype(np.uint8))
    grey = image.convert("L")
    how = Image.Resampling.BOX if grey.width > 2 * SIDE else Image.Resampling.BILINEAR
    return np.asarray(grey.resize((SIDE, SIDE), how), dtype=np.float32) / np.float32(255)


def is_dicom(path: Path) -> bool:
    """Whether the file carries the DICOM preamble (PS3.10 7.1)."""
    try:
        with path.open("rb") as f:
            return f.read(132)[128:] == b"DICM"
    except (OSError, ValueError):  # a path with a NUL byte is a ValueError
        return False


def prepare_file(path: Path) -> Prepared:
    """A DICOM file's first frame or a plain picture, whichever the file is."""
    return prepare_dicom(path) if is_dicom(path) else prepare_picture(path)


def read_header(path: Path) -> Dataset:
    """Everything before the pixels.

    Raises
    ------
    UnusableImage
        Reasons: not-dicom, truncated.
    """
    try:
        return dcmread(path, stop_before_pixels=True)
    except InvalidDicomError as e:
        raise UnusableImage("not-dicom", "the file is not a DICOM file") from e
    except READ_ERRORS as e:
        raise UnusableImage("truncated", "the file's header cannot be read to its end") from e


def decode(path: Path, ds: Dataset, head: FrameHeader, frame: int) -> npt.NDArray[Any]:
    """Stored values of one frame, [rows, columns] or [rows, columns, 3] (YBR is returned as RGB).

    Raises
    ------
    UnusableImage
        Reasons: no-pixels, too-large, undecodable.
    """
    if head.rows <= 0 or head.columns <= 0:
        raise UnusableImage("no-pixels", "the object holds no image")
    if head.rows * head.columns > MAX_PIXELS:
        raise UnusableImage("too-large", "the frame has more than 100 million pixels")
    try:
        return pixel_array(path, index=frame)
    except AttributeError as e:
        raise UnusableImage("no-pixels", "the object holds no pixel data, or lacks what describes it") from e
    except Exception as e:  # five decoders, each with its own errors; the class name tells which
        syntax = ds.file_meta.get("TransferSyntaxUID") if hasattr(ds, "file_meta") else None
        name = getattr(syntax, "name", "unknown transfer syntax")
        raise UnusableImage("undecodable", f"the pixel data cannot be decoded ({name}, {type(e).__name__})") from e


def _grey(stored: npt.NDArray[Any], ds: Dataset, head: FrameHeader) -> tuple[Floats, list[str]]:
    """Real-world values: luminance of colour, else modality LUT of stored values with padding set to background."""
    notes: list[str] = []
    if head.photometric == "PALETTE COLOR":
        try:
            stored = apply_color_lut(stored, ds)
        except (AttributeError, ValueError, KeyError) as e:
            raise UnusableImage("undecodable", "the palette of the image cannot be applied") from e
    if stored.ndim == 3:
        weights = np.array(LUMINANCE, dtype=np.float32)
        return _finite(stored[..., :3].astype(np.float32) @ weights), notes
    if stored.ndim != 2:
        raise UnusableImage("undecodable", f"a frame has {stored.ndim} dimensions")
    if head.modality == "CT" and head.lacks_rescale and head.bits_stored > 8:
        raise UnusableImage("no-rescale", "a CT image without rescale slope and intercept: Hounsfield units unknown")
    padding = padding_mask(stored, ds)
    if "ModalityLUTSequence" in ds:
        values = apply_modality_lut(stored, ds).astype(np.float32)
    else:
        values = stored.astype(np.float32) * np.float32(head.slope) + np.float32(head.intercept)
    if padding is not None:
        if padding.all():
            raise UnusableImage("constant", "every pixel is padding")
        values[padding] = AIR_HU if head.is_hounsfield else values[~padding].min()
    return _finite(values, constant_ok=False), notes


def padding_mask(stored: npt.NDArray[Any], ds: Dataset) -> npt.NDArray[np.bool_] | None:
    """True where a stored value is padding (PS3.3 C.7.5.1.1.2); None without PixelPaddingValue."""
    value, limit = ds.get("PixelPaddingValue"), ds.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    limit = limit if isinstance(limit, int) else value
    if ds.get("PixelRepresentation") == 1:  # written as US by many although pixels are signed
        bits = int(ds.get("BitsAllocated", 16))
        value, limit = ((v - (1 << bits)) if v >= 1 << (bits - 1) else v for v in (value, limit))
    low, high = min(value, limit), max(value, limit)
    mask: npt.NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _unit(values: Floats, head: FrameHeader, ds: Dataset, notes: list[str]) -> Floats:
    """Values to 0..1: the fixed window for CT, else VOI or percentiles; MONOCHROME1 inverted once."""
    if head.is_hounsfield:
        return _hounsfield_unit(values)
    if head.photometric == "PALETTE COLOR":  # palettes hold 8 or 16 bits, whatever their descriptor says
        return _scaled(values, 0.0, 255.0 if float(values.max()) <= 255 else 65535.0)
    if head.samples > 1:
        return _scaled(values, 0.0, float(2**head.bits_stored - 1))
    unit = _voi(values, head, ds)
    if unit is None:
        unit = _percentiles(values)
        notes.append("no usable window in the header: foreground percentiles used")
    # PresentationLUTShape INVERSE goes with MONOCHROME1 and says the same thing again (PS3.3 C.11.6.1.2): the
    # photometric interpretation alone decides, so that nothing is inverted twice.
    return (1 - unit) if head.photometric == "MONOCHROME1" else unit


def _lung_share(hounsfield: Floats, box: PixelBox) -> float:
    """Share of the pixels between the body's edges that are as dense as aerated lung."""
    left, top, right, bottom = box
    cut = hounsfield[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    body, lung = cut > BODY_HU, (cut > LUNG_HU[0]) & (cut < LUNG_HU[1])
    inside, deep = np.ones_like(body), lung.copy()
    for axis in (0, 1):
        seen = np.maximum.accumulate(body, axis)
        inside &= seen & np.flip(np.maximum.accumulate(np.flip(body, axis), axis), axis)
        for step in (-EDGE, EDGE):  # where body meets air, a line is as dense as lung, but thin
            deep &= np.roll(lung, step, axis)
    return float((deep & inside).sum() / max(1, inside.sum()))


def _hounsfield_unit(values: Floats | np.float32, window: tuple[float, float] = LUNG_WINDOW) -> Floats:
    centre, width = window
    return np.asarray(((values - (centre - width / 2)) / width).clip(0, 1), dtype=np.float32)


def _voi(values: Floats, head: FrameHeader, ds: Dataset) -> Floats | None:
    """0..1 by the header's VOI LUT or first window (PS3.3 C.11.2.1); None where it is absent or washes out."""
    if "VOILUTSequence" in ds and head.window is None:
        try:
            shown = apply_voi_lut(values.astype(np.int32), ds).astype(np.float32)
        except (AttributeError, ValueError, KeyError, IndexError, TypeError):
            return None
        unit = _scaled(shown, float(shown.min()), float(shown.max()))
    elif head.window is not None:
        centre, width = head.window
        if head.voi_function == "SIGMOID":
            unit = (1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50)))).astype(np.float32)
        elif head.voi_function == "LINEAR_EXACT":
            unit = ((values - centre) / width + 0.5).clip(0, 1)
        else:
            if width <= 1:
                return None
            unit = ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    else:
        return None
    washed = max(float((unit <= 0).mean()), float((unit >= 1).mean()))
    return None if washed > WINDOW_WASHED_OUT else unit.astype(np.float32)


def _percentiles(values: Floats) -> Floats:
    """0..1 by the 1st and 99th percentile of the foreground (values over the darkest tenth of the range)."""
    low, high = float(values.min()), float(values.max())
    foreground = values[values > low + 0.1 * (high - low)]
    source = foreground if foreground.size > values.size // 100 else values
    a, b = (float(v) for v in np.percentile(source, FOREGROUND_PERCENTILES))
    return _scaled(values, min(a, low + 0.1 * (high - low)), b if b > a else high)


def _scaled(values: Floats, low: float, high: float) -> Floats:
    return ((values - low) / ((high - low) or 1.0)).clip(0, 1).astype(np.float32)


def _finite(values: Floats, *, constant_ok: bool = False) -> Floats:
    if not np.isfinite(values).all():
        raise UnusableImage("not-finite", "the image holds values that are not numbers")
    if not constant_ok and float(values.max()) == float(values.min()):
        raise UnusableImage("constant", "every pixel has the same value")
    return values


def body_square(hounsfield: Floats, spacing: tuple[float, float]) -> Box | None:
    """The square (in millimetres) around the body, as pixel coordinates; None where no body is found.

    Parameters
    ----------
    hounsfield : [rows, columns] in HU.
    spacing : row and column spacing in mm (or 1, 1).
    """
    b = BODY_BLOCK
    rows, columns = (n // b * b for n in hounsfield.shape)
    if rows < 4 * b or columns < 4 * b:
        return None
    body = hounsfield[:rows, :columns] > BODY_HU
    blocks = body.reshape(rows // b, b, columns // b, b).mean((1, 3)) > BODY_SHARE
    # Blocks find the body coarsely, its own pixels in and beside them find the edge.
    near = np.pad(blocks, 1)
    near = near[1:-1, 1:-1] | near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]
    body &= np.repeat(np.repeat(near, b, axis=0), b, axis=1)
    ys, xs = np.flatnonzero(body.sum(1) >= 2 * b), np.flatnonzero(body.sum(0) >= 2 * b)
    if not len(ys) or not len(xs):
        return None
    top, bottom, left, right = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
    side = max((bottom - top) * spacing[0], (right - left) * spacing[1]) * BODY_MARGIN
    if side < 0.25 * max(rows * spacing[0], columns * spacing[1]):
        return None  # a phantom's corner or noise, not a body
    return _square(((left + right) / 2, (top + bottom) / 2), side, spacing)


def _whole_square(shape: tuple[int, ...], spacing: tuple[float, float]) -> Box:
    rows, columns = shape[:2]
    return _square((columns / 2, rows / 2), max(rows * spacing[0], columns * spacing[1]), spacing)


def _square(centre: tuple[float, float], side: float, spacing: tuple[float, float]) -> Box:
    half_x, half_y = side / spacing[1] / 2, side / spacing[0] / 2
    return centre[0] - half_x, centre[1] - half_y, centre[0] + half_x, centre[1] + half_y


def _whole_pixels(box: Box) -> PixelBox:
    left, top = (int(np.floor(v)) for v in box[:2])
    right, bottom = (max(int(np.ceil(v)), low + 1) for v, low in zip(box[2:], (left, top), strict=True))
    return left, top, right, bottom


def _resample(unit: Floats, box: PixelBox, fill: float) -> Floats:
    """Cut the box (``fill`` where it reaches outside) and scale it to 224x224 with an anti-aliased filter."""
    rows, columns = unit.shape
    left, top, right, bottom = box
    cut = np.full((bottom - top, right - left), fill, dtype=np.float32)
    y0, y1, x0, x1 = max(top, 0), min(bottom, rows), max(left, 0), min(right, columns)
    cut[y0 - top : y1 - top, x0 - left : x1 - left] = unit[y0:y1, x0:x1]
    scaled = Image.fromarray(cut).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float32).clip(0, 1)
