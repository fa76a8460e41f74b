"""Preprocessing by modality, and every bad input ends as one reason, never as a crash."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicomnode.models.frames import frame_header
from dicomnode.models.pictures import clean_picture
from dicomnode.models.preprocess import (
    SIDE,
    UnusableImage,
    body_square,
    mask_on_frame,
    picture_pixels,
    prepare_dicom,
    prepare_dicom_mask,
    prepare_file,
    prepare_picture,
)
from dicomnode.models.training.tables import read_upright
from dicomnode.workflow.labels import read_picture


def sample(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path, f"pydicom-data is not installed: {name}"
    return Path(str(path))


def image(pixels: np.ndarray, **attributes: object) -> Dataset:
    """A MONOCHROME2 CT object around stored values; attributes override."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "CT", "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = 1 if pixels.dtype == np.int16 else 0
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [1.0, 1.0], 1, 0
    ds.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def saved(tmp_path: Path, ds: Dataset) -> Path:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def thorax(side: int = 256) -> np.ndarray:
    """Stored values as HU: air around an ellipse of soft tissue with two lungs."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    hu = np.full((side, side), -1000, dtype=np.int16)
    hu[(x / 0.6) ** 2 + (y / 0.4) ** 2 < 1] = 40
    for c in (-0.28, 0.28):
        hu[((x - c) / 0.18) ** 2 + (y / 0.28) ** 2 < 1] = -850
    return hu


def test_ct_goes_through_the_fixed_lung_window_whatever_the_header_says(tmp_path: Path) -> None:
    plain = prepare_dicom(saved(tmp_path, image(thorax()))).pixels
    windowed = prepare_dicom(saved(tmp_path, image(thorax(), WindowCenter=40, WindowWidth=80))).pixels
    np.testing.assert_array_equal(plain, windowed)
    assert plain.shape == (SIDE, SIDE)
    assert plain.dtype == np.float32
    # -600/1500: 40 HU is .93, lungs of -850 HU are .33
    assert plain[SIDE // 2, SIDE // 2] == pytest.approx((40 + 1350) / 1500, abs=0.01)


def test_rescale_is_applied_before_the_window(tmp_path: Path) -> None:
    raw = (thorax().astype(np.int32) + 1024).astype(np.uint16)
    shifted = prepare_dicom(saved(tmp_path, image(raw, RescaleIntercept=-1024))).pixels
    np.testing.assert_allclose(shifted, prepare_dicom(saved(tmp_path, image(thorax()))).pixels, atol=1e-6)


def test_the_body_fills_the_square_wherever_it_lies(tmp_path: Path) -> None:
    moved = np.roll(thorax(), (30, -40), axis=(0, 1))
    a, b = (prepare_dicom(saved(tmp_path, image(p))).pixels for p in (thorax(), moved))
    assert np.abs(a - b).mean() < 0.02


def test_the_square_is_square_in_millimetres() -> None:
    left, top, right, bottom = body_square(thorax().astype(np.float32), (2.0, 1.0)) or (0, 0, 0, 0)
    assert (right - left) * 1.0 == pytest.approx((bottom - top) * 2.0)


def test_air_alone_has_no_body() -> None:
    assert body_square(np.full((256, 256), -1000, dtype=np.float32), (1.0, 1.0)) is None


def test_padding_is_masked_on_stored_values(tmp_path: Path) -> None:
    padded = thorax()
    padded[:20] = -2000
    clean = prepare_dicom(saved(tmp_path, image(thorax()))).pixels
    masked = prepare_dicom(saved(tmp_path, image(padded, RescaleIntercept=0, PixelPaddingValue=-2000))).pixels
    assert np.abs(clean - masked).max() < 0.05


def test_a_padding_value_written_unsigned_still_matches_signed_pixels() -> None:
    from dicomnode.models.preprocess import padding_mask

    ds = image(thorax())
    ds["PixelPaddingValue"] = type(ds["Rows"])(0x00280120, "US", 63536)  # -2000 as unsigned
    stored = thorax()
    stored[0, :5] = -2000
    mask = padding_mask(stored, ds)
    assert mask is not None
    assert mask.sum() == 5


def test_monochrome1_is_inverted_once(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16), (256, 1))
    common = {"Modality": "CR", "WindowCenter": 128, "WindowWidth": 256}
    light = prepare_dicom(saved(tmp_path, image(ramp, **common))).pixels
    dark = prepare_dicom(saved(tmp_path, image(ramp, PhotometricInterpretation="MONOCHROME1", **common))).pixels
    guarded = prepare_dicom(
        saved(
            tmp_path,
            image(ramp, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **common),
        )
    ).pixels
    np.testing.assert_allclose(dark, 1 - light, atol=1e-5)
    np.testing.assert_array_equal(guarded, dark)


def test_a_real_monochrome1_radiograph_shows_a_dark_background() -> None:
    pixels = prepare_dicom(sample("RG1_UNCR.dcm")).pixels
    assert pixels[:8, :8].mean() < pixels[60:160, 60:160].mean() + 0.5
    assert pixels.std() > 0.1


@pytest.mark.parametrize("width", [0, 1e9])
def test_a_useless_window_gives_way_to_percentiles(tmp_path: Path, width: float) -> None:
    noise = np.random.default_rng(0).integers(0, 900, (64, 64)).astype(np.uint16)
    centre = 100 if width == 0 else 1e9
    prepared = prepare_dicom(saved(tmp_path, image(noise, Modality="MR", WindowCenter=centre, WindowWidth=width)))
    assert prepared.pixels.std() > 0.1
    assert any("percentiles" in n for n in prepared.notes)


def test_missing_spacing_is_noted_not_fatal(tmp_path: Path) -> None:
    prepared = prepare_dicom(saved(tmp_path, image(thorax(), PixelSpacing=None)))
    assert prepared.notes == ("pixel spacing is missing: square pixels assumed",)


def test_colour_becomes_luminance() -> None:
    path = sample("SC_rgb.dcm")
    rgb = dcmread(path).pixel_array.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
    assert prepare_dicom(path).pixels.mean() == pytest.approx(rgb.mean(), abs=0.01)


def test_ybr_and_rgb_of_the_same_picture_agree() -> None:
    a, b = (prepare_dicom(sample(n)).pixels for n in ("SC_rgb.dcm", "SC_ybr_full_uncompressed.dcm"))
    assert np.abs(a - b).max() < 0.02


def test_frames_of_a_multi_frame_object_differ() -> None:
    a, b = (prepare_dicom(sample("emri_small.dcm"), frame).pixels for frame in (0, 5))
    assert np.abs(a - b).max() > 0.05


def enhanced_ct() -> Dataset:
    """Two frames with one intercept shared and one overridden."""
    stored = np.stack([thorax(), thorax()])
    ds = image(stored, NumberOfFrames=2, RescaleSlope=None, RescaleIntercept=None, PixelSpacing=None)
    ds.SOPClassUID = EnhancedCTImageStorage

    def group(**items: Dataset) -> Dataset:
        out = Dataset()
        for keyword, item in items.items():
            setattr(out, keyword, Sequence([item]))
        return out

    def item(**values: object) -> Dataset:
        out = Dataset()
        for keyword, value in values.items():
            setattr(out, keyword, value)
        return out

    ds.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                PixelMeasuresSequence=item(PixelSpacing=[0.5, 0.5]),
                PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=0),
                PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            )
        ]
    )
    ds.PerFrameFunctionalGroupsSequence = Sequence(
        [
            group(PlanePositionSequence=item(ImagePositionPatient=[0, 0, 10])),
            group(
                PlanePositionSequence=item(ImagePositionPatient=[0, 0, 15]),
                PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-200),
            ),
        ]
    )
    return ds


def test_per_frame_groups_override_shared_ones(tmp_path: Path) -> None:
    path = saved(tmp_path, enhanced_ct())
    heads = [frame_header(dcmread(path), i) for i in (0, 1)]
    assert [h.intercept for h in heads] == [0, -200]
    assert [h.spacing for h in heads] == [(0.5, 0.5)] * 2
    assert [float(h.position[2]) for h in heads if h.position is not None] == [10, 15]
    first, second = (prepare_dicom(path, i).pixels for i in (0, 1))
    assert first[112, 112] - second[112, 112] == pytest.approx(200 / 1500, abs=0.01)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("JPEG-lossy.dcm", "undecodable"),  # 12-bit JPEG Extended
        ("JPGExtended.dcm", "undecodable"),
        ("MR_truncated.dcm", "undecodable"),
        ("rtplan.dcm", "no-pixels"),
        ("reportsi.dcm", "no-pixels"),
        ("image_dfl.dcm", "no-pixels"),
        ("no_meta.dcm", "not-dicom"),
    ],
)
def test_what_cannot_be_used_has_a_reason(name: str, reason: str) -> None:
    with pytest.raises(UnusableImage) as caught:
        prepare_dicom(sample(name))
    assert caught.value.reason == reason


def test_constant_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableImage, match="same value"):
        prepare_dicom(saved(tmp_path, image(np.zeros((64, 64), dtype=np.int16))))


def test_an_all_padding_slice_is_refused(tmp_path: Path) -> None:
    pixels = np.full((64, 64), -2000, dtype=np.int16)
    with pytest.raises(UnusableImage, match="padding"):
        prepare_dicom(saved(tmp_path, image(pixels, PixelPaddingValue=-2000)))


def test_ct_without_rescale_is_refused_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(UnusableImage) as caught:
        prepare_dicom(saved(tmp_path, image(thorax(), RescaleSlope=None, RescaleIntercept=None)))
    assert caught.value.reason == "no-rescale"


def test_nan_pixels_are_refused(tmp_path: Path) -> None:
    values = np.ones((32, 32), dtype=np.float32)
    values[3, 3] = np.nan
    values[4, 4] = 0
    ds = image(np.zeros((32, 32), dtype=np.int16), Modality="MR")
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.BitsAllocated, ds.FloatPixelData = 32, values.tobytes()
    with pytest.raises(UnusableImage) as caught:
        prepare_dicom(saved(tmp_path, ds))
    assert caught.value.reason == "not-finite"


def test_a_frame_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnusableImage) as caught:
        prepare_dicom(sample("CT_small.dcm"), 7)
    assert caught.value.reason == "no-frame"


@pytest.mark.parametrize("keep", [100, 200, 1000, 20000])
def test_a_file_cut_anywhere_never_crashes(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.dcm"
    path.write_bytes(sample("CT_small.dcm").read_bytes()[:keep])
    with pytest.raises(UnusableImage):
        prepare_dicom(path)


def test_every_pydicom_test_file_is_prepared_or_refused() -> None:
    done = 0
    for name in get_testdata_files("**/*.dcm"):
        try:
            pixels = prepare_dicom(Path(name)).pixels
        except UnusableImage as e:
            assert e.reason in {"undecodable", "no-pixels", "not-dicom", "truncated", "constant"}
            continue
        assert pixels.shape == (SIDE, SIDE)
        assert np.isfinite(pixels).all()
        assert 0 <= pixels.min() < pixels.max() <= 1
        done += 1
    assert done > 40


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_plain_pictures_of_any_format_agree(tmp_path: Path, suffix: str) -> None:
    y, x = np.mgrid[0:300, 0:500]
    picture = Image.fromarray(((np.sin(x / 40) + np.cos(y / 30) + 2) * 60).astype(np.uint8))
    path, reference = tmp_path / f"p.{suffix}", tmp_path / "reference.png"
    picture.save(path, quality=95)
    picture.save(reference)
    assert np.abs(prepare_file(path).pixels - prepare_picture(reference).pixels).mean() < 0.01


def test_sixteen_bit_pictures_keep_their_contrast(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4095, 256), (256, 1)).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels = prepare_picture(tmp_path / "deep.png").pixels
    assert pixels.max() > 0.95
    assert len(np.unique(pixels)) > 100


def odd_pictures(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Pictures as telephones and figures come, each with what it shows: upright, transparency on black."""
    y, x = np.mgrid[0:240, 0:320]
    shown = ((np.sin(x / 40) + np.cos(y / 30) + 2) * 60).astype(np.uint8)
    shown[:40] = 0
    reference, sideways, cut = folder / "shown.png", folder / "sideways.png", folder / "cut.png"
    Image.fromarray(shown).save(reference)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(np.rot90(shown)).save(sideways, exif=exif)
    bright = np.where(shown == 0, 255, shown).astype(np.uint8)
    Image.fromarray(np.dstack([bright, bright, bright, np.where(shown == 0, 0, 255).astype(np.uint8)])).save(cut)
    return {"sideways": (sideways, reference), "cut": (cut, reference)}


