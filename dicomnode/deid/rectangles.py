"""Rectangles of pixels: where text was found, what a device rule blanks, what was masked.

Geometry alone; knows nothing of DICOM. Rows and columns count from 0, the end is not part of the rectangle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple


class Rectangle(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Pixels in it; 0 where it is empty."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    @property
    def rows(self) -> int:
        """Its height."""
        return self.bottom - self.top

    @property
    def transposed(self) -> Rectangle:
        """With rows for columns."""
        return Rectangle(self.left, self.top, self.right, self.bottom)

    @property
    def window(self) -> tuple[slice, slice]:
        """As an index of an array of (rows, columns, ...)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def clipped(self, rows: int, columns: int) -> Rectangle:
        """The part inside an image."""
        top, left = max(0, min(self.top, rows)), max(0, min(self.left, columns))
        return Rectangle(top, left, max(top, min(self.bottom, rows)), max(left, min(self.right, columns)))

    def grown(self, rows: int, columns: int) -> Rectangle:
        """Larger by ``rows`` above and below and ``columns`` left and right."""
        return Rectangle(self.top - rows, self.left - columns, self.bottom + rows, self.right + columns)

    def moved(self, rows: int, columns: int) -> Rectangle:
        """Moved down and to the right."""
        return Rectangle(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def covers(self, other: Rectangle) -> bool:
        """Whether ``other`` lies inside."""
        inside = self.top <= other.top and self.left <= other.left
        return inside and self.bottom >= other.bottom and self.right >= other.right


def without_covered(rectangles: Iterable[Rectangle]) -> tuple[Rectangle, ...]:
    """Those with pixels that lie in no other one; sorted."""
    kept: list[Rectangle] = []
    for one in sorted({r for r in rectangles if r.area}, key=lambda r: -r.area):
        if not any(other.covers(one) for other in kept):
            kept.append(one)
    return tuple(sorted(kept))


def outside(regions: Iterable[Rectangle], rows: int, columns: int) -> tuple[Rectangle, ...]:
    """Rectangles that together hold each pixel of the image that no region holds."""
    inside = [r for r in (region.clipped(rows, columns) for region in regions) if r.area]
    edges = sorted({0, rows, *(r.top for r in inside), *(r.bottom for r in inside)})
    out: list[Rectangle] = []
    for top, bottom in itertools.pairwise(edges):
        column = 0
        for left, right in sorted((r.left, r.right) for r in inside if r.top <= top and r.bottom >= bottom):
            if left > column:
                out.append(Rectangle(top, column, bottom, left))
            column = max(column, right)
        if column < columns:
            out.append(Rectangle(top, column, bottom, columns))
    return tuple(out)
