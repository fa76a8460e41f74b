"""Text that stands, hangs upside down, or is masked in part is found on real images, whole; anatomy is not text."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicomnode.deid.pixel_text import find_text
from dicomnode.testing.burned_in import BITMAP, stamp

Grey = NDArray[np.uint8]
Strokes = NDArray[np.bool_]
CT, US = "693_UNCR.dcm", "examples_rgb_color.dcm"


def image(name: str) -> Grey:
    """A slice of a CT in a window of soft tissue, or the sector of an ultrasound image without what is beside it."""
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name} is not installed (pydicom-data)")
    values = dcmread(found).pixel_array.astype(float)
    if values.ndim == 3:
        return np.ascontiguousarray(values.mean(axis=2)[60:, 20:300]).astype(np.uint8)
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) * 255 / (high - low), 0, 255).astype(np.uint8)


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


def test_anatomy_is_no_text() -> None:
    picture = image(CT)
    assert share_found(picture, np.ones(picture.shape, bool)) == 0
