"""Draws the contact sheet: slices of the query on the left, the similar cases of other patients on the right.

Only de-identified content is drawn: slices, ranks, scores, findings and fixed sentences; no name, id, date or UID of
the query, so that the sheet may say Burned In Annotation NO. The same tiles give the same pixels.
Font: DejaVu Sans, which has the accents that Pillow's built-in font lacks; it comes with matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dicomnode.domain import Answer, Case, Finding, FindingStatus
from dicomnode.errors import SettingsError
from dicomnode.report.codes import PRODUCT, Language, Texts, texts
from dicomnode.report.header import clean_text
from dicomnode.report.spec import QueryImage
from dicomnode.report.sr import BELOW_THRESHOLD, case_link, finding_text, query_slice, verdict_sentence

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 1600, 1200  # a 2 MP workstation shows it without scaling
MARGIN, GAP = 24, 14
HEADER_HEIGHT, FOOTER_HEIGHT, QUERY_WIDTH = 138, 40, 372
CAPTION_HEIGHT, CAPTION_LINE, BAND_HEIGHT = 82, 21, 30
MAX_SIDE = 560  # of one picture: a lone case must not dwarf the query beside it
MAX_CASES, MAX_QUERY, BUTTON_WIDTH = 12, 3, 300

BACKGROUND: Final[Colour] = (16, 18, 22)
PANEL: Final[Colour] = (30, 33, 39)
TEXT: Final[Colour] = (236, 238, 241)
MUTED: Final[Colour] = (165, 172, 182)
WARNING: Final[Colour] = (255, 196, 61)
ON_WARNING: Final[Colour] = (24, 20, 6)
OWN: Final[Colour] = (96, 178, 255)


@dataclass(frozen=True, slots=True)
class QueryTile:
    """One slice of the query: grey levels ready for display, uint8 [rows, columns], and where it lies."""

    pixels: Pixels
    image: QueryImage


@dataclass(frozen=True, slots=True)
class Tiles:
    """What the sheet shows.

    Attributes
    ----------
    answer : Answer
        The verdict and the cases.
    query : tuple of QueryTile
        The slices that matched best, best first; the first three are drawn.
    cases : mapping of rank to pixels
        The matched slice of each case, de-identified, uint8 [rows, columns]; a missing one is said to be missing.
    """

    answer: Answer
    query: tuple[QueryTile, ...]
    cases: Mapping[int, Pixels]

    def __post_init__(self) -> None:
        for pixels in (*(q.pixels for q in self.query), *self.cases.values()):
            if pixels.ndim != 2 or pixels.dtype != np.uint8 or 0 in pixels.shape:
                raise ValueError("a tile is a uint8 array of rows by columns")


class Box(NamedTuple):
    """A rectangle in pixels; ``x1`` and ``y1`` lie outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise SettingsError("the contact sheet has no font", place="matplotlib", advice="run: pip install matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(
        folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size, layout_engine=ImageFont.Layout.BASIC
    )


@cache
def _has_glyph(character: str) -> bool:
    font = _font(20)
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


def _drawable(text: str) -> bool:
    return all(_has_glyph(c) for c in text)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines; what is left over ends in dots."""
    out: list[str] = []
    words = text.split()
    while words and len(out) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        out.append(_shortened(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*out, _shortened(" ".join(words), font, width)] if words else out


def _finding_lines(case: Case, t: Texts) -> list[str]:
    def line(finding: Finding) -> str:
        display = clean_text(finding.display)
        # A script that the font cannot draw would be a row of empty boxes: the code is at least readable.
        return display if _drawable(display) else clean_text(f"{finding.system} {finding.code}")

    if case.status is FindingStatus.PRESENT and case.findings:
        return [text if _drawable(text := line(f)) else t.finding_uncoded for f in case.findings]
    return finding_text(case, t)


def grid(count: int, width: int, height: int, below_picture: int) -> tuple[int, int]:
    """Columns and rows that give ``count`` tiles the largest square picture in ``width`` by ``height``.

    ``below_picture`` is what each tile needs under its picture; all in pixels.
    """

    def side(columns: int) -> float:
        rows = -(-count // columns)
        return min((width - GAP * (columns - 1)) / columns, (height - GAP * (rows - 1)) / rows - below_picture)

    columns = max(range(1, count + 1), key=side)
    return columns, -(-count // columns)


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the picture that leads somewhere, in pixels."""

    box: Box
    url: str


