"""Decides what becomes of the pixels of a received image: copied as they are, masked, or not let through.

Device rules, recognition and a person who looked (by_hand.py) say where text stands; it is blanked in the decoded
frames, and what was blanked is looked at again. Text that can still be found after a second round keeps the image
out. Pixels in which nothing was found are never encoded anew. Never says what a text reads. Sources: PS3.15 E.3.1
(Clean Pixel Data), PS3.3 C.7.6.3.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.deid import device_rules, pixel_policy
from dicomnode.deid.by_hand import NOTHING, ByHand
from dicomnode.deid.pixel_frames import Frames, PixelWriter
from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.deid.pixel_text import find_text
from dicomnode.deid.rectangles import Rectangle, without_covered
from dicomnode.deid.source import Source
from dicomnode.errors import QuarantineError

ROUNDS = 2  # of masking; what is found after the last one keeps the image out
_IN_MEMORY = 64 << 20  # bytes of masked pixels; more go to a file
_SAME_TEXT = 10.0  # mean difference in grey levels up to which a place shows the same text as in another frame
_BLOCK = 16  # pixels; the grid in which frames are compared
_CHANGED = 6  # grey levels by which a pixel must differ between two frames to count
_STROKES = 12  # grey levels between which a block must range to hold strokes that can be read
_MARGIN = 48  # pixels around what changed
_STALE = ("SmallestImagePixelValue", "LargestImagePixelValue")


@dataclass(slots=True)
class PixelOutcome:
    """What became of the pixels.

    Parameters
    ----------
    clean : bool
        Whether the Clean Pixel Data Option may be claimed.
    examined : bool
        Whether the pixels were looked at.
    masked : tuple of tuples of Rectangle
        What was blanked in each frame; empty where the pixel bytes stay as they are.
    element : file object, optional
        The new pixel element from its tag to its end.
    """

    clean: bool
    examined: bool = False
    masked: tuple[tuple[Rectangle, ...], ...] = ()
    element: BinaryIO | None = field(default=None, repr=False)
    syntax: UID | None = None
    attributes: dict[str, object] = field(default_factory=dict)

    def restate(self, ds: Dataset) -> None:
        """Let the header say what the new pixels are; changes nothing where they were copied."""
        for keyword, value in self.attributes.items():
            setattr(ds, keyword, value)
        for keyword in _STALE if self.masked else ():
            ds.pop(keyword, None)
        if self.syntax is not None:
            ds.file_meta.TransferSyntaxUID = self.syntax

    def close(self) -> None:
        """Give back the new pixels' memory or file."""
        if self.element is not None:
            self.element.close()


class PixelCleaner:
    """Examines and masks the pixels of received images by one policy."""

    def __init__(self, policy: PixelPolicy | None = None) -> None:
        self.policy = policy or PixelPolicy()

    def clean(self, source: Source, folder: Path, by_hand: ByHand = NOTHING) -> PixelOutcome:
        """Decide about one image; temporary files are made in ``folder``, which must exist.

        ``by_hand``: its rectangles are blanked before anything looks at the pixels; where it says that no text is left
        that identifies, recognition is not asked. The audit reads the result all the same.

        Raises
        ------
        QuarantineError
            ``burned-in``: it may show text that could not be removed. The line says why, never what it reads.
        """
        if not pixel_policy.must_look(source.ds, self.policy, seen=by_hand.about_text):
            return PixelOutcome(pixel_policy.known_clean(source.ds))
        frames = Frames.of(source)
        fixed = _fixed(source)
        if by_hand.masks:
            frames = _FilledFrames.over(frames, by_hand)
        if by_hand.no_text and not fixed and not by_hand.masks:
            return PixelOutcome(clean=True, examined=True, attributes={"BurnedInAnnotation": "NO"})
        survey = _Survey(frames, look=not by_hand.no_text)
        if not survey.anything and not fixed and not by_hand.masks:
            if pixel_policy.declared(source.ds) == "YES":
                line = "marked as having text in its pixels, and none was found"
                raise QuarantineError("burned-in", line, advice=pixel_policy.BURNED_IN_ADVICE)
            return PixelOutcome(clean=True, examined=True)
        return _masked(frames, survey, fixed, folder, by_hand)


