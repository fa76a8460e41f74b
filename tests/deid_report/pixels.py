"""Text planted in pixels, and the judge of what became of it: pixels_hidden and pixels_retained.

Real images of the packages, cut where they show text of their own, stored as objects of twelve modalities. Each gets
two lines of one invented identity, in fonts and looks drawn with a seed. A line is hidden where the place of its
strokes was overwritten and a reader makes out none of its words. Nothing here imports dicomnode: the reader is the
recogniser as its makers deliver it, on the line's own place, upright, enlarged, its contrast stretched and inverted.
"""

from __future__ import annotations

import difflib
import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.testing.burned_in import stamp

from .identities import Identity, Names, people
from .objects import package_files

LINES = 2  # of text in an image
COVERED = 0.95  # share of a line's strokes that must have been overwritten
LIKE, WORD = 0.8, 3  # how alike a reading must be to a planted word, and its letters
SIDE = 512  # pixels; larger images are made smaller
CONTRAST = 40  # grey levels between strokes and what lies under them, below which nothing is planted
_AROUND = 1.5  # heights of a line that may be overwritten around it
# Rules were tuned on DejaVu, Pillow's bitmaps and TUNE_FONTS; figures come from REPORT_FONTS.
TUNE_FONTS = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf")
REPORT_FONTS = ("cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmb10.ttf", "cmti10.ttf", "pillow")
LOOKS = ("light", "dark", "inverse", "semi-transparent", "standing", "standing downwards", "upside down",
         "over anatomy", "small", "large")  # fmt: skip
_TURNS = {"standing": 1, "standing downwards": 3, "upside down": 2}
# File of the packages -> the part without text: top, bottom, left, right.
BACKGROUNDS: dict[str, tuple[int, int, int, int] | None] = {
    "693_UNCR.dcm": None, "MR2_UNCR.dcm": None, "MR-SIEMENS-DICOM-WithOverlays.dcm": None, "RG1_UNCR.dcm": None,
    "RG3_UNCR.dcm": None, "US1_UNCI.dcm": (118, 332, 60, 590), "GREYSCALE_IMAGE.dcm": (90, 700, 140, 880),
}  # fmt: skip
# Modality -> SOP Class, backgrounds, how the pixels are stored.
MODALITIES: dict[str, tuple[str, tuple[int, ...], str]] = {
    "US": ("1.2.840.10008.5.1.4.1.1.6.1", (5, 6), "rgb"), "OT": ("1.2.840.10008.5.1.4.1.1.7", (0, 1, 5), "grey8"),
    "CT": ("1.2.840.10008.5.1.4.1.1.7", (0,), "grey8"), "MR": ("1.2.840.10008.5.1.4.1.1.4", (1, 2), "grey12"),
    "CR": ("1.2.840.10008.5.1.4.1.1.1", (3, 4), "inverse12"), "DX": ("1.2.840.10008.5.1.4.1.1.1.1", (3, 4), "grey12"),
    "MG": ("1.2.840.10008.5.1.4.1.1.1.2", (4,), "inverse12"), "RF": ("1.2.840.10008.5.1.4.1.1.12.2", (3,), "grey8"),
    "XA": ("1.2.840.10008.5.1.4.1.1.12.1", (3, 4), "grey8"), "IO": ("1.2.840.10008.5.1.4.1.1.1.3", (4,), "grey8"),
    "PX": ("1.2.840.10008.5.1.4.1.1.1.1", (3,), "grey12"), "ES": ("1.2.840.10008.5.1.4.1.1.77.1.1", (5, 2), "rgb"),
}  # fmt: skip
Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """A planted line: ``box`` is top, left, bottom, right, ``strokes`` the pixels of its letters, in quarter turns."""

    text: str
    look: str
    font: str
    turn: int
    height: int
    box: tuple[int, int, int, int]
    strokes: NDArray[np.bool_]


@dataclass(frozen=True)
class PlantedImage:
    """One file with the lines in its pixels."""

    file: Path
    modality: str
    lines: tuple[Line, ...]
    number: int

    @property
    def title(self) -> str:
        return f"{self.modality} pixels #{self.number:03d}"


