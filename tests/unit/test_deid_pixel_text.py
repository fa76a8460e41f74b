"""Text that stands, hangs upside down, or is masked in part is found on real images, whole; anatomy is not text."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicomnode.deid.pixel_text import _end_of_line, _holds, find_text
from dicomnode.deid.rectangles import Rectangle
from dicomnode.testing.burned_in import BITMAP, stamp

Grey = NDArray[np.uint8]
Strokes = NDArray[np.bool_]
CT, US, LEG, KIDNEY = "693_UNCR.dcm", "examples_rgb_color.dcm", "RG3_UNCR.dcm", "US1_UNCI.dcm"
WITHOUT_TEXT = {US: (slice(60, None), slice(20, 300)), KIDNEY: (slice(118, 332), slice(60, 590))}


def image(name: str) -> Grey:
    """A slice of a CT, a radiograph, or the part of an ultrasound image that has no text, in 8 bits, up to 512 wide."""
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name} is not installed (pydicom-data)")
    ds = dcmread(found)
    values = ds.pixel_array.astype(float) * (-1 if ds.PhotometricInterpretation == "MONOCHROME1" else 1)
    if values.ndim == 3:
        values = values.mean(axis=2)[WITHOUT_TEXT[name]]
    low, high = (0, 255) if name == US else np.percentile(values, (0.5, 99.5))
    shown = Image.fromarray(np.clip((values - low) * 255 / (high - low), 0, 255).astype(np.uint8))
    shown.thumbnail((512, 512), Image.Resampling.LANCZOS)
    return np.array(shown)


def planted(picture: Grey, text: str, font: str, size: int, turn: int, at: tuple[int, int]) -> tuple[Grey, Strokes]:
    """White text, turned by ``turn`` quarters, with its top left corner ``at`` (row, column)."""
    alpha = np.rot90(stamp(text, font, size), turn)
    window = (slice(at[0], at[0] + alpha.shape[0]), slice(at[1], at[1] + alpha.shape[1]))
    out, strokes = picture.astype(float), np.zeros(picture.shape, bool)
    assert out[window].shape == alpha.shape
    out[window] = out[window] * (1 - alpha) + 255 * alpha
    strokes[window] = alpha > 0.5
    return np.round(out).astype(np.uint8), strokes


def share_found(picture: Grey, strokes: Strokes) -> float:
    mask = np.zeros(picture.shape, bool)
    for place in find_text(np.repeat(picture[..., None], 3, axis=2)):
        mask[place.window] = True
    return float(mask[strokes].mean())


def blanked(picture: Grey, strokes: Strokes, part: tuple[float, float], across: tuple[float, float]) -> None:
    """Black out a part of a text, as shares of its length and of its height."""
    rows, columns = np.nonzero(strokes)
    (top, left), (bottom, right) = (rows.min(), columns.min()), (rows.max() + 1, columns.max() + 1)
    along, over = ((top, bottom), (left, right)) if bottom - top > right - left else ((left, right), (top, bottom))
    cut = [
        slice(round(low + share[0] * (high - low)), round(low + share[1] * (high - low)))
        for (low, high), share in ((along, part), (over, across))
    ]
    window = (cut[0], cut[1]) if bottom - top > right - left else (cut[1], cut[0])
    picture[window] = 0
    strokes[window] = False


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("name", "text", "font", "size", "at"),
    [
        (CT, "KOWALSKA ANNA 22/01/1972", "DejaVuSans-Bold.ttf", 20, (30, 60)),
        (CT, "ACC 714424", BITMAP, 11, (399, 149)),
        (CT, "ID: 29210642", "DejaVuSans.ttf", 16, (224, 230)),
        (CT, "DUPONT MARIE 05/03/1997", "DejaVuSans.ttf", 16, (100, 200)),
        (US, "ROSSI, PAOLO", "DejaVuSerif.ttf", 15, (40, 40)),
    ],
)
def test_text_turned_by_quarters_is_found_whole(
    name: str, text: str, font: str, size: int, at: tuple[int, int], turn: int
) -> None:
    assert share_found(*planted(image(name), text, font, size, turn, at)) >= 0.95


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("parts", "across"),
    [
        ([(0.3, 0.5)], (0.0, 1.0)),
        ([(0.15, 0.2), (0.4, 0.47), (0.7, 0.75)], (0.0, 1.0)),
        ([(0.3, 1.0)], (0.0, 1.0)),
        ([(0.0, 1.0)], (0.8, 1.0)),
    ],
    ids=["middle", "many", "all but the beginning", "a strip along it"],
)
def test_what_a_mask_left_of_a_text_is_found(
    parts: list[tuple[float, float]], across: tuple[float, float], turn: int
) -> None:
    picture, strokes = planted(image(CT), "DUPONT MARIE 05/03/1997", "DejaVuSans.ttf", 16, turn, (100, 200))
    for part in parts:
        blanked(picture, strokes, part, across)
    assert share_found(picture, strokes) >= 0.95


def test_two_standing_letters_that_are_left_are_read_together() -> None:
    picture, strokes = planted(image(CT), "ID", "DejaVuSans-Bold.ttf", 16, 1, (15, 480))
    assert share_found(picture, strokes) >= 0.95


def test_a_small_line_beside_a_large_one_keeps_its_own_height() -> None:
    """Blanked as high as the large one, it would take anatomy with it."""
    picture, large = planted(np.full((240, 512), 40, np.uint8), "ID 00086401", "DejaVuSans.ttf", 36, 0, (60, 20))
    picture, small = planted(picture, "Figueroa, Ana", "DejaVuSans.ttf", 13, 0, (70, 300))
    assert share_found(picture, large) == share_found(picture, small) == 1
    rows, columns = np.nonzero(small)
    beside = [place for place in find_text(np.repeat(picture[..., None], 3, axis=2)) if place.right > columns.min() + 9]
    assert beside
    assert all(rows.min() - 24 <= place.top and place.bottom <= rows.max() + 24 for place in beside)
    assert all(place.right <= columns.max() + 24 for place in beside)


@pytest.mark.parametrize("turn", [1, 3])
def test_a_line_that_stands_beside_bone_is_found(turn: int) -> None:
    """The detector proposes it in the picture turned by a quarter only."""
    picture, strokes = planted(image(LEG), "Cifuentes, Matías", "STIXGeneralItalic.ttf", 24, turn, (260, 114))
    assert share_found(picture, strokes) >= 0.95


def test_small_letters_over_speckle_are_found() -> None:
    """They are too small for the detector at twice the size; a low picture is looked at larger."""
    picture, strokes = planted(image(KIDNEY), "ID PAT-0023891", "STIXGeneral.ttf", 15, 0, (167, 310))
    assert share_found(picture, strokes) >= 0.95


@pytest.mark.parametrize(
    ("signs", "end"),
    [
        ([(112, 0.61)], 122),  # near: a letter that the detector cut off
        ([(150, 0.84)], 100),  # a rib that looks somewhat like a letter
        ([(150, 0.86)], 160),  # another word of the line
        ([(165, 0.99)], 100),  # too far to belong to it
        ([(112, 0.61), (135, 0.61)], 145),
    ],
)
def test_a_line_grows_by_signs_that_are_near_or_certain(signs: list[tuple[float, float]], end: int) -> None:
    assert _end_of_line(100, signs, 20) == end


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize(
    ("other", "of_other"),
    [(Rectangle(7, 10, 25, 110), True), (Rectangle(0, 10, 14, 110), False), (Rectangle(7, 70, 25, 110), False)],
    ids=["half beside it", "a line above", "elsewhere in the line"],
)
def test_signs_of_a_line_half_beside_another_are_its_own(other: Rectangle, of_other: bool, standing: bool) -> None:
    line = Rectangle(12, 224, 50, 464)
    pair = (other.transposed, line.transposed) if standing else (other, line)
    assert _holds(pair[0], 60, pair[1], standing) == of_other


def test_anatomy_is_no_text() -> None:
    picture = image(CT)
    assert share_found(picture, np.ones(picture.shape, bool)) == 0