@pytest.mark.parametrize("kind", ["sideways", "cut"])
def test_a_picture_is_seen_as_it_is_shown_by_every_way(tmp_path: Path, kind: str) -> None:
    picture, reference = odd_pictures(tmp_path)[kind]
    expected = prepare_picture(reference).pixels
    cleaned = tmp_path / "cleaned.png"
    clean_picture(picture, cleaned)  # a query
    ways = {
        "evaluate": prepare_file(picture).pixels,
        "query": prepare_picture(cleaned).pixels,
        "train": read_upright(picture) / 255,
        "index add": picture_pixels(Image.fromarray(read_picture(picture))),
    }
    for way, pixels in ways.items():
        assert np.abs(pixels - expected).max() <= 1 / 254, way
    assert prepare_picture(picture).frame == prepare_picture(reference).frame


@pytest.mark.parametrize("side", [10_500, 20_000])  # beyond our limit, and beyond Pillow's own
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_refused_undecoded(tmp_path: Path, side: int) -> None:
    Image.new("1", (1, 1)).save(tmp_path / "large.png")
    content = bytearray((tmp_path / "large.png").read_bytes())
    content[16:24] = side.to_bytes(4) * 2  # width and height (PNG 11.2.2); the checksum that follows covers them
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    (tmp_path / "large.png").write_bytes(content)
    with pytest.raises(UnusableImage) as caught:
        prepare_picture(tmp_path / "large.png")
    assert caught.value.reason == "too-large"