def plant_images(
    folder: Path, names: Names, count: int, seed: int, fonts: tuple[str, ...] = TUNE_FONTS
) -> list[PlantedImage]:
    """``count`` images in ``folder``, the modalities and looks in turn; the same for the same seed."""
    backgrounds = [_background(name, part) for name, part in BACKGROUNDS.items()]
    patients = people(names, count, seed + 1)
    planted = []
    for number in range(count):
        rng = random.Random(seed * 1000 + number)
        modality = list(MODALITIES)[number % len(MODALITIES)]
        sop_class, choice, form = MODALITIES[modality]
        picture, lines = backgrounds[rng.choice(choice)].copy(), []
        for turn in range(LINES):
            look = LOOKS[(number * LINES + turn + number // len(MODALITIES)) % len(LOOKS)]
            line, picture = _plant(picture, lines, patients[number], look, fonts, rng)
            lines += [line] if line else []
        file = folder / f"pixels-{number:03d}.dcm"
        _write(file, picture, form, modality, sop_class, patients[number], f"1.2.826.0.1.3680043.9996.{seed}.{number}")
        planted.append(PlantedImage(file, modality, tuple(lines), number))
    return planted


def _background(name: str, part: tuple[int, int, int, int] | None) -> Grey:
    ds = dcmread(package_files()[name])
    values = ds.pixel_array.astype(np.float64)
    values = values.mean(axis=2) if values.ndim == 3 else values
    if part:
        values = values[part[0] : part[1], part[2] : part[3]]
    low, high = np.percentile(values, (0.5, 99.5))
    grey = np.clip((values - low) * 255 / (high - low), 0, 255).astype(np.uint8)
    picture = Image.fromarray(255 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _text(who: Identity, rng: random.Random) -> str:
    """As consoles write it."""
    secret = who.secrets
    return rng.choice([
        f"{secret['surname']}, {who.given}", f"{secret['surname'].upper()} {who.given.upper()}",
        f"ID {secret['patient id']}", f"{who.given} {who.birth:%d.%m.%Y}", secret["hospital"], f"Dr {who.physician[0]}",
        f"Acc: {secret['accession number']}", f"{secret['surname']} {who.study:%Y-%m-%d}",
    ])  # fmt: skip


def _plant(
    picture: Grey, before: list[Line], who: Identity, look: str, fonts: tuple[str, ...], rng: random.Random
) -> tuple[Line | None, Grey]:
    """The picture with one more line, tried at fifty places; None where none of them would show it."""
    turn = _TURNS.get(look, 0)
    for _ in range(50):
        size = {"small": 12, "large": 36}.get(look) or rng.randrange(14, 26)
        text, font = _text(who, rng), rng.choice(fonts)
        alpha = np.rot90(stamp(text, font, size), turn)
        rows, columns = picture.shape[0] - alpha.shape[0] - 8, picture.shape[1] - alpha.shape[1] - 8
        if min(rows, columns) < 1:
            continue
        top, left = rng.randrange(rows), rng.randrange(columns)
        if look == "over anatomy":
            top = rows // 4 + rng.randrange(rows // 2 + 1)
        elif turn % 2 == 0:
            top = rng.choice([rng.randrange(min(24, rows)), rows - 1 - rng.randrange(min(24, rows))])
        box = (top, left, top + alpha.shape[0] + 8, left + alpha.shape[1] + 8)
        if any(_near(box, line.box) for line in before):
            continue
        if drawn := _drawn(picture, np.pad(alpha, 4), box, look):
            height = alpha.shape[1] if turn % 2 else alpha.shape[0]
            return Line(text, look, font, turn, height, box, drawn[1]), drawn[0]
    return None, picture


def _near(one: tuple[int, ...], other: tuple[int, ...], by: int = 24) -> bool:
    above, beside = one[2] + by < other[0] or other[2] + by < one[0], one[3] + by < other[1] or other[3] + by < one[1]
    return not (above or beside)


def _drawn(
    picture: Grey, alpha: NDArray[np.float64], box: tuple[int, int, int, int], look: str
) -> tuple[Grey, NDArray[np.bool_]] | None:
    window = (slice(box[0], box[2]), slice(box[1], box[3]))
    out = picture.astype(np.float64)
    if look == "inverse":
        out[window] = 230
    under = out[window].copy()
    ink, opacity = (15.0 if look in ("dark", "inverse") else 250.0), (0.5 if look == "semi-transparent" else 1.0)
    out[window] = under * (1 - alpha * opacity) + ink * alpha * opacity
    inside = alpha > 0.5
    contrast = np.abs(out[window] - under)[inside]
    if contrast.mean() < CONTRAST or (contrast < CONTRAST / 2).mean() > 0.15:
        return None
    strokes = np.zeros(picture.shape, bool)
    strokes[window] = inside
    return np.round(out).astype(np.uint8), strokes


def _write(file: Path, picture: Grey, form: str, modality: str, sop_class: str, who: Identity, uid: str) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, f"{uid}.3", modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    ds.PatientName, ds.PatientID, ds.AccessionNumber = who.name, who.patient_id, who.accession
    ds.PatientBirthDate, ds.StudyDate = f"{who.birth:%Y%m%d}", f"{who.study:%Y%m%d}"
    ds.ImageType, ds.SpecificCharacterSet = ["DERIVED", "SECONDARY"], "ISO_IR 192"
    (ds.Rows, ds.Columns), ds.PixelRepresentation = picture.shape, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation, bits = 1, "MONOCHROME2", 8
    values: NDArray[Any] = picture
    if form == "rgb":
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        values = np.repeat(picture[..., None], 3, axis=2)
    elif form != "grey8":
        bits, values = 12, np.round(picture.astype(np.float64) * (4095 / 255)).astype("<u2")
        if form == "inverse12":
            ds.PhotometricInterpretation, values = "MONOCHROME1", 4095 - values
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (8 if bits == 8 else 16), bits, bits - 1
    data = values.tobytes()
    ds.add_new(0x7FE00010, "OB" if bits == 8 else "OW", data + b"\0" * (len(data) % 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(file, ds, enforce_file_format=True)


# the judge


def judged_lines(planted: PlantedImage, result: Path) -> Iterator[tuple[Line, str]]:
    """Each line with what is wrong, or an empty string."""
    before, after = dcmread(planted.file).pixel_array, dcmread(result).pixel_array
    changed = (before != after).reshape(*before.shape[:2], -1).any(axis=2)
    lowest = _blank(after[changed])
    for line in planted.lines:
        gone = float((changed | lowest(after))[line.strokes].mean())
        words = _read(_shown(after, planted), line) if gone < 1 else set()
        wrong = f"{100 * gone:.0f} % of the strokes overwritten" if gone < COVERED else ""
        if any(_like(word, words) for word in re.findall(rf"[^\W_]{{{WORD},}}", line.text)):
            wrong = "a word can still be read"
        yield line, wrong


def _blank(values: NDArray[Any]) -> Any:
    """What tells pixels that have the colour of what was overwritten: dark strokes may have had it before."""
    if not len(values):
        return lambda frame: np.zeros(frame.shape[:2], bool)
    colour = values[0]
    return lambda frame: (frame == colour).reshape(*frame.shape[:2], -1).all(axis=2)


def retained(planted: PlantedImage, result: Path) -> str:
    """Empty where no pixel far from the planted lines was changed, else how many were."""
    before, after = dcmread(planted.file).pixel_array, dcmread(result).pixel_array
    if before.shape != after.shape:
        return "another shape"
    changed = (before != after).reshape(*before.shape[:2], -1).any(axis=2)
    for line in planted.lines:
        by = round(_AROUND * line.height) + 4
        changed[max(0, line.box[0] - by) : line.box[2] + by, max(0, line.box[1] - by) : line.box[3] + by] = False
    share = 100 * float(changed.mean())
    return f"{share:.2f} % of the pixels changed far from any line" if changed.any() else ""


def _shown(frame: NDArray[Any], planted: PlantedImage) -> Grey:
    form = MODALITIES[planted.modality][2]
    if form == "rgb":
        return np.asarray(frame[..., 0], dtype=np.uint8)
    eight = frame if form == "grey8" else (frame.astype(np.float64) * (255 / 4095))
    return np.asarray(255 - eight if form == "inverse12" else eight).astype(np.uint8)


@functools.cache
def _reader() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def _read(picture: Grey, line: Line) -> set[str]:
    """Words at the line's place: upright, three times as large, stretched, and inverted too."""
    top, left, bottom, right = line.box
    part = picture[max(0, top - 12) : bottom + 12, max(0, left - 12) : right + 12]
    upright = Image.fromarray(np.ascontiguousarray(np.rot90(part, -line.turn)))
    large = ImageOps.autocontrast(upright.resize((upright.width * 3, upright.height * 3), Image.Resampling.BICUBIC))
    words: set[str] = set()
    for shown in (large, ImageOps.invert(large)):
        result, _ = _reader()(np.asarray(shown.convert("RGB")))
        words.update(word.casefold() for _, text, _ in result or () for word in re.findall(r"[^\W_]+", str(text)))
    return words


def _like(word: str, words: set[str]) -> bool:
    return any(difflib.SequenceMatcher(None, word.casefold(), one).ratio() >= LIKE for one in words)
