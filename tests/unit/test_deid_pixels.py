"""Text in pixels: found, blanked and gone in every format; what is beside it stays; what is unsure stays out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from planted import UID_ROOT
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, iter_pixels
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.deid import pixel_audit, pixel_mask, pixel_ocr
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pixel_frames import Frames
from dicomnode.deid.pixel_mask import PixelCleaner
from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.rectangles import Rectangle
from dicomnode.deid.source import open_source
from dicomnode.domain import Pseudonym
from dicomnode.errors import QuarantineError
from dicomnode.testing.burned_in import stamp

KEY = b"k" * 32
OPTIONS = ("retain-longitudinal-modified-dates", "clean-descriptors", "clean-pixel-data")
SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
ROWS, COLUMNS = 160, 256
NAME, TEXT = "Kowalski^Johanna", "KOWALSKI JOHANNA"
SC, MULTI_GREY, MULTI_COLOUR = (f"1.2.840.10008.5.1.4.1.1.7{end}" for end in ("", ".2", ".4"))


@pytest.fixture(scope="module")
def engine() -> Deidentifier:
    return Deidentifier(compile_recipe("basic", OPTIONS), KEY, fsync=False)


def anatomy(seed: int = 1) -> NDArray[np.float64]:
    """A soft disk with noise, 0..1, (rows, columns)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    disk = np.clip(1.2 - np.hypot((y - 85) / 70, (x - 128) / 100), 0, 0.5)
    return np.clip(disk + rng.normal(0, 0.02, disk.shape) * (disk > 0), 0, 1)


def where(size: int = 16, turned: bool = False) -> tuple[NDArray[np.float64], tuple[slice, slice]]:
    alpha = stamp(TEXT, "DejaVuSans.ttf", size)
    alpha = np.rot90(alpha) if turned else alpha
    return alpha, (slice(6, 6 + alpha.shape[0]), slice(8, 8 + alpha.shape[1]))


def with_text(picture: NDArray[np.float64], ink: float = 1.0, **how: Any) -> NDArray[np.float64]:
    alpha, window = where(**how)
    out = picture.copy()
    out[window] = out[window] * (1 - alpha) + ink * alpha
    return out


def header(**changes: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SC, f"{UID_ROOT}9"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{UID_ROOT}1", f"{UID_ROOT}2"
    ds.PatientName, ds.PatientID, ds.Modality, ds.ConversionType = NAME, "40817263", "OT", "WSD"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    if "BitsStored" in changes and "HighBit" not in changes:
        ds.HighBit = ds.BitsStored - 1
    return ds


def written(path: Path, ds: Dataset, pixels: bytes, syntax: str = ExplicitVRLittleEndian) -> Path:
    ds.add_new(0x7FE00010, "OW" if ds.BitsAllocated > 8 else "OB", pixels + b"\0" * (len(pixels) % 2))
    ds["PixelData"].is_undefined_length = syntax in (JPEGBaseline8Bit, RLELossless, JPEGLSLossless, JPEG2000Lossless)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def grey(path: Path, picture: NDArray[np.float64], dtype: str = "u1", syntax: str = ExplicitVRLittleEndian,
         low: int = 0, high: int = 255, **changes: Any) -> Path:  # fmt: skip
    values = np.round(low + picture * (high - low)).astype(dtype)
    return written(path, header(**changes), values.tobytes(), syntax)


def deidentified(engine: Deidentifier, src: Path) -> Dataset:
    dst = src.with_name("out.dcm")
    result = engine.deidentify(src, dst, SUBJECT)
    out = dcmread(dst)
    assert (result.pixels == "masked") == (out.get("BurnedInAnnotation") == "NO")
    return out


def frames(path: Path) -> list[NDArray[Any]]:
    return list(iter_pixels(dcmread(path), raw=True))


def assert_masked(src: Path, strokes: NDArray[np.bool_] | None = None, frame: int = 0) -> NDArray[np.bool_]:
    """The text's strokes are blank, and far from it nothing changed; returns what changed."""
    before, after = frames(src)[frame], frames(src.with_name("out.dcm"))[frame]
    assert before.shape == after.shape
    alpha, window = where()
    inside = np.zeros(before.shape[:2], bool)
    inside[window] = alpha > 0.5
    inside = inside if strokes is None else strokes
    blank = after[inside]
    assert (blank == blank[0]).all()
    changed = (before != after).reshape(*before.shape[:2], -1).any(axis=2)
    rows, columns = np.nonzero(inside)
    near = np.zeros_like(changed)
    near[max(0, rows.min() - 24) : rows.max() + 25, max(0, columns.min() - 24) : columns.max() + 25] = True
    assert changed.any()
    assert not changed[~near].any()
    return changed


@pytest.mark.parametrize("syntax", [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
])  # fmt: skip
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16)])
def test_grey_levels_of_every_size_and_order(
    engine: Deidentifier, tmp_path: Path, syntax: str, dtype: str, bits: int
) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    allocated = 8 if bits == 8 else 16
    src = grey(tmp_path / "in.dcm", with_text(anatomy()), order + dtype, syntax, high=2**bits - 1,
               BitsAllocated=allocated, BitsStored=bits)  # fmt: skip
    out = deidentified(engine, src)
    assert_masked(src)
    assert out.file_meta.TransferSyntaxUID == syntax
    assert out.BurnedInAnnotation == "NO"
    assert "113101" in {item.CodeValue for item in out.DeidentificationMethodCodeSequence}
    assert (out.BitsAllocated, out.BitsStored, out.PhotometricInterpretation) == (allocated, bits, "MONOCHROME2")