def test_a_broken_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UnusableImage) as caught:
        prepare_file(tmp_path / "x.png")
    assert caught.value.reason == "undecodable"


def test_refusals_never_name_the_patient() -> None:
    for name in ("JPEG-lossy.dcm", "MR_truncated.dcm"):
        ds = dcmread(sample(name), stop_before_pixels=True)
        with pytest.raises(UnusableImage) as caught:
            prepare_dicom(sample(name))
        text = str(caught.value)
        assert str(ds.SOPInstanceUID) not in text
        assert str(ds.get("PatientName", "-")) not in text


def off_centre(side: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A body that lies to the upper left, and its lungs."""
    hu = np.roll(thorax(side), (-side // 6, -side // 8), (0, 1))
    return hu, hu == -850


class TestTheWayBack:
    """What the network says of a prepared slice is laid on the frame where it belongs."""

    @pytest.mark.parametrize("spacing", [[1, 1], [0.5, 1.2], None])
    @pytest.mark.parametrize("side", [96, 256, 512])
    def test_a_mask_that_was_cut_out_lies_where_it_was(self, tmp_path: Path, side: int, spacing: object) -> None:
        hu, lungs = off_centre(side)
        path = saved(tmp_path, image(hu, PixelSpacing=spacing))
        prepared = prepare_dicom(path)
        assert prepared.frame == hu.shape
        assert prepared.box != (0, 0, side, side)
        back = mask_on_frame(prepare_dicom_mask(path, lungs), prepared.box, prepared.frame)
        assert back.shape == lungs.shape
        assert 2 * (back & lungs).sum() / (back.sum() + lungs.sum()) > 0.97
        for axis in (0, 1):
            found, wanted = np.flatnonzero(back.any(axis)), np.flatnonzero(lungs.any(axis))
            assert abs(found[0] - wanted[0]) <= 2
            assert abs(found[-1] - wanted[-1]) <= 2

    def test_a_known_box_is_hit_exactly(self) -> None:
        mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
        mask[56:112, 112:168] = True  # the second quarter down, the third across
        back = mask_on_frame(mask, (40, 20, 140, 120), (200, 200))
        wanted = np.zeros((200, 200), dtype=np.bool_)
        wanted[45:70, 90:115] = True
        np.testing.assert_array_equal(back, wanted)

    def test_what_the_box_shows_outside_of_the_frame_is_cut_off(self) -> None:
        full = np.ones((SIDE, SIDE), dtype=np.bool_)
        assert mask_on_frame(full, (-50, -10, 60, 100), (80, 90))[:, :60].all()
        assert not mask_on_frame(full, (-50, -10, 60, 100), (80, 90))[:, 60:].any()
        assert not mask_on_frame(full, (200, 200, 300, 300), (80, 90)).any()

    def test_a_large_frame_has_a_coarser_mask_of_the_same_shape(self) -> None:
        full = np.ones((SIDE, SIDE), dtype=np.bool_)
        back = mask_on_frame(full, (0, 0, 3000, 1500), (3000, 4000))
        assert back.shape == (768, 1024)
        assert back[:384, :768].all()
        assert back.sum() == 384 * 768

    def test_the_place_is_the_box_in_shares_of_the_frame(self, tmp_path: Path) -> None:
        hu, _ = off_centre()
        prepared = prepare_dicom(saved(tmp_path, image(hu)))
        left, top, right, bottom = prepared.place
        assert (left * 256, top * 256, right * 256, bottom * 256) == prepared.box
        body = hu > -500
        rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
        assert left <= columns[0] / 256
        assert right >= columns[-1] / 256
        assert (top + bottom) / 2 == pytest.approx((rows[0] + rows[-1]) / 2 / 256, abs=0.01)

    def test_a_picture_is_shown_whole(self, tmp_path: Path) -> None:
        Image.linear_gradient("L").resize((300, 100)).save(tmp_path / "wide.png")
        prepared = prepare_picture(tmp_path / "wide.png")
        assert (prepared.box, prepared.frame, prepared.place) == ((0, 0, 300, 100), (100, 300), (0, 0, 1, 1))
        upper = np.zeros((SIDE, SIDE), dtype=np.bool_)
        upper[: SIDE // 2] = True
        back = mask_on_frame(upper, prepared.box, prepared.frame)
        assert back[:50].all()
        assert not back[50:].any()


def abdomen(side: int = 256) -> np.ndarray:
    """The ellipse without lungs: an organ in fat, and a bubble of gas."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    hu = np.full((side, side), -1000, dtype=np.int16)
    hu[(x / 0.6) ** 2 + (y / 0.4) ** 2 < 1] = -100
    hu[(x / 0.4) ** 2 + (y / 0.3) ** 2 < 1] = 60
    hu[(x / 0.05) ** 2 + (y / 0.05) ** 2 < 1] = -980
    return hu


def test_people_see_a_slice_without_lung_in_a_window_of_soft_tissue(tmp_path: Path) -> None:
    prepared = prepare_dicom(saved(tmp_path, image(abdomen())))
    organ, fat = (SIDE // 2, SIDE // 2 + 30), (SIDE // 2, SIDE // 2 + 85)
    assert prepared.pixels[organ] == pytest.approx((60 + 1350) / 1500, abs=0.01), "the networks see what they learnt"
    assert prepared.picture[organ] == pytest.approx((60 + 160) / 400, abs=0.01)
    assert prepared.picture[fat] == pytest.approx((-100 + 160) / 400, abs=0.01)
    assert prepared.picture.shape == (SIDE, SIDE)
    chest = prepare_dicom(saved(tmp_path, image(thorax())))
    assert chest.soft is None
    assert chest.picture is chest.pixels


def test_other_images_are_shown_as_they_are_compared(tmp_path: Path) -> None:
    assert prepare_dicom(sample("MR_small.dcm")).soft is None
