"""A plain picture (PNG, JPEG, WebP) checked before it is decoded, and written again as grey pixels and nothing else.

What a camera or a program wrote beside the pixels (EXIF, XMP, text, colour profiles, thumbnails) stays behind. The file
is judged by its content, never by its name. Sources: Pillow's concepts of modes; PNG third edition 4.6 (animation).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dicomnode.errors import UploadRefused, UploadTooLarge, UploadWrongKind
from dicomnode.models.colour import on_black, own_colour

MAX_PICTURE_PIXELS = 50_000_000  # decoded, 200 MB as RGBA
FORMATS = ("PNG", "JPEG", "WEBP")  # what Pillow may try; nothing else is opened
STILLS = ("PNG", "JPEG", "WEBP", "MPO")  # MPO: a JPEG with a second view, as some cameras write; the first is taken
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (12 bytes or more) is a PNG, JPEG or WebP."""
    png = head.startswith(b"\x89PNG\r\n\x1a\n")
    return png or head.startswith(b"\xff\xd8\xff") or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


class Cleaned(NamedTuple):
    """What was written of a picture, and the share of its pixels that had a colour of their own (``models.colour``)."""

    rows: int
    columns: int
    colour: float


def clean_picture(src: Path, dst: Path) -> Cleaned:
    """Write the pixels of a picture, upright and grey, as an 8-bit PNG without any metadata.

    Transparency is shown on black, colour as luminance (ITU-R BT.601), 16-bit and float values by their own range.

    Returns
    -------
    Cleaned
        Rows and columns as written; the colour that was left behind.

    Raises
    ------
    UploadTooLarge
        ``too-many-pixels``: more than 50 million; found before anything is decoded.
    UploadWrongKind
        ``animated``: more than one frame.
    UploadRefused
        ``truncated``: the pixels cannot be decoded to their end.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its size is judged here
            with Image.open(src, formats=FORMATS) as image:
                _check(image)
                grey = upright_grey(image)
                colour = own_colour(image)
    except Image.DecompressionBombError:  # Pillow's own limit, beyond ours
        raise _too_many_pixels() from None
    except _READ_ERRORS:
        raise UploadRefused("truncated", "the picture is damaged or cut short") from None
    grey.save(dst, "PNG", compress_level=1)
    return Cleaned(grey.height, grey.width, colour)


def _check(image: Image.Image) -> None:
    if image.width * image.height > MAX_PICTURE_PIXELS:
        raise _too_many_pixels()
    if image.format not in STILLS or (image.format != "MPO" and getattr(image, "n_frames", 1) > 1):
        raise UploadWrongKind("animated", "the picture is animated: one still image is compared, not a film")


def _too_many_pixels() -> UploadTooLarge:
    return UploadTooLarge("too-many-pixels", "the picture has more than 50 million pixels", advice="make it smaller")


def upright_grey(image: Image.Image) -> Image.Image:
    """8-bit grey pixels of an open picture, upright, transparency on black; nothing of ``image.info`` comes along."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16 bits, or float
        values = np.asarray(upright, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        return Image.fromarray(((values - low) / ((high - low) or 1.0) * 255).astype(np.uint8))
    upright = on_black(upright)
    if upright.mode not in ("L", "RGB"):
        upright = upright.convert("RGB")  # palette, CMYK, YCbCr, 1 bit
    return Image.fromarray(np.asarray(upright.convert("L")))
