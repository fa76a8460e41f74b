"""What a person who looked at a held image decided about it: rectangles to blank, and what does not identify.

Only ever adds to what is masked, or says that what the node is unsure of was looked at. Written down beside the
original (identified zone) as text, numbers only. Sources: PS3.15 E.3.1 (a person may have to step in), PS3.3
C.7.6.1 (Burned In Annotation, Recognizable Visual Features).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dicomnode.deid.rectangles import Rectangle
from dicomnode.errors import UsageError

MAX_MASKS = 50  # of one release: its entry in the audit trail stays short
_MASK = re.compile(r"(?:(\d{1,9}):)?(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})")
FORM = "LEFT,TOP,WIDTH,HEIGHT or FRAME:LEFT,TOP,WIDTH,HEIGHT, in whole pixels"


class HandMask(NamedTuple):
    """A rectangle to blank; ``frame`` counts from 1, None means every frame."""

    frame: int | None
    rectangle: Rectangle

    def __str__(self) -> str:
        """As ``parse_mask`` reads it."""
        top, left, bottom, right = self.rectangle
        frame = "" if self.frame is None else f"{self.frame}:"
        return f"{frame}{left},{top},{right - left},{bottom - top}"


@dataclass(frozen=True, slots=True)
class ByHand:
    """A person's decision about one object.

    Parameters
    ----------
    masks : tuple of HandMask
        What is blanked before anything else looks at the pixels.
    no_text : bool
        No text that identifies is left, besides in ``masks``: what recognition still finds is anatomy or a scale.
    no_face : bool
        No face can be recognised.
    """

    masks: tuple[HandMask, ...] = ()
    no_text: bool = False
    no_face: bool = False

    @property
    def about_text(self) -> bool:
        """Whether it says anything about text in the pixels."""
        return bool(self.masks) or self.no_text

    def in_frame(self, number: int) -> tuple[Rectangle, ...]:
        """The rectangles of a frame, counted from 1."""
        return tuple(mask.rectangle for mask in self.masks if mask.frame in (None, number))

    def after(self, earlier: ByHand) -> ByHand:
        """This decision where an earlier one was made: what was masked stays masked, and masks are added.

        A word about text is about what the masks leave, so new masks without it let recognition look again.
        """
        masks = tuple(dict.fromkeys((*earlier.masks, *self.masks)))
        no_text = self.no_text if self.about_text else earlier.no_text
        return ByHand(masks, no_text, self.no_face or earlier.no_face)

    def as_text(self) -> str:
        """For the spool; ``from_text`` reads it."""
        return json.dumps({"masks": list(map(str, self.masks)), "no_text": self.no_text, "no_face": self.no_face})

    @classmethod
    def from_text(cls, text: str) -> ByHand:
        """What ``as_text`` wrote; an empty text is no decision."""
        if not text:
            return NOTHING
        said = json.loads(text)
        return cls(tuple(map(parse_mask, said["masks"])), bool(said["no_text"]), bool(said["no_face"]))


NOTHING = ByHand()


def parse_mask(text: str) -> HandMask:
    """``LEFT,TOP,WIDTH,HEIGHT``, or with ``FRAME:`` before it; columns and rows count from 0, frames from 1.

    Raises
    ------
    UsageError
        It has another form, no area, or frame 0.
    """
    match = _MASK.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(f"a mask is {FORM}", place=f"--mask {text}")
    left, top, width, height = (int(number) for number in match.groups()[1:])
    if not width or not height:
        raise UsageError("it has no area: width and height are at least 1", place=f"--mask {text}")
    if match[1] is not None and not int(match[1]):
        raise UsageError("frames count from 1", place=f"--mask {text}")
    return HandMask(None if match[1] is None else int(match[1]), Rectangle(top, left, top + height, left + width))


def check_masks(masks: Iterable[HandMask], rows: int, columns: int, frames: int) -> None:
    """Whether an image of that size has these pixels and frames.

    Raises
    ------
    UsageError
        Names the first mask that leaves the image, or whose frame is not there.
    """
    for mask in masks:
        if mask.rectangle.bottom > rows or mask.rectangle.right > columns:
            line = f"it leaves the image, which has {columns} columns and {rows} rows"
            raise UsageError(line, place=f"--mask {mask}")
        if mask.frame is not None and mask.frame > frames:
            there = "one frame" if frames == 1 else f"{frames} frames"
            raise UsageError(f"the image has {there}", place=f"--mask {mask}")