def test_signed_grey_levels_are_blanked_with_the_darkest_that_occurs(engine: Deidentifier, tmp_path: Path) -> None:
    src = grey(tmp_path / "in.dcm", with_text(anatomy()), "<i2", low=-1024, high=2000,
               BitsAllocated=16, BitsStored=16, PixelRepresentation=1)  # fmt: skip
    deidentified(engine, src)
    changed = assert_masked(src)
    assert set(frames(tmp_path / "out.dcm")[0][changed]) == {-1024}


def test_monochrome1_is_blanked_with_its_black(engine: Deidentifier, tmp_path: Path) -> None:
    src = grey(tmp_path / "in.dcm", 1 - with_text(anatomy()), "<u2", high=4095, BitsAllocated=16, BitsStored=12,
               PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    deidentified(engine, src)
    changed = assert_masked(src)
    assert set(frames(tmp_path / "out.dcm")[0][changed]) == {4095}


def coloured(ink: tuple[float, float, float] = (1.0, 1.0, 0.2)) -> NDArray[np.uint8]:
    base = anatomy()
    return np.stack([np.round(with_text(base, one) * 255).astype(np.uint8) for one in ink], axis=-1)


@pytest.mark.parametrize("planar", [0, 1])
def test_colours_by_pixel_and_by_plane(engine: Deidentifier, tmp_path: Path, planar: int) -> None:
    rgb = coloured()
    data = (rgb if planar == 0 else rgb.transpose(2, 0, 1)).tobytes()
    ds = header(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
    src = written(tmp_path / "in.dcm", ds, data)
    out = deidentified(engine, src)
    changed = assert_masked(src)
    assert out.PlanarConfiguration == planar
    assert (out.pixel_array[changed] == 0).all()


def test_luminance_and_chroma_are_blanked_to_black(engine: Deidentifier, tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(coloured()).convert("YCbCr"))
    ds = header(SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0)
    src = written(tmp_path / "in.dcm", ds, ybr.tobytes())
    out = deidentified(engine, src)
    changed = assert_masked(src)
    assert out.PhotometricInterpretation == "YBR_FULL"
    assert {tuple(pixel) for pixel in frames(tmp_path / "out.dcm")[0][changed].tolist()} == {(0, 128, 128)}


def test_a_palette_is_blanked_with_its_darkest_colour(engine: Deidentifier, tmp_path: Path) -> None:
    ds = header(PhotometricInterpretation="PALETTE COLOR")
    ramp = (np.arange(256, dtype="<u2") * 257)[::-1]  # white first: index 255 is black
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", ramp.tobytes())
    src = written(tmp_path / "in.dcm", ds, np.round((1 - with_text(anatomy())) * 255).astype("u1").tobytes())
    out = deidentified(engine, src)
    changed = assert_masked(src)
    assert (apply_color_lut(out.pixel_array, out)[changed] == 0).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("colour", [False, True])
def test_lossless_compressions_stay(engine: Deidentifier, tmp_path: Path, syntax: str, colour: bool) -> None:
    plain = tmp_path / "in.dcm"
    if colour:
        ds = header(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
        written(plain, ds, coloured().tobytes())
    else:
        grey(plain, with_text(anatomy()), "<u2", high=4095, BitsAllocated=16, BitsStored=12)
    ds = dcmread(plain)
    ds.compress(syntax)
    ds.save_as(plain)
    out = deidentified(engine, plain)
    assert out.file_meta.TransferSyntaxUID == syntax
    assert_masked(plain)


@pytest.mark.parametrize("colour", [False, True])
def test_what_was_compressed_with_loss_becomes_native_and_says_so(
    engine: Deidentifier, tmp_path: Path, colour: bool
) -> None:
    picture = coloured() if colour else np.round(with_text(anatomy()) * 255).astype(np.uint8)
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(picture).save(jpeg, quality=92)
    ds = header(LossyImageCompression="01", LossyImageCompressionRatio="9", LossyImageCompressionMethod="ISO_10918_1")
    if colour:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_FULL_422", 0
    src = written(tmp_path / "in.dcm", ds, encapsulate([jpeg.read_bytes()]), JPEGBaseline8Bit)
    out = deidentified(engine, src)
    assert_masked(src)
    assert out.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (out.LossyImageCompression, out.LossyImageCompressionMethod) == ("01", "ISO_10918_1")


@pytest.mark.parametrize(
    ("ink", "how"),
    [(0.0, {}), (1.0, {"turned": True}), (0.75, {"size": 11}), (1.0, {"size": 40})],
    ids=["dark", "turned", "small", "large"],
)
def test_text_in_other_looks(engine: Deidentifier, tmp_path: Path, ink: float, how: dict[str, Any]) -> None:
    base = 0.3 + 0.4 * anatomy()
    alpha, window = where(**how)
    base = np.pad(base, ((0, 0), (0, max(0, window[1].stop + 8 - COLUMNS))), mode="edge")
    base = np.pad(base, ((0, max(0, window[0].stop + 8 - ROWS)), (0, 0)), mode="edge")
    src = grey(tmp_path / "in.dcm", with_text(base, ink, **how), Rows=base.shape[0], Columns=base.shape[1])
    deidentified(engine, src)
    strokes = np.zeros(base.shape, bool)
    strokes[window] = alpha > 0.5
    assert_masked(src, strokes)


def test_strokes_that_only_a_narrow_window_would_show(engine: Deidentifier, tmp_path: Path) -> None:
    """40 of 4096 grey levels above black: 2 of the 256 that a picture of the whole range has."""
    picture = np.where(anatomy() > 0.05, anatomy(), 0) * 4000
    picture[:30] = 0
    alpha, window = where()
    picture[window] += alpha * 40
    src = grey(tmp_path / "in.dcm", picture / 4095, "<u2", high=4095, BitsAllocated=16, BitsStored=12)
    deidentified(engine, src)
    assert_masked(src)


def test_text_in_one_frame_is_masked_there_and_the_other_frames_stay(engine: Deidentifier, tmp_path: Path) -> None:
    pictures = [anatomy(1), anatomy(1), anatomy(2), with_text(anatomy(3)), anatomy(1)]
    stack = np.round(np.stack(pictures) * 255).astype("u1")
    src = written(tmp_path / "in.dcm", header(SOPClassUID=MULTI_GREY, NumberOfFrames=5), stack.tobytes())
    out = deidentified(engine, src)
    assert_masked(src, frame=3)
    assert np.array_equal(np.delete(out.pixel_array, 3, axis=0), np.delete(stack, 3, axis=0))


def fading_in(path: Path, flicker: int = 0) -> tuple[Path, NDArray[np.bool_]]:
    """Text that appears by 5 grey levels a frame, beside a grid that flickers by ``flicker``; and its strokes."""
    alpha, window = where()
    base = np.full((ROWS, COLUMNS), 20.0)
    base[100:140, 40:200] = 230
    base[60:90, 20:60:4] = 120
    stack = np.stack([base] * 18)
    for number, frame in enumerate(stack):
        frame[window] += alpha * 5 * number
        frame[60:90, 20:60:4] += flicker * (number % 2)
    strokes = np.zeros((ROWS, COLUMNS), bool)
    strokes[window] = alpha > 0.5
    ds = header(SOPClassUID=MULTI_GREY, NumberOfFrames=len(stack))
    return written(path, ds, np.round(stack).astype("u1").tobytes()), strokes


@pytest.mark.parametrize("flicker", [0, 40])  # with it a part of each frame, up to the text, is looked at
def test_text_that_fades_in_by_less_than_counts_as_a_change_is_masked(tmp_path: Path, flicker: int) -> None:
    src, strokes = fading_in(tmp_path / "in.dcm", flicker)
    outcome = PixelCleaner().clean(open_source(src), tmp_path)
    assert outcome.masked
    for places in outcome.masked[14:]:  # from 70 grey levels on
        left = strokes.copy()
        for place in places:
            left[place.window] = False
        assert not left.any()


def test_what_fades_in_beside_a_mask_is_seen_when_the_masked_frames_are_looked_at(tmp_path: Path) -> None:
    src, strokes = fading_in(tmp_path / "in.dcm")
    shown = Frames.of(open_source(src))
    places: tuple[Rectangle, ...] = ()
    looked = None
    for frame in shown:
        mask = (Rectangle(110, 50, 130, 190),)
        places, looked = pixel_mask._until_nothing_is_found(shown, frame, mask, (0,), looked)
    for place in places:
        strokes[place.window] = False
    assert not strokes.any()


def test_frames_that_stay_alike_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[tuple[int, ...]] = []
    find = pixel_mask.find_text
    monkeypatch.setattr(pixel_mask, "find_text", lambda view, *more: looks.append(view.shape) or find(view, *more))
    base = np.round(anatomy() * 200 + 20).astype("u1")
    stack = np.stack([base + np.uint8(number % 6) for number in range(12)])
    src = written(tmp_path / "in.dcm", header(SOPClassUID=MULTI_GREY, NumberOfFrames=12), stack.tobytes())
    assert not PixelCleaner().clean(open_source(src), tmp_path).masked
    assert looks == [(ROWS, COLUMNS, 3)]


def test_pixels_without_text_are_copied(engine: Deidentifier, tmp_path: Path) -> None:
    src = grey(tmp_path / "in.dcm", anatomy())
    out = deidentified(engine, src)
    assert out.PixelData == dcmread(src).PixelData
    assert "BurnedInAnnotation" not in out
    assert "113101" in {item.CodeValue for item in out.DeidentificationMethodCodeSequence}


def test_a_marker_of_the_side_stays(engine: Deidentifier, tmp_path: Path) -> None:
    picture = anatomy()
    alpha = stamp("R", "DejaVuSans-Bold.ttf", 24)
    picture[10 : 10 + alpha.shape[0], 220 : 220 + alpha.shape[1]] = alpha
    src = grey(tmp_path / "in.dcm", picture, Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1")
    assert deidentified(engine, src).PixelData == dcmread(src).PixelData


def test_what_lies_beside_ultrasound_regions_is_blanked_whole(engine: Deidentifier, tmp_path: Path) -> None:
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 40, 50
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 215, 149
    ds_changes = {"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}
    src = grey(tmp_path / "in.dcm", with_text(anatomy()), SequenceOfUltrasoundRegions=[region], **ds_changes)
    out = deidentified(engine, src)
    kept = np.zeros((ROWS, COLUMNS), bool)
    kept[50:150, 40:216] = True
    assert (out.pixel_array[~kept] == 0).all()
    assert np.array_equal(out.pixel_array[kept], dcmread(src).pixel_array[kept])


def refused(engine: Deidentifier, src: Path) -> QuarantineError:
    with pytest.raises(QuarantineError) as caught:
        engine.deidentify(src, src.with_name("out.dcm"), SUBJECT)
    assert [path.name for path in src.parent.glob("*.dcm")] == [src.name]
    assert "KOWALSKI" not in f"{caught.value} {caught.value.line} {caught.value.advice}".upper()
    return caught.value


def test_marked_as_burned_in_and_nothing_found_stays_out(engine: Deidentifier, tmp_path: Path) -> None:
    error = refused(engine, grey(tmp_path / "in.dcm", anatomy(), BurnedInAnnotation="YES"))
    assert error.reason == "burned-in"
    assert "none was found" in error.line


def test_a_video_stays_out(engine: Deidentifier, tmp_path: Path) -> None:
    ds = header(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.4.1", Modality="XC", SamplesPerPixel=3,
                PhotometricInterpretation="YBR_PARTIAL_420", PlanarConfiguration=0)  # fmt: skip
    src = written(tmp_path / "in.dcm", ds, encapsulate([b"\0\0\1\xb3" * 20]))
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.103"
    dcmwrite(src, ds, enforce_file_format=True)
    error = refused(engine, src)
    assert (error.reason, "video" in error.line) == ("burned-in", True)


def test_pixels_that_cannot_be_decoded_stay_out(engine: Deidentifier, tmp_path: Path) -> None:
    src = written(tmp_path / "in.dcm", header(), encapsulate([b"no JPEG at all, " * 9]), JPEGBaseline8Bit)
    error = refused(engine, src)
    assert error.reason == "burned-in"
    assert "cannot be decoded" in error.line


def test_without_the_recogniser_nothing_that_needs_it_passes(
    engine: Deidentifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)  # as where it is not installed
    pixel_ocr._recogniser.cache_clear()
    error = refused(engine, grey(tmp_path / "in.dcm", anatomy()))
    assert (error.reason, "not examined" in error.line) == ("burned-in", True)


def test_text_that_cannot_be_blanked_stays_out(engine: Deidentifier, tmp_path: Path) -> None:
    src = grey(tmp_path / "in.dcm", with_text(anatomy()), "<u4", high=2**20, BitsAllocated=32, BitsStored=32)
    error = refused(engine, src)
    assert error.reason == "burned-in"


@pytest.mark.parametrize("name", ["US1_UNCI.dcm", "US1_J2KR.dcm", "gdcm-US-ALOKA-16_big.dcm", "examples_palette.dcm"])
def test_real_ultrasound_passes_and_nothing_is_readable(engine: Deidentifier, tmp_path: Path, name: str) -> None:
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name} is not installed (pydicom-data)")
    dst = tmp_path / "out.dcm"
    engine.deidentify(Path(found), dst, SUBJECT)
    words = {"baptist", "lymph", "mscskel", "cine", "toshiba", "aloka"}
    assert not pixel_audit.reads(dst, words, set())
    assert dcmread(dst).BurnedInAnnotation == "NO"


def test_the_invented_patients_of_deid_data_are_gone(engine: Deidentifier, tmp_path: Path) -> None:
    data = pytest.importorskip("deid.data").get_dataset("ultrasounds")
    files = [
        path
        for path in sorted(Path(data).rglob("*.dcm"))
        if "NumberOfFrames" not in dcmread(path, stop_before_pixels=True)
    ]
    assert files
    for number, path in enumerate(files):
        dst = tmp_path / f"{number}.dcm"
        engine.deidentify(path, dst, SUBJECT)
        names, ids = {"test", "patient", "zzzdowntime", "cleveland", "clinic"}, {"00079241539", "00047431395"}
        assert pixel_audit.reads(path, names, ids)
        assert not pixel_audit.reads(dst, names, ids)


class TestAudit:
    """The audit on its own refuses what the masking could get wrong."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[Path, Path, tuple[tuple[tuple[int, int, int, int], ...], ...]]:
        src = grey(tmp_path / "in.dcm", with_text(anatomy()))
        source = open_source(src)
        outcome = PixelCleaner().clean(source, tmp_path)
        source.stream.close()
        Deidentifier(compile_recipe("basic", OPTIONS), KEY, fsync=False).deidentify(src, tmp_path / "out.dcm", SUBJECT)
        return src, tmp_path / "out.dcm", outcome.masked

    def changed(self, path: Path, row: int, column: int, value: int) -> None:
        ds = dcmread(path)
        pixels = ds.pixel_array.copy()
        pixels[row, column] = value
        ds.PixelData = pixels.tobytes()
        ds.save_as(path)

    def test_nothing_is_wrong_with_what_was_masked(self, pair: Any) -> None:
        src, out, masked = pair
        assert pixel_audit.compare(src, out, masked) == ""

    def test_a_pixel_changed_outside(self, pair: Any) -> None:
        src, out, masked = pair
        self.changed(out, 120, 120, 3)
        assert "outside" in pixel_audit.compare(src, out, masked)

    def test_a_pixel_left_inside(self, pair: Any) -> None:
        src, out, masked = pair
        top, left, _, _ = masked[0][0]
        self.changed(out, top, left, 200)
        assert "one colour" in pixel_audit.compare(src, out, masked)

    def test_a_frame_too_many_or_too_few(self, pair: Any) -> None:
        src, out, masked = pair
        assert "frames" in pixel_audit.compare(src, out, (*masked, ()))
        assert "frames" in pixel_audit.compare(src, out, ())

    def test_a_name_that_was_left(self, engine: Deidentifier, tmp_path: Path) -> None:
        src = grey(tmp_path / "in.dcm", with_text(anatomy()))
        assert pixel_audit.reads(src, {"kowalski"}, set())
        assert pixel_audit.reads(src, {"kowa1ski"}, set())  # l and 1 are taken for each other
        assert not pixel_audit.reads(src, {"petersen"}, {"123456"})

    def test_what_the_masking_would_overlook_keeps_the_image_out(self, tmp_path: Path, monkeypatch: Any) -> None:
        """The masking is blinded on purpose; the audit reads the name of the header in the pixels by itself."""
        monkeypatch.setattr("dicomnode.deid.pixel_mask.find_text", lambda *_: ())
        engine = Deidentifier(compile_recipe("basic", OPTIONS), KEY, fsync=False)
        error = refused(engine, grey(tmp_path / "in.dcm", with_text(anatomy())))
        assert error.reason == "audit"


def test_a_sample_of_what_passes_as_acquired_is_examined(tmp_path: Path) -> None:
    picture = with_text(anatomy())
    changes = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY"]}
    src = grey(tmp_path / "in.dcm", picture, **changes)
    recipe = compile_recipe("basic", OPTIONS)
    passed = deidentified(Deidentifier(recipe, KEY, fsync=False), src)
    assert passed.PixelData == dcmread(src).PixelData
    sampled = deidentified(Deidentifier(recipe, KEY, fsync=False, pixels=PixelPolicy("mask", 1.0)), src)
    assert sampled.PixelData != passed.PixelData
    assert_masked(src)
