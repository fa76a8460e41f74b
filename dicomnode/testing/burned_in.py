"""Plants legible text in images, to measure how much of it de-identification finds.

Names and numbers are invented; fonts are those that matplotlib, Pillow and OpenCV bring. It never plants what a
person could not read: the mean difference between text and what lies under it is at least ``MIN_CONTRAST``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MIN_CONTRAST = 30.0  # grey levels of 256: fainter strokes of one pixel are lost to the eye in noise
_FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
HERSHEY = "hershey"  # strokes as drawn by scanners' own consoles; OpenCV has them
PILLOW = "pillow"  # Aileron, the font inside Pillow
BITMAP = "bitmap"  # 6 x 11 pixels, the look of old consoles
# Two sets that share no font: rules are tuned on the first, figures are reported on the second.
TUNING_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", BITMAP)
REPORT_FONTS = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "cmss10.ttf", "cmtt10.ttf", PILLOW, HERSHEY)
TUNING_NAMES = ("SMITH JOHN", "Garcia Lopez, Maria", "MUELLER^HANS", "Kowalska Anna", "Dupont J.", "ROSSI, PAOLO")
REPORT_NAMES = ("NAKAMURA YUKI", "Okafor Chidi", "LINDQVIST^ERIK", "Fernandez, Lucia", "O'Brien Sean", "PETROV, IVAN")


@dataclass(frozen=True, slots=True)
class PlantedText:
    """A line of text in an image: its words, its box (top, left, bottom, right) and which pixels are its strokes."""

    text: str
    box: tuple[int, int, int, int]
    strokes: NDArray[np.bool_] = field(repr=False)


def stamp(text: str, font: str, size: int) -> NDArray[np.float64]:
    """``text`` as coverage 0..1, shape (height, width), cut to its strokes. ``size`` is in pixels."""
    if font == HERSHEY:
        alpha = _hershey(text, size)
    else:
        face = _face(font, size)
        left, top, right, bottom = face.getbbox(text)
        canvas = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
        ImageDraw.Draw(canvas).text((2 - left, 2 - top), text, fill=255, font=face)
        alpha = np.asarray(canvas, dtype=np.float64) / 255
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _face(font: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if font == BITMAP:
        return ImageFont.load_default_imagefont()
    if font == PILLOW:
        return ImageFont.load_default(size)
    return ImageFont.truetype(_FONTS / font, size)


def _hershey(text: str, size: int) -> NDArray[np.float64]:
    import cv2

    scale, thick = size / 30, max(1, size // 14)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    canvas = np.zeros((height + below + 2 * thick, width + 2 * thick), np.uint8)
    place = (thick, height + thick)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    return np.asarray(canvas, dtype=np.float64) / 255


def invented_line(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """A line as consoles write it: a name, an id, a date, or a mix."""
    name = str(rng.choice(names))
    number = f"{rng.integers(10**6, 10**8)}"
    date = f"{rng.integers(1, 29):02d}/{rng.integers(1, 13):02d}/{rng.integers(1930, 2020)}"
    forms = (name, f"{name} {date}", f"ID: {number}", f"DOB {date}", f"{name} {number}", f"ACC {number[:6]}")
    return forms[int(rng.integers(len(forms)))]


def plant(
    image: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    fonts: tuple[str, ...] = TUNING_FONTS,
    names: tuple[str, ...] = TUNING_NAMES,
    lines: int = 2,
    sizes: tuple[int, int] = (11, 34),
) -> tuple[NDArray[np.uint8], list[PlantedText]]:
    """A copy of ``image`` (uint8, (rows, columns) or with 3 samples) with up to ``lines`` lines of text.

    Light, dark, on a plate of its own, semi-transparent or turned by 90 degrees, by chance; at the edges more often
    than in the middle. ``sizes`` are the smallest and the largest font in pixels.
    """
    out = image.astype(np.float64)
    planted: list[PlantedText] = []
    taken = np.zeros(image.shape[:2], bool)
    for _ in range(lines * 10):
        if len(planted) == lines:
            break
        text, font = invented_line(rng, names), str(rng.choice(fonts))
        alpha = stamp(text, font, int(rng.integers(sizes[0], sizes[1] + 1)))
        if rng.random() < 0.15:
            alpha = np.rot90(alpha, int(rng.choice((1, 3))))
        if done := _place(out, taken, alpha, rng):
            out, strokes, box = done
            planted.append(PlantedText(text, box, strokes))
    return np.clip(np.round(out), 0, 255).astype(np.uint8), planted


def _place(
    out: NDArray[np.float64], taken: NDArray[np.bool_], alpha: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[int, int, int, int]] | None:
    """The image with the stamp somewhere in it, or None where it does not fit or could not be read there."""
    margin = 3
    height, width = alpha.shape[0] + 2 * margin, alpha.shape[1] + 2 * margin
    free = (out.shape[0] - height, out.shape[1] - width)
    if min(free) < 1:
        return None
    at_edge = rng.random() < 0.7
    top = int(rng.choice((rng.integers(0, min(24, free[0])), free[0] - rng.integers(0, min(24, free[0])))) if at_edge
              else rng.integers(0, free[0]))  # fmt: skip
    left = int(rng.integers(0, free[1]))
    window = (slice(top, top + height), slice(left, left + width))
    if taken[window].any():
        return None
    changed = out.copy()
    under = changed[window]
    ink, opacity = float(rng.choice((255.0, 255.0, 235.0, 0.0))), float(rng.choice((1.0, 1.0, 0.7, 0.45)))
    if rng.random() < 0.2:  # a plate of its own, inverse
        under[...] = 255.0 - ink
    coverage = np.pad(alpha, margin) * opacity
    strokes = coverage > 0.5 * opacity
    weight = coverage if under.ndim == 2 else coverage[..., None]
    mixed = under * (1 - weight) + ink * weight
    grey = np.abs(mixed - under) if under.ndim == 2 else np.abs(mixed - under).mean(axis=2)
    if not strokes.any() or grey[strokes].mean() < MIN_CONTRAST or (grey[strokes] < MIN_CONTRAST / 2).mean() > 0.2:
        return None
    changed[window] = mixed
    taken[window] = True
    whole = np.zeros(out.shape[:2], bool)
    whole[window] = strokes
    return changed, whole, (top, left, top + height, left + width)
