"""Finds text in a picture: where it stands, never what it says.

The engine of pixel_ocr.py proposes places at several magnifications with low thresholds. Long places that it is sure of
are text even where nothing can be read, as in a script that the reader does not know; the others count when the reader
makes out words, as the picture is or turned. Single signs that stand in a row are read as one place. Along each line
that was found the reader looks for what belongs to it: words that were not proposed, and what a mask has left of a
word. Anatomy draws short proposals that read as nothing or as one sign. What was read never leaves this module. The
thresholds were tuned with ``benchmarks/pixel_text.py``, which says what they find.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dicomnode.deid import pixel_ocr
from dicomnode.deid.pixel_ocr import Proposal
from dicomnode.deid.rectangles import Rectangle, without_covered

_SURE, _LONG = 0.72, 2.5  # score, and length to height, from which a proposal is text without being read ...
_TALL = 0.08  # ... up to this height, as a share of the shorter side: anatomy draws tall ones
_MIN_SIDE = 5.0  # pixels; strokes below it cannot be read by a person
# Confidence of the reader that makes a proposal text, by number of letters and digits; one sign alone never does:
# markers of the side (R, L) stay, and anatomy reads as single signs.
_CONFIDENCE = {2: 0.7, 3: 0.6}
_CONFIDENCE_OF_WORDS = 0.55
_CONFIDENCE_OF_TALL = {2: 0.9, 3: 0.9, 4: 0.8}  # of tall places; bones in a row read as zeros
_READ_WELL = 0.75  # a reading from here on is not tried turned round
_IN_LINE, _IN_LINE_APART = 0.6, 0.85  # confidence of a sign beside words, near or apart, that makes it part of them
_NEAR, _GAP = 1.2, 3.0  # heights of a line between two signs that are near, and at most
_REACH, _STEPS = 6.0, 3  # heights of a line that are looked along at once, and how often
_BESIDE = 0.3  # share of the lower of two lines from which they count as side by side
_NEIGHBOUR, _ALIKE = 1.5, 1.7  # heights between single signs that are read together, and how their heights may differ
_DARK = 72  # median grey level of what is not black, up to which a picture is looked at brightened
_STANDING = 1.2  # height to width from which a piece of text stands
_TINY, _SMALL, _MEDIUM = 325, 700, 1300  # longest side up to which an image is looked at larger, by 4, 2 and 1.5
_AREA = 1_100_000  # pixels up to which an image that is small for its longest side is looked at larger by 3
_COARSE = 700  # longest side down to which larger images are also looked at smaller, for large letters


def load() -> None:
    """Load the recogniser now rather than with the first image; ``QuarantineError`` where that fails."""
    pixel_ocr.load()


def find_text(view: NDArray[np.uint8], faint: NDArray[np.uint8] | None = None) -> tuple[Rectangle, ...]:
    """Places of text in a picture, each with a margin, clipped to it.

    Parameters
    ----------
    view : ndarray
        uint8, (rows, columns, 3).
    faint : ndarray, optional
        The same with its contrast equalised, for strokes that differ little from what is around them.
    """
    rows, columns = view.shape[:2]
    places = _places(view, [p for scale in _scales(rows, columns) for p in pixel_ocr.proposals(view, scale)])
    places += _standing_places(view)
    if faint is not None:
        places += _places(faint, pixel_ocr.proposals(faint, 1.0))
    elif (brighter := _brightened(view)) is not None:
        places += _places(brighter, pixel_ocr.proposals(brighter, _scales(rows, columns)[0]))
    return without_covered(place.clipped(rows, columns) for place in places)


def _standing_places(view: NDArray[np.uint8]) -> list[Rectangle]:
    """Lines of text in the picture turned by a quarter: over anatomy the detector passes over lines that stand."""
    rows, columns = view.shape[:2]
    turned = np.ascontiguousarray(np.rot90(view))
    proposals = pixel_ocr.proposals(turned, _scales(rows, columns)[0])
    places = _places(turned, [(points, score) for points, score in proposals if _is_long_and_lies(points)])
    return [Rectangle(p.left, columns - p.bottom, p.right, columns - p.top) for p in places]


def _is_long_and_lies(points: NDArray[np.float64]) -> bool:
    place = _bounds(points)
    longer, shorter = _sides(points)
    return longer >= _LONG * shorter and place.right - place.left > place.rows


def _brightened(view: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """A dark picture, as of ultrasound, with its grey levels equally frequent; None where it is not dark."""
    grey = view.max(axis=2)
    lit = grey[grey > 0]
    if not lit.size or float(np.median(lit)) >= _DARK:
        return None
    levels = np.quantile(grey, np.linspace(0, 1, 256))
    equal = np.searchsorted(levels, grey, side="left").clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(equal[..., None], 3, axis=2))


def _places(view: NDArray[np.uint8], proposals: Iterable[Proposal]) -> list[Rectangle]:
    """Those proposals that are text, with a margin, and each with the rest of its line."""
    words: list[Rectangle] = []
    places: list[Rectangle] = []
    signs: list[Rectangle] = []
    for points, score in proposals:
        if _is_text(view, points, score):
            words.append(_bounds(points))
            places.append(_with_margin(words[-1], _sides(points)[1]))
        elif _MIN_SIDE <= _sides(points)[1] <= _highest(view):
            signs.append(_bounds(points))
    alone = [sign for sign in signs if not any(place.covers(sign) for place in places)]
    words += [row for row in _in_rows(alone) if _reads_as_words(view, row)]
    lines: list[Rectangle] = []
    found = without_covered(words)
    for word in found:
        if not any(line.covers(word) for line in lines):
            line = _whole_line(view, word, found)
            lines.append(_with_margin(line, min(line.bottom - line.top, line.right - line.left)))
    return places + lines


def _scales(rows: int, columns: int) -> tuple[float, ...]:
    longest = max(rows, columns)
    if longest <= _TINY:
        return (4.0, 2.0, 1.0)
    if 9 * rows * columns <= _AREA:
        return (3.0, 1.0)
    if longest <= _MEDIUM:
        return (2.0 if longest <= _SMALL else 1.5, 1.0)
    coarse = [0.5**n for n in range(1, 4) if longest * 0.5**n >= _COARSE]
    return (1.0, *coarse)


def _sides(points: NDArray[np.float64]) -> tuple[float, float]:
    """The longer and the shorter side of a turned rectangle."""
    one, other = math.dist(points[0], points[1]), math.dist(points[1], points[2])
    return max(one, other), min(one, other)


def _bounds(points: NDArray[np.float64]) -> Rectangle:
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return Rectangle(math.floor(top), math.floor(left), math.ceil(bottom) + 1, math.ceil(right) + 1)


def _with_margin(place: Rectangle, height: float) -> Rectangle:
    """First and last letters stick out of proposals more than heads and tails do."""
    across, along = math.ceil(2 + 0.2 * height), math.ceil(2 + 0.4 * height)
    lying = place.right - place.left >= place.bottom - place.top
    return place.grown(across, along) if lying else place.grown(along, across)


def _highest(view: NDArray[np.uint8]) -> float:
    """The height from which a proposal must be read to be text."""
    return max(24.0, _TALL * float(min(view.shape[:2])))


def _is_text(view: NDArray[np.uint8], points: NDArray[np.float64], score: float) -> bool:
    longer, shorter = _sides(points)
    if shorter < _MIN_SIDE:
        return False
    if score >= _SURE and longer >= _LONG * shorter and shorter <= _highest(view):
        return True
    return _reads_as_words(view, _bounds(points))


def _reads_as_words(view: NDArray[np.uint8], place: Rectangle) -> bool:
    """Whether the reader makes out words, with the picture as it is or turned."""
    part = view[place.grown(2, 2).clipped(*view.shape[:2]).window]
    rows, columns = part.shape[:2]
    least = _CONFIDENCE if min(rows, columns) <= _highest(view) else _CONFIDENCE_OF_TALL
    turns: tuple[int, ...] = (0, 1, 3)
    if rows > 1.3 * columns:
        turns = (1, 3)
    elif columns > 1.3 * rows:
        turns = (0, 2)
    for turn in turns:
        text, confidence = pixel_ocr.read(np.ascontiguousarray(np.rot90(part, turn)))
        signs = sum(character.isalnum() for character in text)
        if signs >= 2 and confidence >= least.get(signs, _CONFIDENCE_OF_WORDS):
            return True
        if signs and confidence >= _READ_WELL:
            return False
    return False


def _in_rows(signs: list[Rectangle]) -> Iterator[Rectangle]:
    """Bounds of each two signs of one height that stand side by side or one on the other."""
    for one, other in itertools.combinations(sorted(set(signs)), 2):
        height = min(one.bottom - one.top, other.bottom - other.top)
        width = min(one.right - one.left, other.right - other.left)
        both = Rectangle(min(one.top, other.top), min(one.left, other.left),
                         max(one.bottom, other.bottom), max(one.right, other.right))  # fmt: skip
        rows, columns = both.bottom - both.top, both.right - both.left
        beside = rows <= _ALIKE * height and columns <= (2 * _ALIKE + _NEIGHBOUR) * height and columns > rows
        above = columns <= _ALIKE * width and rows <= (2 * _ALIKE + _NEIGHBOUR) * width and rows > columns
        if beside or above:
            yield both


def _whole_line(view: NDArray[np.uint8], word: Rectangle, found: Sequence[Rectangle]) -> Rectangle:
    """The word with the letters and digits in line with it, less those in other places of ``found``: they have lines.

    Else a large line would take a small one beside it for its end, and blank as much above and below it as large
    letters need.
    """
    place = word
    for _ in range(_STEPS):
        longer = _lengthened(view, place, found)
        if longer == place:
            break
        place = longer
    return place


def _holds(other: Rectangle, at: float, line: Rectangle, standing: bool) -> bool:
    """Whether a sign that is ``at`` along ``line`` is of ``other``, which stands in that line or half beside it."""
    if standing:
        other, line = other.transposed, line.transposed
    shared = min(other.bottom, line.bottom) - max(other.top, line.top)
    return other.left <= at <= other.right and shared >= _BESIDE * min(other.rows, line.rows)


def _lengthened(view: NDArray[np.uint8], place: Rectangle, found: Sequence[Rectangle]) -> Rectangle:
    """The place, longer by the signs that the reader makes out in its line nearby."""
    rows, columns = place.bottom - place.top, place.right - place.left
    standing, height = rows > _STANDING * columns, min(rows, columns)
    across, along = math.ceil(0.1 * height), math.ceil(_REACH * height)
    grown = place.grown(along, across) if standing else place.grown(across, along)
    strip = grown.clipped(*view.shape[:2])
    start = strip.top if standing else strip.left
    low, high = (place.top, place.bottom) if standing else (place.left, place.right)
    best: list[tuple[float, float]] = []
    most = -1.0
    for turn in (1, 3) if standing else (0, 2):  # the second one is upside down
        line = np.ascontiguousarray(np.rot90(view[strip.window], turn))
        signs = [(start + (one.at if turn < 2 else line.shape[1] - one.at), one.confidence)
                 for one in pixel_ocr.signs(line)]  # fmt: skip
        within = [confidence for at, confidence in signs if low <= at <= high]
        if sum(within) > most:
            most, best = sum(within), [sign for sign in signs if sign[1] >= _IN_LINE]
        if within and sum(within) / len(within) >= _READ_WELL:
            break
    best = [sign for sign in best if not any(_holds(other, sign[0], place, standing) for other in found)]
    high = _end_of_line(high, sorted(sign for sign in best if sign[0] > high), height)
    low = -_end_of_line(-low, sorted((-at, confidence) for at, confidence in best if at < low), height)
    return place._replace(top=low, bottom=high) if standing else place._replace(left=low, right=high)


def _end_of_line(end: int, signs: Sequence[tuple[float, float]], height: int) -> int:
    """Where a line ends that ended at ``end`` before ``signs`` behind it, the nearest first, were looked at."""
    for at, confidence in signs:
        gap = (at - end) / height
        if gap <= _NEAR or (gap <= _GAP and confidence >= _IN_LINE_APART):
            end = max(end, math.ceil(at + 0.5 * height))
    return end
