"""What a contact sheet or a PDF of an answer shows, and the words below each case; both draw from this.

De-identified throughout: slices, ranks, scores, findings and fixed sentences; no name, id, date or UID of the query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dicomnode.domain import Answer, Case, Finding, FindingStatus
from dicomnode.report.codes import Texts
from dicomnode.report.fonts import drawable, without_controls
from dicomnode.report.header import clean_text
from dicomnode.report.spec import QueryImage
from dicomnode.report.words import finding_text, query_slice

Pixels = npt.NDArray[np.uint8]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the query's slices


@dataclass(frozen=True, slots=True)
class QueryTile:
    """One slice of the query: grey levels ready for display, uint8 [rows, columns].

    ``image`` says where it lies in the hospital's study; None where that is not known or not to be shown.
    """

    pixels: Pixels
    image: QueryImage | None = None


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
    pairs : mapping of rank to place in ``query``
        The query slice that the case's slice matched; none where that slice is not among ``query``.
    """

    answer: Answer
    query: tuple[QueryTile, ...]
    cases: Mapping[int, Pixels]
    pairs: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pixels in (*(q.pixels for q in self.query), *self.cases.values()):
            if pixels.ndim != 2 or pixels.dtype != np.uint8 or 0 in pixels.shape:
                raise ValueError("a tile is a uint8 array of rows by columns")


def score_words(answer: Answer, case: Case, t: Texts) -> tuple[str, str]:
    """The word and the number, such as ("similarity", "93.1 %") where calibrated, else ("score", "0.931")."""
    words = t.similarity if answer.calibrated else t.score
    value = f"{100 * case.similarity:.1f} %" if answer.calibrated else f"{case.similarity:.3f}"
    return words.format(value="").strip(), value.replace(".", t.decimal)


def finding_lines(case: Case, t: Texts) -> list[str]:
    """What is known of a case, one text a finding, each of them drawable; the same words in two systems once."""

    def line(finding: Finding) -> str:
        display = without_controls(clean_text(finding.display))
        # A script that the font cannot draw would be a row of empty boxes: the code is at least readable.
        return display if drawable(display) else without_controls(clean_text(f"{finding.system} {finding.code}"))

    if case.status is FindingStatus.PRESENT and case.findings:
        said = (text if drawable(text := line(f)) and text.strip() else t.finding_uncoded for f in case.findings)
        return list(dict.fromkeys(said))
    return finding_text(case, t)


def slice_words(tile: QueryTile, t: Texts) -> str:
    """Where a slice of the query lies, empty where that is not known."""
    return "" if tile.image is None else query_slice(tile.image, t)


def query_letter(tiles: Tiles, place: int) -> str:
    """The letter of a slice of the query; empty where no case needs it, or there is one slice only."""
    return LETTERS[place] if tiles.pairs and len(tiles.query) > 1 else ""


def case_letter(tiles: Tiles, case: Case) -> str:
    """The letter of the query's slice that the case's slice is like; empty where that slice is not shown."""
    place = tiles.pairs.get(case.rank)
    return "" if place is None else query_letter(tiles, place)