class _Sheet:
    def __init__(self, tiles: Tiles, language: Language, version: str, link: str = "") -> None:
        self.tiles = tiles
        self.answer = tiles.answer
        self.t = texts(language)
        self.version = clean_text(version)
        self.link = clean_text(link)
        self.areas: list[Area] = []
        self.below_threshold = self.answer.verdict.kind in BELOW_THRESHOLD
        self.below_picture = BAND_HEIGHT + CAPTION_HEIGHT + (CAPTION_LINE if self.below_threshold else 0)
        self.image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def render(self) -> Image.Image:
        body_top, body_bottom = HEADER_HEIGHT + GAP, HEIGHT - FOOTER_HEIGHT - GAP
        self.header()
        self.query_column(Box(MARGIN, body_top, MARGIN + QUERY_WIDTH, body_bottom))
        self.case_grid(Box(MARGIN + QUERY_WIDTH + 2 * GAP, body_top, WIDTH - MARGIN, body_bottom))
        self.footer()
        return self.image

    def write(self, x: float, y: float, text: str, size: int, colour: Colour = TEXT, *, bold: bool = False) -> None:
        self.draw.text((x, y), text, font=_font(size, bold=bold), fill=colour)

    def header(self) -> None:
        self.draw.rectangle((0, 0, WIDTH, HEADER_HEIGHT), fill=PANEL)
        self.draw.rectangle((0, 0, 10, HEADER_HEIGHT), fill=WARNING)
        title = self.t.sheet_title_below if self.below_threshold and self.answer.cases else self.t.sheet_title
        self.write(MARGIN, 12, title, 32, WARNING, bold=True)
        self.write(MARGIN, 54, self.t.sheet_notice, 20)
        if self.link:
            self.button(Box(WIDTH - MARGIN - BUTTON_WIDTH, 12, WIDTH - MARGIN, 46))
        for i, line in enumerate(_wrapped(verdict_sentence(self.answer, self.t), _font(18), WIDTH - 2 * MARGIN, 2)):
            self.write(MARGIN, 84 + 24 * i, line, 18, WARNING if self.below_threshold else MUTED)

    def button(self, box: Box) -> None:
        self.band(box, self.t.open_viewer, OWN, 20)
        address = _shortened(self.link, _font(14), WIDTH // 2)
        self.write(box.x1 - _font(14).getlength(address), box.y1 + 8, address, 14, OWN)
        self.areas.append(Area(Box(box.x0, box.y0, box.x1, box.y1 + 28), self.link))

    def query_column(self, box: Box) -> None:
        shown = self.tiles.query[:MAX_QUERY]
        self.draw.rectangle((box.x0, box.y0, box.x1, box.y1), fill=PANEL, outline=OWN, width=3)
        self.band(Box(box.x0, box.y0, box.x1, box.y0 + BAND_HEIGHT + 6), self.t.this_study, OWN, 20)
        top, caption = box.y0 + BAND_HEIGHT + 6 + GAP, 30
        if not shown:
            self.centred(Box(box.x0, top, box.x1, box.y1), self.t.no_image, 20, MUTED)
            return
        # A single slice is not stretched over the whole column: it stays at the top, at the size of two.
        height = (box.y1 - top) // max(len(shown), 2)
        for i, tile in enumerate(shown):
            y = top + i * height
            self.picture(Box(box.x0 + GAP, y, box.x1 - GAP, y + height - caption - GAP), tile.pixels)
            text = _shortened(query_slice(tile.image, self.t), _font(17), box.width - 2 * GAP)
            self.write(box.x0 + GAP, y + height - caption - GAP + 6, text, 17)

    def case_grid(self, box: Box) -> None:
        cases = self.answer.cases[:MAX_CASES]
        if not cases:
            self.draw.rectangle((box.x0, box.y0, box.x1, box.y1), fill=PANEL)
            self.centred(box, self.t.no_case_listed, 26, MUTED)
            return
        columns, rows = grid(len(cases), box.width, box.height, self.below_picture)
        width = min((box.width - GAP * (columns - 1)) // columns, MAX_SIDE)
        height = min((box.height - GAP * (rows - 1)) // rows, MAX_SIDE + self.below_picture)
        for i, case in enumerate(cases):
            x, y = box.x0 + (i % columns) * (width + GAP), box.y0 + (i // columns) * (height + GAP)
            self.case(Box(x, y, x + width, y + height), case)

    def case(self, box: Box, case: Case) -> None:
        self.draw.rectangle((box.x0, box.y0, box.x1, box.y1), fill=PANEL)
        image = Box(box.x0, box.y0, box.x1, box.y1 - self.below_picture)
        if self.link:
            self.areas.append(Area(box, case_link(self.link, case.rank)))
        pixels = self.tiles.cases.get(case.rank)
        if pixels is None:
            self.centred(image, self.t.no_image, 18, MUTED)
        else:
            self.picture(image, pixels)
        # Against the picture, never over it: it hides no anatomy and goes with the picture wherever it is shown.
        self.band(Box(box.x0, image.y1, box.x1, image.y1 + BAND_HEIGHT), self.t.not_this_patient, WARNING, 18)
        x, y, inner = box.x0 + 10, image.y1 + BAND_HEIGHT + 7, box.width - 20
        rank = f"#{case.rank}"
        self.write(x, y, rank, 18, TEXT, bold=True)
        offset = int(_font(18, bold=True).getlength(rank)) + 10
        self.write(x + offset, y + 1, _shortened(self.score(case), _font(16), inner - offset), 16, MUTED)
        if self.below_threshold:
            y += CAPTION_LINE
            self.write(x + 22, y + 4, _shortened(self.t.below_threshold_short, _font(15), inner - 22), 15, WARNING)
        self.symbol(x + 7, y + 38, case.status)
        colour = TEXT if case.status is FindingStatus.PRESENT else MUTED
        for i, line in enumerate(_wrapped("; ".join(_finding_lines(case, self.t)), _font(15), inner - 22, 2)):
            self.write(x + 22, y + 28 + CAPTION_LINE * i, line, 15, colour)

    def score(self, case: Case) -> str:
        value = f"{100 * case.similarity:.1f} %" if self.answer.calibrated else f"{case.similarity:.3f}"
        words = self.t.similarity if self.answer.calibrated else self.t.score
        return " · ".join(filter(None, (words.format(value=value), clean_text(case.modality))))

    def footer(self) -> None:
        y = HEIGHT - FOOTER_HEIGHT
        self.draw.rectangle((0, y, WIDTH, HEIGHT), fill=PANEL)
        x = float(MARGIN)
        for status, words in zip(
            (FindingStatus.PRESENT, FindingStatus.NONE, FindingStatus.UNKNOWN), self.t.legend, strict=True
        ):
            self.symbol(int(x) + 7, y + 20, status)
            self.write(x + 22, y + 10, words, 16, MUTED)
            x += 22 + _font(16).getlength(words) + 32
        hidden = len(self.answer.cases) - MAX_CASES
        right = f"{PRODUCT} {self.version}".strip()
        if hidden > 0:
            right = f"{self.t.more_cases.format(n=hidden)} · {right}"
        right = _shortened(right, _font(16), int(WIDTH - MARGIN - x))
        self.write(WIDTH - MARGIN - _font(16).getlength(right), y + 10, right, 16, MUTED)

    def picture(self, box: Box, pixels: Pixels) -> None:
        """The whole slice in its own proportions (square pixels), centred on black."""
        self.draw.rectangle((box.x0, box.y0, box.x1, box.y1), fill=(0, 0, 0))
        scale = min(box.width / pixels.shape[1], box.height / pixels.shape[0])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
        self.image.paste(picture, (box.x0 + (box.width - size[0]) // 2, box.y0 + (box.height - size[1]) // 2))

    def band(self, box: Box, text: str, colour: Colour, size: int) -> None:
        self.draw.rectangle((box.x0, box.y0, box.x1, box.y1), fill=colour)
        self.centred(box, text, size, ON_WARNING, bold=True)

    def centred(self, box: Box, text: str, size: int, colour: Colour, *, bold: bool = False) -> None:
        while size > 9 and _font(size, bold=bold).getlength(text) > box.width - 8:
            size -= 1
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        self.draw.text(middle, text, font=_font(size, bold=bold), fill=colour, anchor="mm")

    def symbol(self, x: int, y: int, status: FindingStatus) -> None:
        """Present: filled disc. None: ring. Unknown: a question mark, since it is not a kind of none."""
        if status is FindingStatus.UNKNOWN:
            self.draw.text((x, y), "?", font=_font(18, bold=True), fill=WARNING, anchor="mm")
            return
        self.draw.ellipse(
            (x - 7, y - 7, x + 7, y + 7), outline=TEXT, width=2, fill=TEXT if status is FindingStatus.PRESENT else None
        )


def draw_sheet(tiles: Tiles, language: Language, version: str) -> Image.Image:
    """The contact sheet as an RGB image of 1600 by 1200 pixels; at most 12 cases and 3 query slices are drawn."""
    return _Sheet(tiles, language, version).render()


def draw_linked_sheet(tiles: Tiles, language: Language, version: str, link: str) -> tuple[Image.Image, list[Area]]:
    """The same sheet with a button to the answer's page, and the areas that lead to it and to each case."""
    sheet = _Sheet(tiles, language, version, link)
    return sheet.render(), sheet.areas
