"""Masks given by hand, and a person's word: blanked in every format, audited, and never more than was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import iter_pixels
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from test_deid_pixels import (
    COLUMNS,
    MULTI_GREY,
    OPTIONS,
    ROWS,
    SUBJECT,
    anatomy,
    grey,
    header,
    where,
    with_text,
    written,
)

from dicomnode.deid import pixel_mask
from dicomnode.deid.by_hand import NOTHING, ByHand, HandMask, check_masks, parse_mask
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pixel_audit import Seen
from dicomnode.deid.pixel_policy import PixelPolicy
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.rectangles import Rectangle
from dicomnode.errors import QuarantineError, UsageError

KEY = b"k" * 32
PLACE = Rectangle(100, 30, 130, 90)  # where no text is: nothing but the hand masks it
MASK = ByHand((HandMask(None, PLACE),))


@pytest.fixture(scope="module")
def engine() -> Deidentifier:
    return Deidentifier(compile_recipe("basic", OPTIONS), KEY, fsync=False)


def cleaned(engine: Deidentifier, src: Path, by_hand: ByHand) -> Any:
    dst = src.with_name("out.dcm")
    engine.deidentify(src, dst, SUBJECT, by_hand)
    return dcmread(dst)


def only(src: Path, *places: Rectangle, frame: int = 0) -> NDArray[Any]:
    """In one frame the places are of one colour and all else is as it was; returns the colour."""
    before, after = (list(iter_pixels(dcmread(p), raw=True))[frame] for p in (src, src.with_name("out.dcm")))
    inside = np.zeros(before.shape[:2], bool)
    for place in places:
        inside[place.window] = True
    assert np.array_equal(before[~inside], after[~inside])
    blank = after[inside]
    assert (blank == blank[0]).all()
    assert (before[inside] != after[inside]).any()
    return np.asarray(blank[0])


class TestTheForm:
    def test_columns_before_rows_and_a_frame_before_both(self):
        assert parse_mask("10,20,200,40") == HandMask(None, Rectangle(20, 10, 60, 210))
        assert parse_mask("3: 10,10,200,40") == HandMask(3, Rectangle(10, 10, 50, 210))
        assert str(parse_mask("3:10,20,200,40")) == "3:10,20,200,40"

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "a mask is"),
            ("1,2,3", "a mask is"),
            ("1,2,3,4,5", "a mask is"),
            ("-1,0,5,5", "a mask is"),
            ("1.5,0,5,5", "a mask is"),
            ("a,b,c,d", "a mask is"),
            ("x:1,2,3,4", "a mask is"),
            ("1,2,0,4", "no area"),
            ("1,2,3,0", "no area"),
            ("0:1,2,3,4", "count from 1"),
        ],
    )
    def test_what_is_no_rectangle_is_refused_in_one_line(self, text: str, why: str):
        with pytest.raises(UsageError, match=why) as refused:
            parse_mask(text)
        assert "\n" not in str(refused.value)
        assert f"--mask {text}" in str(refused.value)

    @pytest.mark.parametrize(
        ("text", "why"),
        [("0,0,101,10", "100 columns and 50 rows"), ("0,45,10,6", "leaves the image"), ("3:0,0,1,1", "2 frames")],
    )
    def test_what_is_not_in_the_image_is_refused(self, text: str, why: str):
        check_masks([parse_mask("0,0,100,50"), parse_mask("2:99,49,1,1")], 50, 100, 2)
        with pytest.raises(UsageError, match=why):
            check_masks([parse_mask(text)], 50, 100, 2)

    def test_a_decision_is_read_as_it_was_written_and_a_later_one_unmasks_nothing(self):
        first = ByHand((parse_mask("1,2,3,4"), parse_mask("2:5,6,7,8")), no_text=True)
        assert ByHand.from_text(first.as_text()) == first
        assert ByHand.from_text("") == NOTHING
        assert ByHand(no_face=True).after(first) == ByHand(first.masks, no_text=True, no_face=True)
        assert ByHand(no_text=True).after(MASK) == ByHand(MASK.masks, no_text=True)
        both = ByHand((*first.masks, *MASK.masks), no_face=True)  # and recognition is asked again
        assert MASK.after(ByHand(first.masks, no_text=True, no_face=True)) == both
        assert first.after(first) == first


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_levels(engine: Deidentifier, tmp_path: Path, syntax: str, photometric: str):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    src = grey(tmp_path / "in.dcm", anatomy(), f"{order}u2", syntax, high=4095,
               BitsAllocated=16, BitsStored=12, PhotometricInterpretation=photometric)  # fmt: skip
    ds = cleaned(engine, src, MASK)
    assert only(src, PLACE) == (4095 if photometric == "MONOCHROME1" else 0)
    assert (ds.BurnedInAnnotation, ds.file_meta.TransferSyntaxUID) == ("NO", syntax)
    assert "113101" in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
@pytest.mark.parametrize("planar", [0, 1])
def test_colours(engine: Deidentifier, tmp_path: Path, photometric: str, planar: int):
    levels = np.round(anatomy() * 200 + 20).astype("u1")
    changes: dict[str, Any] = {"PhotometricInterpretation": photometric}
    if photometric == "PALETTE COLOR":
        stored = levels.tobytes()
        for name in ("Red", "Green", "Blue"):
            changes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            changes[f"{name}PaletteColorLookupTableData"] = (np.arange(256, dtype="<u2") * 257).tobytes()
    else:
        samples = np.stack([levels, np.full_like(levels, 120), np.full_like(levels, 130)], axis=2)
        stored = (samples.transpose(2, 0, 1) if planar else samples).tobytes()
        changes |= {"SamplesPerPixel": 3, "PlanarConfiguration": planar}
    src = written(tmp_path / "in.dcm", header(**changes), stored)
    cleaned(engine, src, MASK)
    blank = only(src, PLACE)
    if photometric != "PALETTE COLOR":
        assert tuple(blank) == ((0, 128, 128) if photometric == "YBR_FULL" else (0, 0, 0))
    else:
        assert blank == levels.min()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_frames_of_which_one_is_masked(engine: Deidentifier, tmp_path: Path, syntax: str):
    stack = [np.round(anatomy(seed) * 255).astype("u1") for seed in (1, 2, 3)]
    encoder = get_encoder(syntax)
    how = {"rows": ROWS, "columns": COLUMNS, "samples_per_pixel": 1, "number_of_frames": 1, "bits_allocated": 8,
           "bits_stored": 8, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2"}  # fmt: skip
    pixels = encapsulate([encoder.encode(frame, **how) for frame in stack])
    ds = header(SOPClassUID=MULTI_GREY, NumberOfFrames=3, BitsStored=8)
    src = written(tmp_path / "in.dcm", ds, pixels, syntax)
    out = cleaned(engine, src, ByHand((HandMask(2, PLACE),)))
    assert out.file_meta.TransferSyntaxUID == syntax
    only(src, PLACE, frame=1)
    before, after = (list(iter_pixels(dcmread(p), raw=True)) for p in (src, src.with_name("out.dcm")))
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[2], after[2])


def test_equal_frames_with_masks_of_their_own(engine: Deidentifier, tmp_path: Path):
    stack = np.round(np.stack([anatomy(), anatomy()]) * 255).astype("u1")
    src = written(tmp_path / "in.dcm", header(SOPClassUID=MULTI_GREY, NumberOfFrames=2), stack.tobytes())
    other = Rectangle(40, 100, 60, 160)
    cleaned(engine, src, ByHand((HandMask(1, PLACE), HandMask(2, other))))
    only(src, PLACE, frame=0)
    only(src, other, frame=1)


class TestWhatIsStillLookedAt:
    def test_text_beside_the_masks_is_found_and_masked_as_always(self, engine: Deidentifier, tmp_path: Path):
        src = grey(tmp_path / "in.dcm", with_text(anatomy()))
        cleaned(engine, src, MASK)
        after = dcmread(tmp_path / "out.dcm").pixel_array
        alpha, window = where()
        strokes = after[window][alpha > 0.5]
        assert (strokes == strokes[0]).all()
        assert (after[PLACE.window] == 0).all()

    def test_the_word_that_nothing_identifies_does_not_let_a_name_pass(self, engine: Deidentifier, tmp_path: Path):
        src = grey(tmp_path / "in.dcm", with_text(anatomy(), size=22))
        with pytest.raises(QuarantineError, match="name or an id") as refused:
            cleaned(engine, src, ByHand(no_text=True))
        assert refused.value.reason == "audit"
        assert not (tmp_path / "out.dcm").exists()

    def test_with_that_word_what_is_found_stays_and_the_header_says_so(self, engine: Deidentifier, tmp_path: Path):
        """A scale, say: with another patient's name in the header it is no leak."""
        src = grey(tmp_path / "in.dcm", with_text(anatomy()), PatientName="Ngata^Hemi", BurnedInAnnotation="YES")
        ds = cleaned(engine, src, ByHand(no_text=True))
        assert ds.PixelData == dcmread(src).PixelData
        assert ds.BurnedInAnnotation == "NO"
        assert "113101" in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]

    def test_masks_with_that_word_are_all_that_is_masked(self, engine: Deidentifier, tmp_path: Path):
        src = grey(tmp_path / "in.dcm", with_text(anatomy()), PatientName="Ngata^Hemi")
        cleaned(engine, src, ByHand(MASK.masks, no_text=True))
        only(src, PLACE)

    def test_marked_as_burned_in_and_masked_by_hand_it_passes(self, engine: Deidentifier, tmp_path: Path):
        src = grey(tmp_path / "in.dcm", anatomy(), BurnedInAnnotation="YES")
        with pytest.raises(QuarantineError, match="none was found"):
            cleaned(engine, src, NOTHING)
        assert cleaned(engine, src, MASK).BurnedInAnnotation == "NO"
        only(src, PLACE)

    def test_where_such_images_are_refused_a_mask_lets_them_be_examined(self, tmp_path: Path):
        strict = Deidentifier(compile_recipe("basic", OPTIONS), KEY, fsync=False, pixels=PixelPolicy("quarantine"))
        src = grey(tmp_path / "in.dcm", anatomy())
        with pytest.raises(QuarantineError, match="may show text"):
            cleaned(strict, src, NOTHING)
        cleaned(strict, src, MASK)
        only(src, PLACE)


class TestTheAudit:
    def test_finds_that_what_was_asked_was_not_masked(
        self, engine: Deidentifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """The masking is made to forget what it was asked; the audit alone knows."""
        clean = pixel_mask.PixelCleaner.clean
        monkeypatch.setattr(
            pixel_mask.PixelCleaner, "clean", lambda self, source, folder, _: clean(self, source, folder)
        )
        src = grey(tmp_path / "in.dcm", with_text(anatomy()))
        with pytest.raises(QuarantineError, match="masked by hand was not masked") as refused:
            cleaned(engine, src, MASK)
        assert refused.value.reason == "audit"

    def test_wants_each_rectangle_in_its_frame(self):
        inner, outer = (5, 5, 9, 9), (4, 4, 10, 10)

        def found(masked: Any, asked: Any) -> list[tuple[str, str]]:
            return list(Seen(asked).findings(header(), header(), masked))

        assert not found(((outer,), ()), ((inner,), ()))
        assert found(((), (outer,)), ((inner,), ()))
        assert found(((inner,), ()), ((outer,), ()))
        assert found((), ((inner,),))
