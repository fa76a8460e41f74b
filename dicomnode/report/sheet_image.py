"""Draws the contact sheet: slices of the query on the left, the similar cases of other patients on the right.

Only what ``tiles`` holds is drawn, which identifies nobody, so that the sheet may say Burned In Annotation NO. The
same tiles give the same pixels. Symbols and colours of findings are those of the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dicomnode.domain import Case, FindingStatus
from dicomnode.report.codes import PRODUCT, Language, texts
from dicomnode.report.fonts import Measure, font, has_right_to_left, lines_of, shortened, wrapped
from dicomnode.report.header import clean_text
from dicomnode.report.tiles import (
    Pixels,
    Tiles,
    case_letter,
    finding_lines,
    query_letter,
    score_words,
    slice_words,
)
from dicomnode.report.words import BELOW_THRESHOLD, verdict_sentence

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 1600, 1200  # a 2 MP workstation shows it without scaling
MARGIN, GAP, PAD = 24, 14, 12
FOOTER_HEIGHT, BAND_HEIGHT, LINE = 42, 30, 21
QUERY_WIDTH, QUERY_WIDTH_FEW = 262, 420
CAPTION_HEIGHT, CAPTION_WIDTH = 106, 240  # the least that a caption needs below, or beside, its picture
THRESHOLD_LINE = 22
TAG = 22  # side of a letter's square beside text
ROOMY, ROOMY_WIDTH = 1.35, 420  # a wide caption has larger letters
WIDEST_PERCENT, WIDEST_SCORE = "100.0 %", "0.000"
MAX_SIDE = 600  # of one picture: a lone case must not dwarf the query beside it
FEW, MAX_CASES, MAX_QUERY = 3, 12, 3
HOLE_WORTH, WIDTH_WORTH = 0.8, 0.9  # how much smaller pictures may be for a grid without holes, for longer lines

BACKGROUND: Final[Colour] = (12, 14, 17)
PANEL: Final[Colour] = (28, 31, 37)
LINES: Final[Colour] = (62, 68, 78)
TEXT: Final[Colour] = (240, 242, 245)
MUTED: Final[Colour] = (172, 179, 189)
WARNING: Final[Colour] = (255, 196, 61)
ON_WARNING: Final[Colour] = (24, 20, 6)
OWN: Final[Colour] = (96, 178, 255)
PRESENT: Final[Colour] = (255, 122, 69)


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


@dataclass(frozen=True, slots=True)
class Grid:
    """How cases are laid out: columns, rows, and whether captions stand beside their pictures instead of below."""

    columns: int
    rows: int
    beside: bool
    side: float


def grid(count: int, width: int, height: int, caption: int) -> Grid:
    """The layout that gives ``count`` tiles the largest pictures; full, and with wide tiles, where it costs little.

    ``width`` and ``height`` of the place and ``caption``, the height of a caption below its picture, in pixels.
    A few cases are a list, with captions beside pictures as large as those of the query.
    """

    def layout(columns: int, beside: bool) -> Grid:
        rows = -(-count // columns)
        w, h = (width - GAP * (columns - 1)) / columns, (height - GAP * (rows - 1)) / rows - BAND_HEIGHT
        side = min(w - CAPTION_WIDTH, h) if beside else min(w, h - caption)
        return Grid(columns, rows, beside, min(side, MAX_SIDE))

    if count <= FEW:
        return layout(1, True)
    every = [layout(columns, beside) for columns in range(1, count + 1) for beside in (False, True)]
    best = max(every, key=lambda g: g.side)
    full = [g for g in every if g.columns * g.rows == count and g.side >= HOLE_WORTH * best.side]
    best = max(full, key=lambda g: g.side, default=best)
    wider = [g for g in full or every if g.side >= WIDTH_WORTH * best.side]
    return min(wider, key=lambda g: (g.columns, -g.side))


def _measure(size: int, *, bold: bool = False) -> Measure:
    return lambda text: font(size, bold=bold, shaped=has_right_to_left(text)).getlength(text)


class _Sheet:
    def __init__(self, tiles: Tiles, language: Language, version: str) -> None:
        self.tiles = tiles
        self.answer = tiles.answer
        self.t = texts(language)
        self.version = clean_text(version)
        self.below_threshold = self.answer.verdict.kind in BELOW_THRESHOLD
        self.image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def render(self) -> Image.Image:
        top, bottom = self.header() + GAP, HEIGHT - FOOTER_HEIGHT - GAP
        query = QUERY_WIDTH_FEW if len(self.answer.cases) <= FEW else QUERY_WIDTH
        self.query_column(Box(MARGIN, top, MARGIN + query, bottom))
        self.case_grid(Box(MARGIN + query + 2 * GAP, top, WIDTH - MARGIN, bottom))
        self.footer()
        return self.image

    def write(
        self, x: float, y: float, text: str, size: int, colour: Colour = TEXT, *, bold: bool = False, anchor: str = "la"
    ) -> None:
        face = font(size, bold=bold, shaped=has_right_to_left(text))
        self.draw.text((x, y), text, font=face, fill=colour, anchor=anchor)

    def header(self) -> int:
        """Title, notice and verdict; returns where it ends."""
        colour = WARNING if self.below_threshold else TEXT
        verdict = wrapped(verdict_sentence(self.answer, self.t), _measure(19), WIDTH - 2 * MARGIN, 2)
        height = 100 + 26 * len(verdict)
        self.draw.rectangle((0, 0, WIDTH, height - 1), fill=PANEL)
        self.draw.rectangle((0, 0, 9, height - 1), fill=WARNING)
        title = self.t.sheet_title_below if self.below_threshold and self.answer.cases else self.t.sheet_title
        self.write(MARGIN, 15, title, 32, WARNING, bold=True)
        self.write(MARGIN, 60, self.t.sheet_notice, 19, MUTED)
        for i, line in enumerate(verdict):
            self.write(MARGIN, 88 + 26 * i, line, 19, colour)
        return height

    def query_column(self, box: Box) -> None:
        shown = self.tiles.query[:MAX_QUERY]
        self.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=PANEL, outline=OWN, width=3)
        self.band(Box(box.x0, box.y0, box.x1, box.y0 + BAND_HEIGHT + 6), self.t.this_study, OWN, 20)
        top, caption = box.y0 + BAND_HEIGHT + 6 + PAD, 30
        if not shown:
            self.centred(Box(box.x0, top, box.x1, box.y1), self.t.no_image, 20, MUTED)
            return
        # A single slice is not stretched over the whole column: it stays at the top, at the size of two.
        height = (box.y1 - top - 3) // max(len(shown), 2)
        for i, tile in enumerate(shown):
            y = top + i * height
            end = min(y + height - caption - 6, y + round((box.width - 2 * PAD) * _tallness(tile.pixels)))
            self.picture(Box(box.x0 + PAD, y, box.x1 - PAD, end), tile.pixels)
            left = box.x0 + PAD
            if letter := query_letter(self.tiles, i):
                self.tag(left, end + 4, TAG, letter)
                left += TAG + 8
            self.write(left, end + 5, shortened(slice_words(tile, self.t), _measure(17), box.x1 - PAD - left), 17)

    def case_grid(self, box: Box) -> None:
        cases = self.answer.cases[:MAX_CASES]
        if not cases:
            self.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=PANEL)
            self.centred(box, self.t.no_case_listed, 26, MUTED)
            return
        caption = CAPTION_HEIGHT + (THRESHOLD_LINE if self.below_threshold else 0)
        layout = grid(len(cases), box.width, box.height, caption)
        width = (box.width - GAP * (layout.columns - 1)) // layout.columns
        height = (box.height - GAP * (layout.rows - 1)) // layout.rows
        height = min(height, MAX_SIDE + BAND_HEIGHT) if layout.beside else height
        for i, case in enumerate(cases):
            x, y = box.x0 + (i % layout.columns) * (width + GAP), box.y0 + (i // layout.columns) * (height + GAP)
            self.case(Box(x, y, x + width, y + height), case, layout, caption)

    def case(self, box: Box, case: Case, layout: Grid, caption: int) -> None:
        self.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=PANEL)
        pixels = self.tiles.cases.get(case.rank)
        if layout.beside:
            side = min(box.height - BAND_HEIGHT, box.width - CAPTION_WIDTH)
            image = Box(box.x0, box.y0, box.x0 + side, box.y1 - BAND_HEIGHT)
            words = Box(image.x1, box.y0, box.x1, box.y1)
        else:
            tallest = max((_tallness(p) for p in self.tiles.cases.values()), default=1.0)
            end = box.y0 + min(box.height - BAND_HEIGHT - caption, round(box.width * tallest))
            image = Box(box.x0, box.y0, box.x1, end)
            words = Box(box.x0, end + BAND_HEIGHT, box.x1, box.y1)
        if pixels is None:
            self.draw.rectangle((image.x0, image.y0, image.x1 - 1, image.y1 - 1), fill=(0, 0, 0))
            self.centred(image, self.t.no_image, 18, MUTED)
        else:
            self.picture(image, pixels)
        # Against the picture, never over it: it hides no anatomy and goes with the picture wherever it is shown.
        letter = case_letter(self.tiles, case)
        band = Box(image.x0, image.y1, image.x1, image.y1 + BAND_HEIGHT)
        self.band(band, self.t.not_this_patient, WARNING, 18, beside=BAND_HEIGHT if letter else 0)
        if letter:
            self.tag(band.x1 - BAND_HEIGHT, band.y0, BAND_HEIGHT, letter)
        self.caption(words, case, caption)

    def caption(self, box: Box, case: Case, least: int) -> None:
        """Rank, score with its bar, and what is known of the case; the more room, the larger."""
        scale = ROOMY if box.width >= ROOMY_WIDTH else min(max(1.0, box.height / least), ROOMY)
        large, small = round(22 * scale), round(16 * scale)
        x, y, inner = box.x0 + PAD, box.y0 + round(10 * scale), box.width - 2 * PAD
        self.headline(x, y, inner, case, large)
        y += round(33 * scale)
        self.draw.rectangle((x, y, x + inner - 1, y + 4), fill=LINES)
        if case.similarity > 0:
            self.draw.rectangle((x, y, x + max(1, round(inner * case.similarity)) - 1, y + 4), fill=TEXT)
        y += round(13 * scale)
        if self.below_threshold:
            self.write(x, y, shortened(self.t.below_threshold_short, _measure(small), inner), small, WARNING)
            y += round(THRESHOLD_LINE * scale)
        self.symbol(x + 9, y + round(10 * scale), case.status)
        colour = TEXT if case.status is FindingStatus.PRESENT else MUTED
        step = round(LINE * scale)
        room = max(1, (box.y1 - 6 - y) // step)
        lines = lines_of(finding_lines(case, self.t), _measure(small), inner - 26, room, self.t.more_findings)
        for i, line in enumerate(lines):
            if line.from_right:
                self.write(x + inner, y + step * i, line.text, small, colour, anchor="ra")
            else:
                self.write(x + 26, y + step * i, line.text, small, colour)

    def headline(self, x: int, y: int, width: int, case: Case, size: int) -> None:
        """Rank on the left, score on the right, and between them what there is room for, the same in every tile."""
        bold, plain = _measure(size, bold=True), _measure(16)
        word, value = score_words(self.answer, case, self.t)
        self.write(x, y, f"#{case.rank}", size, bold=True)
        self.write(x + width, y, value, size, bold=True, anchor="ra")
        left = bold("#12") + 10
        room = width - left - bold(WIDEST_PERCENT if self.answer.calibrated else WIDEST_SCORE) - 6
        kind = [shortened(clean_text(case.modality), plain, room)]
        if plain(f"WW · {word}") <= room:  # else the number stands alone: the footer says what it is
            kind.append(word)
        self.write(x + left, y + size - 17, " · ".join(filter(None, kind)), 16, MUTED)

    def footer(self) -> None:
        y = HEIGHT - FOOTER_HEIGHT
        self.draw.rectangle((0, y, WIDTH, HEIGHT), fill=PANEL)
        x = float(MARGIN)
        for status, words in zip(
            (FindingStatus.PRESENT, FindingStatus.NONE, FindingStatus.UNKNOWN), self.t.legend, strict=True
        ):
            self.symbol(int(x) + 8, y + 21, status)
            self.write(x + 24, y + 11, words, 16, MUTED)
            x += 24 + _measure(16)(words) + 28
        if any(case_letter(self.tiles, case) for case in self.answer.cases):
            self.tag(int(x), y + 10, TAG, "A")
            self.write(x + TAG + 6, y + 11, self.t.pair_note, 16, MUTED)
            x += TAG + 6 + _measure(16)(self.t.pair_note) + 28
        hidden = len(self.answer.cases) - MAX_CASES
        right = f"{PRODUCT} {self.version}".strip()
        if hidden > 0:
            right = f"{self.t.more_cases.format(n=hidden)} · {right}"
        right = shortened(right, _measure(16), WIDTH - MARGIN - x)
        self.write(WIDTH - MARGIN, y + 11, right, 16, MUTED, anchor="ra")
        room = WIDTH - MARGIN - _measure(16)(right) - 28 - x
        note = self.t.similarity_note if self.answer.calibrated else self.t.score_note
        if self.answer.cases:
            self.write(x, y + 11, shortened(note, _measure(16), room), 16, MUTED)

    def picture(self, box: Box, pixels: Pixels) -> None:
        """The whole slice in its own proportions (square pixels), centred on black."""
        self.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=(0, 0, 0))
        scale = min(box.width / pixels.shape[1], box.height / pixels.shape[0])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
        self.image.paste(picture, (box.x0 + (box.width - size[0]) // 2, box.y0 + (box.height - size[1]) // 2))

    def band(self, box: Box, text: str, colour: Colour, size: int, *, beside: int = 0) -> None:
        """A bar with its text, in the middle of what ``beside`` leaves at the right."""
        self.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=colour)
        self.centred(box._replace(x1=box.x1 - beside), text, size, ON_WARNING, bold=True)

    def tag(self, x: int, y: int, side: int, letter: str) -> None:
        """A letter in a square of this study's colour: it joins a case's slice to the study's."""
        self.draw.rectangle((x, y, x + side - 1, y + side - 1), fill=OWN)
        self.write(x + side / 2, y + side / 2, letter, round(side * 0.7), ON_WARNING, bold=True, anchor="mm")

    def centred(self, box: Box, text: str, size: int, colour: Colour, *, bold: bool = False) -> None:
        while size > 9 and _measure(size, bold=bold)(text) > box.width - 8:
            size -= 1
        self.write((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, text, size, colour, bold=bold, anchor="mm")

    def symbol(self, x: int, y: int, status: FindingStatus) -> None:
        """Present: filled disc. None: ring. Unknown: a question mark in a broken ring, as it is not a kind of none."""
        around = (x - 7, y - 7, x + 7, y + 7)
        if status is FindingStatus.PRESENT:
            self.draw.ellipse(around, fill=PRESENT)
        elif status is FindingStatus.NONE:
            self.draw.ellipse(around, outline=MUTED, width=2)
        else:
            for start in range(0, 360, 60):
                self.draw.arc((x - 9, y - 9, x + 9, y + 9), start, start + 36, fill=MUTED, width=2)
            self.write(x, y, "?", 13, TEXT, bold=True, anchor="mm")


def _tallness(pixels: Pixels) -> float:
    """Height over width, between a landscape and a portrait radiograph: one odd picture does not squeeze all others."""
    height, width = pixels.shape
    return min(max(float(height) / float(width), 0.7), 1.3)


def draw_sheet(tiles: Tiles, language: Language, version: str) -> Image.Image:
    """The contact sheet as an RGB image of 1600 by 1200 pixels; at most 12 cases and 3 query slices are drawn."""
    return _Sheet(tiles, language, version).render()