def _fixed(source: Source) -> tuple[Rectangle, ...]:
    try:
        rows, columns = int(source.ds.Rows), int(source.ds.Columns)
    except (AttributeError, TypeError, ValueError):
        line = "rows or columns are missing or not numbers"
        raise QuarantineError("unsupported", line, place="(0028,0010)") from None
    return device_rules.rectangles_for(source.ds, rows, columns)


@dataclass(slots=True)
class _FilledFrames(Frames):
    """Frames with what a person masked already blank."""

    by_hand: ByHand = NOTHING
    blank: tuple[int, ...] = ()

    @classmethod
    def over(cls, frames: Frames, by_hand: ByHand) -> _FilledFrames:
        """Reads the frames once: some blanks depend on the values that occur."""
        seen = _Survey(frames, look=False)
        blank = frames.background(seen.lowest, seen.highest)
        return cls(frames.source, frames.layout, by_hand, blank)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for number, frame in enumerate(Frames.__iter__(self), start=1):
            yield _blanked(frame, self.by_hand.in_frame(number), self.blank)


def _digest(frame: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(frame).data).digest()


class _Survey:
    """Where text stands in each frame, and the least and the greatest value of all frames; ``look``: whether to look.

    Values are those of the decoded frames, whichever of them a person had blanked.
    """

    def __init__(self, frames: Frames, *, look: bool = True) -> None:
        self.looked = look
        self.lowest, self.highest, self.count = 0, 0, 0
        self._by_digest: dict[bytes, tuple[Rectangle, ...]] = {}
        self._looked: _Looked | None = None
        self._seen: dict[Rectangle, NDArray[np.uint8]] = {}
        for frame in frames:
            low, high = int(frame.min()), int(frame.max())
            self.lowest = min(self.lowest, low) if self.count else low
            self.highest = max(self.highest, high) if self.count else high
            self.count += 1
            digest = _digest(frame)
            if digest not in self._by_digest:
                self._by_digest[digest] = self._places(frames, frame) if look else ()

    @property
    def anything(self) -> bool:
        """Whether any frame shows text."""
        return any(self._by_digest.values())

    def _places(self, frames: Frames, frame: NDArray[Any]) -> tuple[Rectangle, ...]:
        view, faint = frames.view(frame), frames.faint_view(frame)
        self._looked = _look(view, faint, self._looked)
        for place in self._looked.places:
            self._seen.setdefault(place, view[place.window].copy())
        return self._looked.places

    def in_frame(self, frames: Frames, frame: NDArray[Any]) -> tuple[Rectangle, ...]:
        """What was found in the frame, and what was found in another one and stands here alike."""
        places = list(self._by_digest[_digest(frame)])
        view = frames.view(frame)
        for place, picture in self._seen.items():
            if place not in places:
                difference = np.abs(view[place.window].astype(np.int16) - picture).mean()
                if difference <= _SAME_TEXT:
                    places.append(place)
        return without_covered(places)


class _Looked(NamedTuple):
    """What was looked at so far, pixel by pixel as it was at that time, and the places of text in it.

    Never a picture that was passed over: changes that are each too small to count would add up unseen.
    """

    picture: NDArray[np.uint8]
    places: tuple[Rectangle, ...]


def _look(view: NDArray[np.uint8], faint: NDArray[np.uint8] | None, before: _Looked | None) -> _Looked:
    """Text in a picture, looked for only where it differs from what was looked at before."""
    if before is None:
        return _Looked(view, find_text(view, faint))
    part = _changed(view, before.picture)
    if part is None:
        return before
    if part.area > view.shape[0] * view.shape[1] // 2:
        return _Looked(view, find_text(view, faint))
    inside = find_text(np.ascontiguousarray(view[part.window]), None if faint is None else faint[part.window])
    moved = [place.moved(part.top, part.left) for place in inside]
    picture = before.picture.copy()
    picture[part.window] = view[part.window]
    return _Looked(picture, without_covered([*moved, *(place for place in before.places if not part.covers(place))]))


