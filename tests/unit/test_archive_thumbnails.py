"""Thumbnails: kept on disk, removed with their study, joined to sheets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dicomnode.archive.thumbnails import SIDE, Thumbnails, atlas, fitted
from dicomnode.domain import PseudoUid

STUDY, OTHER, INSTANCE = PseudoUid("2.25.1"), PseudoUid("2.25.2"), PseudoUid("2.25.11")


def picture(value: int = 200, shape=(224, 224)):
    return np.full(shape, value, dtype=np.uint8)


def test_a_picture_is_kept_small_and_another_process_sees_it(tmp_path):
    Thumbnails(tmp_path / "t").put(STUDY, INSTANCE, 3, picture())
    found = Thumbnails(tmp_path / "t").get(STUDY, INSTANCE, 3)
    assert found.shape == (SIDE, SIDE)
    assert found.mean() == pytest.approx(200, abs=2)
    assert Thumbnails(tmp_path / "t").get(STUDY, INSTANCE, 0) is None
    (file,) = [p for p in (tmp_path / "t").rglob("*") if p.is_file()]
    assert file.stat().st_size < 8192
    assert "2.25.1" in file.parent.name


def test_a_picture_that_another_process_replaced_or_removed_is_seen_so(tmp_path):
    mine, theirs = Thumbnails(tmp_path), Thumbnails(tmp_path)
    theirs.put(STUDY, INSTANCE, 0, picture(200))
    assert mine.get(STUDY, INSTANCE, 0).mean() > 190
    theirs.put(STUDY, INSTANCE, 0, picture(20))
    assert mine.get(STUDY, INSTANCE, 0).mean() < 30
    theirs.remove_study(STUDY)
    assert mine.get(STUDY, INSTANCE, 0) is None


def test_removing_a_study_takes_its_pictures_only(tmp_path):
    kept = Thumbnails(tmp_path)
    kept.put(STUDY, INSTANCE, 0, picture())
    kept.put(OTHER, INSTANCE, 0, picture())
    kept.remove_study(STUDY)
    kept.remove_study(STUDY)
    assert kept.get(STUDY, INSTANCE, 0) is None
    assert kept.get(OTHER, INSTANCE, 0) is not None


def test_a_damaged_file_is_as_none(tmp_path):
    kept = Thumbnails(tmp_path)
    kept.put(STUDY, INSTANCE, 0, picture())
    (file,) = list(tmp_path.rglob("*.webp"))
    file.write_bytes(file.read_bytes()[:50])
    assert kept.get(STUDY, INSTANCE, 0) is None
    Image.new("L", (10, 10)).save(file, "WEBP")
    assert kept.get(STUDY, INSTANCE, 0) is None


def test_a_folder_that_cannot_be_written_costs_the_picture_and_nothing_else(tmp_path):
    (tmp_path / "t").write_text("a file where the folder would be")
    kept = Thumbnails(tmp_path / "t")
    kept.put(STUDY, INSTANCE, 0, picture())
    assert kept.get(STUDY, INSTANCE, 0) is None


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (1, 500), (64, 64), (5, 5)])
def test_any_shape_is_fitted_into_a_square_without_distortion(shape):
    small = fitted(picture(255, shape))
    assert small.shape == (SIDE, SIDE)
    lit = np.argwhere(small > 128)
    height, width = lit.max(axis=0) - lit.min(axis=0) + 1
    assert max(height, width) == SIDE
    assert height / width == pytest.approx(max(shape[0] / shape[1], 1 / SIDE), rel=0.1)


def test_a_sheet_has_eight_a_row_and_gaps_are_transparent():
    small = [fitted(picture(v)) for v in range(10, 110, 10)]
    sheet = Image.open(io.BytesIO(atlas([*small[:4], None, *small[5:]], 64)))
    assert sheet.size == (512, 128)
    pixels = np.asarray(sheet.convert("RGBA"))
    for n in range(10):
        cut = pixels[n // 8 * 64 : n // 8 * 64 + 64, n % 8 * 64 : n % 8 * 64 + 64]
        if n == 4:
            assert cut[..., 3].max() == 0
        else:
            assert cut[20:40, 20:40, 0].mean() == pytest.approx(10 * (n + 1), abs=4)
            assert cut[..., 3].min() == 255
    assert pixels[64:, 128:, 3].max() == 0  # where nothing was asked for


def test_a_sheet_of_gaps_alone_is_a_picture_too():
    assert np.asarray(Image.open(io.BytesIO(atlas([None], 32))).convert("RGBA"))[..., 3].max() == 0
