"""The one typeface of sheet and PDF, what it can draw, and how a text is broken into lines.

DejaVu Sans has Latin, Greek, Cyrillic, Arabic and Hebrew; it comes with matplotlib. A text it cannot draw is never
drawn as empty boxes: callers ask ``drawable`` first. Order of right-to-left text: UAX #9, by Raqm in pictures and by
HarfBuzz in the PDF.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont, features

from dicomnode.errors import SettingsError

Measure = Callable[[str], float]
ELLIPSIS = "…"
# They reorder what stands around them, so a finding's name could rewrite the line it stands in (UAX #9 2.1 to 2.5).
_BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = frozenset({"R", "AL"})


@cache
def font_file(*, bold: bool = False) -> Path:
    """The TrueType file.

    Raises
    ------
    SettingsError
        matplotlib is not installed.
    """
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise SettingsError("the contact sheet has no font", place="matplotlib", advice="run: pip install matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name


@cache
def font(size: int, *, bold: bool = False, shaped: bool = False) -> ImageFont.FreeTypeFont:
    """The font in pixels; ``shaped`` puts right-to-left text in order and joins its letters."""
    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(font_file(bold=bold), size, layout_engine=engine)


@cache
def can_shape() -> bool:
    """Whether Pillow finds Raqm and FriBiDi (Debian package libfribidi0)."""
    return features.check_feature("raqm") is True and features.check_feature("fribidi") is True


def has_right_to_left(text: str) -> bool:
    """Whether any letter is Hebrew, Arabic or the like."""
    return any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in text)


def starts_right_to_left(text: str) -> bool:
    """Whether the text as a whole reads from the right: its first strong letter decides (UAX #9 P2)."""
    strong = (d for d in map(unicodedata.bidirectional, text) if d in _RIGHT_TO_LEFT or d == "L")
    return next(strong, "L") in _RIGHT_TO_LEFT


def without_controls(text: str) -> str:
    """``text`` without the characters that only reorder their surroundings."""
    return _BIDI_CONTROLS.sub("", text)


@cache
def _has_glyph(character: str) -> bool:
    plain = font(20)
    return character.isspace() or bytes(plain.getmask(character)) != bytes(plain.getmask("\U0010ffff"))


def drawable(text: str) -> bool:
    """Whether every character has a glyph and the order of the letters can be kept."""
    return all(_has_glyph(c) for c in text) and (can_shape() or not has_right_to_left(text))


def shortened(text: str, measure: Measure, width: float) -> str:
    """``text``, or its beginning and an ellipsis, within ``width``."""
    if measure(text) <= width:
        return text
    return text[: _fitting(text, lambda part: measure(part + ELLIPSIS), width)].rstrip() + ELLIPSIS


def wrapped(text: str, measure: Measure, width: float, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines of ``width``; a word too long is broken, what is left ends in an ellipsis."""
    out: list[str] = []
    rest = " ".join(text.split())
    while rest and len(out) < lines - 1 and measure(rest) > width:
        words = rest.split(" ")
        count = 1
        while count < len(words) and measure(" ".join(words[: count + 1])) <= width:
            count += 1
        line = " ".join(words[:count])
        if measure(line) > width:
            line = line[: max(1, _fitting(line, measure, width))]
        out.append(line)
        rest = rest[len(line) :].lstrip()
    return [*out, shortened(rest, measure, width)] if rest else out


class Line(NamedTuple):
    """One line of a text; ``from_right`` where the whole text reads from the right, also in a line of Latin letters."""

    text: str
    from_right: bool


def lines_of(texts: Iterable[str], measure: Measure, width: float, lines: int, more: str) -> list[Line]:
    """Several texts, each on lines of its own, in at most ``lines`` lines; ``more`` takes ``{n}`` texts not shown."""
    every = list(texts)
    out: list[Line] = []
    for i, text in enumerate(every):
        left = len(every) - i - 1
        room = lines - len(out) - (1 if left else 0)
        if room < 1:
            out.append(Line(shortened(more.format(n=left + 1), measure, width), False))
            break
        from_right = starts_right_to_left(text)
        out += [Line(line, from_right) for line in wrapped(text, measure, width, room)]
    return out


def _fitting(text: str, measure: Measure, width: float) -> int:
    """How many characters of ``text`` fit into ``width``."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(text[:middle]) <= width else (low, middle - 1)
    return low