def _changed(view: NDArray[np.uint8], looked_at: NDArray[np.uint8]) -> Rectangle | None:
    """Bounds, with a margin, of the blocks that differ from what was looked at and may hold strokes; None: no such."""
    difference = np.abs(view.astype(np.int16) - looked_at).max(axis=2)
    rows, columns = difference.shape
    padded = [(0, -rows % _BLOCK), (0, -columns % _BLOCK)]
    shape = ((rows + padded[0][1]) // _BLOCK, _BLOCK, (columns + padded[1][1]) // _BLOCK, _BLOCK)

    def blocks(picture: NDArray[Any], least: bool = False) -> NDArray[Any]:
        tiles = np.pad(picture, padded, mode="edge").reshape(shape)
        return np.asarray(tiles.min(axis=(1, 3)) if least else tiles.max(axis=(1, 3)))

    spread = blocks(view.max(axis=2)).astype(np.int16) - blocks(view.min(axis=2), least=True)
    where = np.argwhere((blocks(difference) >= _CHANGED) & (spread >= _STROKES))
    if not len(where):
        return None
    (top, left), (bottom, right) = where.min(axis=0) * _BLOCK, (where.max(axis=0) + 1) * _BLOCK
    return Rectangle(int(top), int(left), int(bottom), int(right)).grown(_MARGIN, _MARGIN).clipped(rows, columns)


def _masked(
    frames: Frames, survey: _Survey, fixed: tuple[Rectangle, ...], folder: Path, by_hand: ByHand
) -> PixelOutcome:
    """The frames with their text blanked and looked at again, written as a new pixel element."""
    element = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(folder)))  # noqa: SIM115
    try:
        blank = frames.background(survey.lowest, survey.highest)
        writer: PixelWriter | None = None
        done: dict[bytes, tuple[Rectangle, ...]] = {}
        masked: list[tuple[Rectangle, ...]] = []
        looked: _Looked | None = None
        for number, frame in enumerate(frames, start=1):
            digest = _digest(frame)
            hand = by_hand.in_frame(number)
            if digest not in done:
                places = without_covered([*survey.in_frame(frames, frame), *fixed, *hand])
                if survey.looked:
                    places, looked = _until_nothing_is_found(frames, frame, places, blank, looked)
                done[digest] = places
            masked.append(without_covered([*done[digest], *hand]))  # equal frames may have been masked differently
            changed = _blanked(frame, masked[-1], blank)
            if writer is None:
                writer = PixelWriter(frames, element)
                writer.begin(survey.count, changed)
            writer.add(changed)
        assert writer is not None  # the survey counted frames
        writer.end()
    except BaseException:
        element.close()
        raise
    return PixelOutcome(True, True, tuple(masked), element, writer.syntax, writer.attributes())


def _until_nothing_is_found(
    frames: Frames,
    frame: NDArray[Any],
    places: tuple[Rectangle, ...],
    blank: tuple[int, ...],
    before: _Looked | None,
) -> tuple[tuple[Rectangle, ...], _Looked | None]:
    """The places to blank so that a further look finds no text, and what was looked at then."""
    for _ in range(ROUNDS):
        if not places:
            return places, before
        changed = _blanked(frame, places, blank)
        view, faint = frames.view(changed), frames.faint_view(changed)
        looked = _look(view, faint, before)
        found = [one for one in looked.places if not _is_blank(view, one)]
        if not found:
            return places, looked._replace(places=())
        places = without_covered([*places, *found])
    raise QuarantineError("burned-in", "text can still be made out after masking", advice=pixel_policy.BURNED_IN_ADVICE)


def _is_blank(view: NDArray[np.uint8], place: Rectangle) -> bool:
    part = view[place.window]
    return bool((part == part[:1, :1]).all())


def _blanked(frame: NDArray[Any], places: Iterable[Rectangle], blank: tuple[int, ...]) -> NDArray[Any]:
    """A copy of the frame with the places filled."""
    out = frame.copy()
    for place in places:
        out[place.window] = blank if frame.ndim == 3 else blank[0]
    return out
