"""Whether a picture has colours of its own: CT and MR are grey, a photograph of a screen has only the screen's tint.

What the input gate asks before its network, which sees grey pixels alone. Annotations, a coloured scale or frame are
small; a tint that follows the brightness, as lamps, screens and papers give it, is taken away first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

SIDE: Final = 160  # pixels of the copy that is judged
OWN: Final = 0.05  # distance from the tint, of 0..1 a channel, over which a pixel has a colour of its own
ROUNDS: Final = 4
LEAST_TINTED: Final = 0.2
MOST: Final = 0.2  # share of such pixels over which a picture is in colour, which no slice is
GREY_MODES: Final = ("1", "L", "LA", "I", "F")


def colour_of(path: Path) -> float:
    """``own_colour`` of a picture's file.

    Raises
    ------
    OSError, ValueError, SyntaxError
        It cannot be read as a picture: ``prepare_picture`` says so better, and goes first.
    """
    with Image.open(path) as image:
        return own_colour(image)


def on_black(image: Image.Image) -> Image.Image:
    """A picture as it shows on black; one without transparency as it is."""
    if not image.has_transparency_data:
        return image
    opaque = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", opaque.size, (0, 0, 0, 255)), opaque)


def own_colour(image: Image.Image) -> float:
    """Share of an open picture's pixels that have a colour of their own, 0..1; 0 for grey pictures."""
    if image.mode.startswith(GREY_MODES) and image.mode != "LAB":
        return 0.0
    rgb = on_black(image).convert("RGB")  # what shows is what counts
    rgb.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(rgb, dtype=np.float64).reshape(-1, 3) / 255
    if np.ptp(pixels, axis=1).max() < OWN:
        return 0.0
    away = pixels - pixels.mean(1, keepdims=True)
    brightness = pixels.mean(1)
    terms = np.stack([np.ones_like(brightness), brightness, brightness**2], 1)
    tinted = np.ones(len(pixels), dtype=bool)
    own = tinted
    for _ in range(ROUNDS):  # annotations must not bend the tint: it is that of all other pixels
        tint = np.linalg.lstsq(terms[tinted], away[tinted], rcond=None)[0]
        own = np.linalg.norm(away - terms @ tint, axis=1) > OWN
        if own.mean() > 1 - LEAST_TINTED:
            break
        tinted = ~own
    return float(own.mean())
