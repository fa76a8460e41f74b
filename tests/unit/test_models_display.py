"""Series as people look at them: in the order of their position, with values that a viewer can window."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicomnode.domain import PseudoUid
from dicomnode.models.display import FrameAt, frame_values, order_series, picture_series, rendered, window_of
from dicomnode.models.preprocess import UnusableImage
from dicomnode.testing import sample_study


def write(folder: Path, study) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n, ds in enumerate(study):
        paths.append(folder / f"{n}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def sample_file(name: str) -> Path:
    found = get_testdata_file(name)
    assert isinstance(found, str), f"{name} of pydicom-data is needed"
    return Path(found)


def only(path: Path):
    (series,) = order_series([path])
    return series


class TestOrder:
    def test_frames_go_from_the_head_down_whatever_their_numbers_say(self, tmp_path):
        study = sample_study(6, matrix=64)
        for ds, number in zip(study, (3, 1, 6, 2, 5, 4), strict=True):
            ds.InstanceNumber = number
        (series,) = order_series(reversed(write(tmp_path, study)))
        heights = [dcmread(f.path).ImagePositionPatient[2] for f in series.frames]
        assert heights == sorted(heights, reverse=True)

    def test_without_geometry_the_numbers_count(self, tmp_path):
        study = sample_study(4, matrix=64, ImagePositionPatient=None)
        for ds, number in zip(study, (3, 1, 4, 2), strict=True):
            ds.InstanceNumber = number
        (series,) = order_series(write(tmp_path, study))
        assert [dcmread(f.path).InstanceNumber for f in series.frames] == [1, 2, 3, 4]

    def test_frames_of_another_size_are_a_series_of_their_own(self, tmp_path):
        one = sample_study(3, matrix=64)
        other = sample_study(2, matrix=96, study_uid=one[0].StudyInstanceUID)
        for ds in other:
            ds.SeriesInstanceUID = one[0].SeriesInstanceUID
        found = order_series([*write(tmp_path / "a", one), *write(tmp_path / "b", other)])
        assert [(s.rows, len(s.frames)) for s in found] == [(64, 3), (96, 2)]

    def test_every_frame_of_a_multi_frame_object_is_there(self):
        series = only(sample_file("emri_small.dcm"))
        assert sorted(f.frame for f in series.frames) == list(range(10))
        assert only(sample_file("examples_ybr_color.dcm")).frames[7].frame == 7  # no geometry: as stored

    def test_of_wanted_frames_only_these(self):
        path = sample_file("emri_small.dcm")
        (series,) = order_series([path], only={(path, 3), (path, 5)})
        assert sorted(f.frame for f in series.frames) == [3, 5]

    def test_what_shows_no_image_or_is_damaged_is_left_out(self, tmp_path):
        good = write(tmp_path, sample_study(2, matrix=64))
        (tmp_path / "text.dcm").write_text("text")
        cut = tmp_path / "cut.dcm"
        cut.write_bytes(good[0].read_bytes()[:300])
        paths = [*good, tmp_path / "text.dcm", cut, tmp_path / "absent.dcm", sample_file("rtdose.dcm")]
        (series,) = order_series(paths)
        assert len(series.frames) == 2


class TestValues:
    def test_ct_is_in_hounsfield_units_with_presets(self, tmp_path):
        study = sample_study(1, matrix=64)
        (series,) = order_series(write(tmp_path, study))
        values = frame_values(series.frames[0], series.scale)
        assert (values.dtype, series.is_hounsfield, series.scale) == (np.dtype("<i2"), True, 1.0)
        expected = study[0].pixel_array * study[0].RescaleSlope + study[0].RescaleIntercept
        assert np.array_equal(values, expected)

    def test_values_beyond_int16_are_clipped_for_ct(self, tmp_path):
        study = sample_study(1, matrix=64, RescaleSlope="100")
        (series,) = order_series(write(tmp_path, study))
        values = frame_values(series.frames[0], series.scale)
        assert (values.min(), values.max()) == (-1024, 32767)

    def test_sixteen_bits_of_another_modality_are_scaled_to_fit_and_their_window_too(self):
        path = sample_file("SC_rgb_16bit.dcm")
        series = only(path)
        values = frame_values(series.frames[0], series.scale)
        assert values.max() > 32000
        assert series.window == pytest.approx((16383.5, 32767.0))

    def test_small_fractions_are_stretched_so_that_they_are_not_lost(self, tmp_path):
        study = sample_study(1, matrix=64, modality="MR", RescaleSlope="0.001", RescaleIntercept="0")
        (series,) = order_series(write(tmp_path, study))
        values = frame_values(series.frames[0], series.scale)
        assert len(np.unique(values)) == len(np.unique(study[0].pixel_array))

    @pytest.mark.parametrize("name", ["examples_palette.dcm", "examples_rgb_color.dcm", "OBXXXX1A.dcm"])
    def test_colour_becomes_luminance(self, name):
        series = only(sample_file(name))
        values = frame_values(series.frames[0], series.scale)
        assert values.shape == (series.rows, series.columns)
        assert 0 <= values.min() < values.max() <= 255
        assert series.window == (127.5, 255.0)

    def test_monochrome1_is_said_and_not_inverted_here(self):
        series = only(sample_file("RG1_J2KI.dcm"))
        assert series.monochrome1
        values = frame_values(series.frames[0], series.scale)
        window = series.window or window_of(values)
        assert rendered(values, window).mean() + rendered(values, window, inverted=True).mean() == pytest.approx(
            255, abs=1
        )

    def test_a_frame_without_a_window_is_shown_by_its_percentiles(self, tmp_path):
        study = sample_study(1, matrix=64, modality="MR", WindowCenter=None, WindowWidth=None)
        (series,) = order_series(write(tmp_path, study))
        assert series.window is None
        values = frame_values(series.frames[0])
        centre, width = window_of(values)
        assert values.min() <= centre - width / 2 < centre + width / 2 <= values.max()
        assert window_of(np.zeros((4, 4), dtype=np.int16)) == (0.0, 1.0)

    def test_a_frame_that_cannot_be_decoded_is_told(self, tmp_path):
        (path,) = write(tmp_path, sample_study(1, matrix=64))
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(UnusableImage, match="cannot be decoded"):
            frame_values(FrameAt(path, PseudoUid("1"), 0))
        with pytest.raises(UnusableImage):
            frame_values(FrameAt(path, PseudoUid("1"), 7))

    def test_a_picture_is_a_series_of_one_frame(self, tmp_path):
        Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "0.png")
        series = picture_series(tmp_path / "0.png")
        assert (series.rows, series.columns, len(series.frames)) == (3, 4, 1)
        assert frame_values(series.frames[0])[2, 3] == 11
        shutil.copy(tmp_path / "0.png", tmp_path / "cut.png")
        (tmp_path / "cut.png").write_bytes(b"\x89PNG")
        with pytest.raises(UnusableImage):
            picture_series(tmp_path / "cut.png")
