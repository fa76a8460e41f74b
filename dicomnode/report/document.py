"""An answer as a PDF of A4 pages: the one result whose links can be clicked on a workstation.

Real text that can be searched and selected, an address behind each case, language and title declared. Nothing is
read from a clock and nothing is random: the same answer gives the same bytes. Nothing of the patient is in it (see
``tiles``). PDF: ISO 32000-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Final

import numpy as np
from fpdf import FPDF
from fpdf.prefs import ViewerPreferences
from PIL import Image

from dicomnode.domain import Case, FindingStatus
from dicomnode.report.codes import PRODUCT, Language, texts
from dicomnode.report.fonts import Line, font_file, lines_of, shortened, wrapped
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
from dicomnode.report.words import BELOW_THRESHOLD, case_link, verdict_sentence

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 210.0, 297.0  # mm, A4 portrait (ISO 216)
MARGIN, GAP, PAD = 14.0, 5.0, 2.5
CONTENT = WIDTH - 2 * MARGIN
FOOTER_TOP = HEIGHT - 14.0
COLUMNS, MAX_QUERY = 3, 3
TAG = 3.6  # side of a letter's square beside text, mm
PICTURE_HEIGHT, QUERY_HEIGHT, BAND, LINE = 46.0, 46.0, 6.0, 4.3
MAX_LINES = 12  # of the findings of one case; the viewer has the rest
FAMILY = "DejaVu"
POINT_MM = 25.4 / 72
# Pictures are kept at what a printer resolves in a tile; quality 90 is without visible loss at that size.
PICTURE_PIXELS, JPEG_QUALITY = 512, 90

PAPER: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (22, 25, 30)
SOFT: Final[Colour] = (92, 99, 110)
RULE: Final[Colour] = (205, 210, 217)
WARNING: Final[Colour] = (255, 196, 61)
WARNING_INK: Final[Colour] = (138, 77, 0)  # 6:1 on white
OWN: Final[Colour] = (21, 96, 178)
PRESENT: Final[Colour] = (214, 73, 20)


@dataclass(frozen=True, slots=True)
class _Tile:
    case: Case
    lines: list[Line]
    height: float


class _Pages(FPDF):
    """The document being drawn; everything is placed in millimetres from the top left."""

    def __init__(self, tiles: Tiles, language: Language, version: str, link: str, created: datetime) -> None:
        super().__init__(format="A4")
        self.tiles, self.answer, self.t = tiles, tiles.answer, texts(language)
        self.link_to = clean_text(link)
        self.version = clean_text(version)
        self.below_threshold = self.answer.verdict.kind in BELOW_THRESHOLD
        self.set_auto_page_break(False)
        self.set_margin(0)
        self.c_margin = 0
        self.set_creation_date(created.astimezone(UTC))
        self.set_lang(language.value)
        self.set_title(self.t.document_title)
        self.set_creator(PRODUCT)
        self.set_producer(f"{PRODUCT} {self.version}".strip())
        self.viewer_preferences = ViewerPreferences(display_doc_title=True)
        self.add_font(FAMILY, "", font_file())
        self.add_font(FAMILY, "B", font_file(bold=True))
        self.set_text_shaping(True)

    def file_id(self) -> None:
        """No /ID: it would be made from the time (ISO 32000-1 14.4 only recommends one)."""

    def draw(self) -> None:
        self.add_page()
        y = self.first_page_head()
        y = self.query_row(y)
        if not self.answer.cases:
            self.put(MARGIN, y + 8, self.t.no_case_listed, 12, SOFT)
        for row in self.rows():
            height = max(tile.height for tile in row)
            if y + height > FOOTER_TOP - 3:
                self.add_page()
                y = self.next_page_head()
            for column, tile in enumerate(row):
                self.case(MARGIN + column * (self.tile_width + GAP), y, tile, height)
            y += height + GAP
        self.footers()

    # ``header`` and ``footer`` of FPDF are not used: the number of pages is known only at the end.

    @property
    def tile_width(self) -> float:
        return (CONTENT - GAP * (COLUMNS - 1)) / COLUMNS

    def width_of(self, text: str, size: float, style: str = "") -> float:
        self.set_font(FAMILY, style, size)
        return self.get_string_width(text)

    def put(
        self, x: float, y: float, text: str, size: float, colour: Colour = INK, style: str = "", right: bool = False
    ) -> None:
        """One line of text whose top is at ``y``; ``right`` where it ends at ``x``."""
        self.set_font(FAMILY, style, size)
        self.set_text_color(*colour)
        width = self.get_string_width(text)
        self.set_xy(x - width if right else x, y)
        self.cell(width, 1.16 * size * POINT_MM, text)

    def first_page_head(self) -> float:
        colour = WARNING_INK if self.below_threshold else INK
        title = self.t.sheet_title_below if self.below_threshold and self.answer.cases else self.t.sheet_title
        button = self.button(MARGIN, link=self.link_to) if self.link_to else 0.0
        y = 14.0
        for line in wrapped(title, lambda s: self.width_of(s, 17, "B"), CONTENT - button, 2):
            self.put(MARGIN, y, line, 17, INK, "B")
            y += 7.4
        y += 1.4
        for size, words, ink in ((10.0, verdict_sentence(self.answer, self.t), colour), (8.5, self.t.notice, SOFT)):
            for line in wrapped(words, lambda s, size=size: self.width_of(s, size), CONTENT, 4):  # type: ignore[misc]
                self.put(MARGIN, y, line, size, ink)
                y += size * POINT_MM * 1.42
            y += 1.2
        if self.link_to:
            address = shortened(self.link_to, lambda s: self.width_of(s, 8.5), CONTENT)
            self.put(MARGIN, y, address, 8.5, OWN)
            self.link(MARGIN, y, self.width_of(address, 8.5), 4, self.link_to)
            y += 5.6
        self.rule(y)
        return y + 4

    def button(self, y: float, *, link: str) -> float:
        """The link as a button at the top right; returns the width it takes."""
        width, height = self.width_of(self.t.open_viewer, 10, "B") + 10, 8.5
        x = WIDTH - MARGIN - width
        self.set_fill_color(*OWN)
        self.rect(x, y, width, height, "F", round_corners=True, corner_radius=1.5)
        self.put(x + 5, y + 2.6, self.t.open_viewer, 10, PAPER, "B")
        self.link(x, y, width, height, link, alt_text=self.t.open_viewer)
        return width + 6

    def next_page_head(self) -> float:
        self.put(MARGIN, 12, self.t.sheet_title, 11, INK, "B")
        self.put(WIDTH - MARGIN, 12.6, self.t.sheet_notice, 8, SOFT, right=True)
        self.rule(18.5)
        return 22.5

    def rule(self, y: float) -> None:
        self.set_draw_color(*RULE)
        self.set_line_width(0.25)
        self.line(MARGIN, y, WIDTH - MARGIN, y)

    def query_row(self, y: float) -> float:
        shown = self.tiles.query[:MAX_QUERY]
        height = QUERY_HEIGHT + 6 if shown else 10.0
        self.band(MARGIN, y, CONTENT, self.t.this_study, OWN, PAPER)
        self.set_draw_color(*OWN)
        self.set_line_width(0.6)
        self.rect(MARGIN, y, CONTENT, BAND + height)
        y += BAND
        if not shown:
            self.put(MARGIN + PAD, y + 3, self.t.no_image, 9, SOFT)
        width = self.tile_width
        for i, tile in enumerate(shown):
            x = MARGIN + i * (width + GAP)
            inner = width - 2 * PAD
            words = slice_words(tile, self.t)
            self.picture(x + PAD, y + 2, inner, QUERY_HEIGHT - 3, tile.pixels, f"{self.t.this_study}. {words}")
            left = x + PAD
            if letter := query_letter(self.tiles, i):
                self.tag(left, y + QUERY_HEIGHT - 0.3, TAG, letter)
                left += TAG + 1.2
            room = x + PAD + inner - left
            self.put(left, y + QUERY_HEIGHT, shortened(words, lambda s: self.width_of(s, 8.5), room), 8.5, SOFT)
        return y + height + GAP

    def rows(self) -> Iterator[Sequence[_Tile]]:
        inner = self.tile_width - 2 * PAD - 5
        tiles = []
        for case in self.answer.cases:
            lines = lines_of(
                finding_lines(case, self.t),
                lambda s: self.width_of(s, 8.5),
                inner,
                MAX_LINES,
                self.t.more_findings,
            )
            head = PICTURE_HEIGHT + BAND + 9.0 + (LINE if self.below_threshold else 0)
            tiles.append(_Tile(case, lines, head + LINE * len(lines) + 2.5))
        for start in range(0, len(tiles), COLUMNS):
            yield tiles[start : start + COLUMNS]

    def case(self, x: float, y: float, tile: _Tile, height: float) -> None:
        """One case; the whole tile leads to it."""
        case, width = tile.case, self.tile_width
        pixels = self.tiles.cases.get(case.rank)
        words = f"{self.t.not_this_patient}. #{case.rank}"
        if pixels is None:
            self.set_fill_color(236, 238, 241)
            self.rect(x, y, width, PICTURE_HEIGHT, "F")
            middle = x + (width - self.width_of(self.t.no_image, 9)) / 2
            self.put(middle, y + PICTURE_HEIGHT / 2 - 2, self.t.no_image, 9, SOFT)
        else:
            self.picture(x, y, width, PICTURE_HEIGHT, pixels, words)
        letter = case_letter(self.tiles, case)
        self.band(x, y + PICTURE_HEIGHT, width, self.t.not_this_patient, WARNING, INK)
        if letter:
            self.tag(x + width - BAND, y + PICTURE_HEIGHT, BAND, letter)
        top = y + PICTURE_HEIGHT + BAND + 2
        word, value = score_words(self.answer, case, self.t)
        self.put(x + PAD, top, f"#{case.rank}", 11, INK, "B")
        left = x + PAD + self.width_of(f"#{case.rank}", 11, "B") + 2
        self.put(x + width - PAD, top, value, 11, INK, "B", right=True)
        room = x + width - PAD - self.width_of(value, 11, "B") - 2 - left
        kind = " · ".join(filter(None, (clean_text(case.modality), word)))
        self.put(left, top + 0.8, shortened(kind, lambda s: self.width_of(s, 8.5), room), 8.5, SOFT)
        top += 6.6
        if self.below_threshold:
            self.put(x + PAD, top, self.t.below_threshold_short, 8.5, WARNING_INK, "B")
            top += LINE
        self.symbol(x + PAD + 1.5, top + 1.75, case.status)
        for i, line in enumerate(tile.lines):
            ink = INK if case.status is FindingStatus.PRESENT else SOFT
            at = x + width - PAD if line.from_right else x + PAD + 5
            self.put(at, top + i * LINE, line.text, 8.5, ink, right=line.from_right)
        self.set_draw_color(*RULE)
        self.set_line_width(0.25)
        self.rect(x, y, width, height)
        if self.link_to:
            self.link(x, y, width, height, case_link(self.link_to, case.rank), alt_text=f"#{case.rank}")

    def band(self, x: float, y: float, width: float, text: str, colour: Colour, ink: Colour) -> None:
        self.set_fill_color(*colour)
        self.rect(x, y, width, BAND, "F")
        self.put(x + (width - self.width_of(text, 9.5, "B")) / 2, y + 1.3, text, 9.5, ink, "B")

    def tag(self, x: float, y: float, side: float, letter: str) -> None:
        """A letter in a square of this study's colour: it joins a case's slice to the study's."""
        self.set_fill_color(*OWN)
        self.rect(x, y, side, side, "F")
        size = side / POINT_MM * 0.62
        self.put(x + (side - self.width_of(letter, size, "B")) / 2, y + side * 0.14, letter, size, PAPER, "B")

    def picture(self, x: float, y: float, width: float, height: float, pixels: Pixels, words: str) -> None:
        """The whole slice in its own proportions, centred on black."""
        self.set_fill_color(0, 0, 0)
        self.rect(x, y, width, height, "F")
        scale = min(width / pixels.shape[1], height / pixels.shape[0])
        w, h = pixels.shape[1] * scale, pixels.shape[0] * scale
        self.image(_jpeg(pixels), x + (width - w) / 2, y + (height - h) / 2, w, h, alt_text=words)

    def symbol(self, x: float, y: float, status: FindingStatus) -> None:
        """As in the sheet: disc, ring, question mark in a broken ring."""
        self.set_line_width(0.35)
        if status is FindingStatus.PRESENT:
            self.set_fill_color(*PRESENT)
            self.circle(x, y, 1.5, "F")
        elif status is FindingStatus.NONE:
            self.set_draw_color(*SOFT)
            self.circle(x, y, 1.35, "D")
        else:
            self.set_draw_color(*SOFT)
            with self.local_context(dash_pattern={"dash": 0.9, "gap": 0.6, "phase": 0}):
                self.circle(x, y, 1.6, "D")
            self.put(x - self.width_of("?", 6.5, "B") / 2, y - 1.1, "?", 6.5, INK, "B")

    def footers(self) -> None:
        """Legend, note and page number on every page, once their number is known."""
        total = len(self.pages)
        note = self.t.similarity_note if self.answer.calibrated else self.t.score_note
        for number in range(1, total + 1):
            self.page = number
            self.set_fill_color(*SOFT)  # fpdf2 writes a colour only where it changes, and knows no page's last one
            self.rule(FOOTER_TOP)
            x = MARGIN
            for status, words in zip(
                (FindingStatus.PRESENT, FindingStatus.NONE, FindingStatus.UNKNOWN), self.t.legend, strict=True
            ):
                self.symbol(x + 1.5, FOOTER_TOP + 3.4, status)
                self.put(x + 4.6, FOOTER_TOP + 2, words, 7.5, SOFT)
                x += 4.6 + self.width_of(words, 7.5) + 5
            if any(case_letter(self.tiles, case) for case in self.answer.cases):
                self.tag(x, FOOTER_TOP + 1.8, TAG, "A")
                self.put(x + TAG + 1.2, FOOTER_TOP + 2, self.t.pair_note, 7.5, SOFT)
            self.put(MARGIN, FOOTER_TOP + 6.2, f"{note}  ·  {PRODUCT} {self.version}".strip(), 7.5, SOFT)
            page = self.t.page.format(n=number, total=total)
            self.put(WIDTH - MARGIN, FOOTER_TOP + 2, page, 8.5, INK, right=True)


def _jpeg(pixels: Pixels) -> BytesIO:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
    out = BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    out.seek(0)
    return out


def draw_document(tiles: Tiles, language: Language, version: str, link: str = "", *, created: datetime) -> bytes:
    """The answer as a PDF, A4 portrait, all cases on as many pages as they need.

    Parameters
    ----------
    tiles : Tiles
        Answer, query slices and case slices, uint8 [rows, columns]; de-identified.
    link : str
        Address of the answer's page; with an empty one nothing can be clicked.
    created : datetime
        Moment of the answer, with time zone: the document's creation date.
    """
    pages = _Pages(tiles, language, version, link, created)
    pages.draw()
    return bytes(pages.output())
