"""The input gate: real slices pass, photographs, pages, noise and blanks do not, whatever pack is in force."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from pydicom.data import get_testdata_file
from safetensors.numpy import load_file, save_file

from dicomnode.domain import NO_DICOM, NO_IMAGES, ONLY_OTHERS, ImageKind, reason_in, refusal
from dicomnode.errors import InputError, PackError
from dicomnode.models.colour import own_colour
from dicomnode.models.gate import FILE, Gate, Refused, Seen, decide, digest, fitted
from dicomnode.models.pack import synthetic_images
from dicomnode.models.pictures import clean_picture
from dicomnode.models.preprocess import SIDE, picture_pixels, prepare_dicom, prepare_picture
from dicomnode.testing import sample_study, write_study

SHARED = Path(os.environ.get("DICOMNODE_SHARED", Path(__file__).resolve().parents[3] / "shared" / "data"))
PASSES, PHOTOGRAPH, PAGE = (
    Seen(0.9, True, ImageKind.SLICE),
    Seen(0.0, False, ImageKind.PHOTOGRAPH),
    Seen(0.0, False, ImageKind.PAGE),
)


def seen(*images: np.ndarray) -> tuple[Seen, ...]:
    return fitted().see(np.stack(images).astype(np.float32))


def page(dark: bool, lines: int = 40) -> np.ndarray:
    """A page of text, rendered."""
    image = Image.new("L", (700, 900), 20 if dark else 255)
    draw = ImageDraw.Draw(image)
    for n in range(lines):
        text = "Findings: the lungs are clear. Dose length product 412.7 mGycm, total exposure 3.1 s"
        draw.text((40, 30 + 21 * n), text[: 30 + 7 * (n % 8)], fill=230 if dark else 10, font_size=17)
    return picture_pixels(image)


def real(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} comes with pydicom-data, which is not installed")
    return Path(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "emri_small.dcm",
        "693_UNCI.dcm",
        "MR2_UNCI.dcm",
        "eCT_Supplemental.dcm",
        "explicit_VR-UN.dcm",
        "MR-SIEMENS-DICOM-WithOverlays.dcm",
    ],
)
def test_real_ct_and_mr_pass(name: str) -> None:
    (one,) = fitted().see(prepare_dicom(real(name)).pixels[None], claimed=True)
    assert one.passes, one
    assert one.kind is ImageKind.SLICE


@pytest.mark.parametrize("matrix", [64, 128, 256])
def test_the_computed_thorax_of_the_demo_passes(tmp_path: Path, matrix: int) -> None:
    paths = write_study(sample_study(5, matrix=matrix, seed=7), tmp_path)
    assert all(one.passes for one in seen(*(prepare_dicom(p).pixels for p in paths)))


def test_the_images_of_the_golden_vectors_pass() -> None:
    assert all(one.passes for one in seen(*(synthetic_images() / 255)))


@pytest.mark.parametrize("dark", [False, True])
def test_pages_of_text_are_refused_as_such(dark: bool) -> None:
    (one,) = seen(page(dark))
    assert (one.passes, one.kind) == (False, ImageKind.PAGE)


def test_noise_is_refused() -> None:
    rng = np.random.default_rng(5)
    assert not any(one.passes for one in seen(rng.random((224, 224)), rng.normal(0.5, 0.1, (224, 224)).clip(0, 1)))


@pytest.mark.parametrize("tone", [0.0, 0.5, 1.0])
def test_an_image_without_contrast_is_blank(tone: float) -> None:
    image = np.full((224, 224), tone)
    image[:3, :3] = 1 - tone  # a speck is no image
    (one,) = seen(image)
    assert (one.passes, one.kind) == (False, ImageKind.BLANK)


def test_a_photograph_is_refused() -> None:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    assert not seen(prepare_picture(path).pixels)[0].passes


def test_a_radiograph_is_refused() -> None:
    assert not seen(prepare_dicom(real("RG1_UNCI.dcm")).pixels)[0].passes


def test_images_of_a_modality_that_the_model_was_taught_pass_unless_they_are_blank() -> None:
    images = np.stack([page(dark=True), np.full((SIDE, SIDE), 0.5, np.float32)]).astype(np.float32)

    def passing(modality: str, *, claimed: bool = True) -> list[bool]:
        return [s.passes for s in fitted().see(images, claimed=claimed, modality=modality, taught={"XA"})]

    assert passing("XA") == [True, False]
    assert passing("CT") == passing("") == passing("XA", claimed=False) == [False, False]


@pytest.mark.parametrize(("taught", "passes"), [({"CR"}, True), ({"DX", "US"}, True), ({"US"}, False), (set(), False)])
def test_a_picture_of_a_radiograph_passes_where_the_model_was_taught_radiographs(
    taught: set[str], passes: bool
) -> None:
    picture = prepare_dicom(real("RG1_UNCI.dcm"), 0).pixels[None]
    (found,) = fitted().see(picture, taught=taught)
    assert (found.kind, found.passes) == (ImageKind.RADIOGRAPH, passes)


def test_real_slices_pass_however_they_were_handled(tmp_path: Path) -> None:
    """A real chest CT, cut, turned, blurred, through a bad window, as poor JPEG: of each, few are lost."""
    archive = SHARED / "dicom" / "ct-chest-rider-64.tar.xz"
    if not archive.is_file():
        pytest.skip(f"the shared data is not at {SHARED} (set DICOMNODE_SHARED)")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    images = [prepare_dicom(p).pixels for p in sorted(tmp_path.rglob("*.dcm"))[::3]]

    def each(how) -> int:
        made = [how(Image.fromarray((i * 255).astype(np.uint8))) for i in images]
        return sum(not one.passes for one in seen(*(picture_pixels(m) for m in made)))

    def jpeg(image: Image.Image) -> Image.Image:
        image.save(tmp_path / "a.jpg", quality=20)
        with Image.open(tmp_path / "a.jpg") as again:
            again.load()
            return again

    ways = {
        "as it is": lambda i: i,
        "cut": lambda i: i.crop((30, 30, 194, 194)),
        "turned": lambda i: i.rotate(10),
        "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "narrow window": lambda i: i.point(lambda v: max(0, min(255, int((v - 64) * 2)))),
        "wide window": lambda i: i.point(lambda v: int(60 + v * 0.5)),
        "blurred": lambda i: i.filter(ImageFilter.GaussianBlur(2)),
        "JPEG": jpeg,
    }
    lost = {name: each(how) for name, how in ways.items()}
    assert max(lost.values()) <= len(images) // 20 + 1, lost
    assert lost["as it is"] == 0


class TestStudies:
    def test_a_study_is_refused_where_most_of_its_slices_are(self) -> None:
        assert decide([PASSES, PASSES, PAGE]) is None
        assert decide([PASSES, PAGE]) is None, "half is not most"
        assert decide([PASSES, PAGE, PAGE]) == Refused(ImageKind.PAGE, 2, 3)

    def test_it_is_named_after_what_most_of_them_are(self) -> None:
        assert decide([PAGE, PAGE, PHOTOGRAPH]) == Refused(ImageKind.PAGE, 3, 3)
        assert decide([PAGE, PHOTOGRAPH]) == Refused(ImageKind.OTHER, 2, 2)

    def test_one_picture_is_judged_by_itself(self) -> None:
        assert decide([PASSES]) is None
        refused = decide([PHOTOGRAPH])
        assert refused is not None
        assert refused.why == "The image is no CT or MR slice: it looks like a photograph or drawing."

    def test_nothing_is_not_refused(self) -> None:
        assert decide([]) is None


class TestSentences:
    @pytest.mark.parametrize("kind", list(ImageKind))
    @pytest.mark.parametrize("several", [False, True])
    def test_each_is_said_in_both_languages(self, kind: ImageKind, several: bool) -> None:
        english, spanish = (refusal(kind, several=several, language=language) for language in ("en", "es"))
        assert english != spanish
        assert reason_in(english, "es") == spanish
        assert reason_in(english, "en") == english

    def test_the_viewer_has_the_same_words(self) -> None:
        viewer = (Path(__file__).parents[2] / "viewer" / "src" / "i18n" / "reasons.ts").read_text("utf-8")
        fixed = (NO_IMAGES, NO_DICOM, ONLY_OTHERS)
        sentences = [refusal(kind, several=several) for kind in ImageKind for several in (False, True)]
        for english in (*fixed, *sentences):
            for said in (english, reason_in(english, "es")):
                for part in said.rstrip(".").split(":") if english not in fixed else [said.rstrip(".")]:
                    assert part in viewer

    def test_other_reasons_stay_as_they_are(self) -> None:
        assert reason_in("no slice could be read", "es") == "no slice could be read"


class TestWhatIsGivenToIt:
    @pytest.mark.parametrize("shape", [(224, 224), (1, 112, 112), (1, 224, 224, 1)])
    def test_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="224"):
            fitted().probabilities(np.zeros(shape, np.float32))

    def test_another_type(self) -> None:
        with pytest.raises(InputError, match="float64"):
            fitted().probabilities(np.zeros((1, 224, 224)))  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_numbers(self, value: float) -> None:
        image = np.zeros((1, 224, 224), np.float32)
        image[0, 100, 100] = value
        with pytest.raises(InputError, match="not numbers"):
            fitted().see(image)

    def test_no_image_at_all(self) -> None:
        assert fitted().see(np.empty((0, 224, 224), np.float32)) == ()

    def test_probabilities_sum_to_one_and_do_not_depend_on_the_company(self) -> None:
        images = np.stack([page(False), page(True), *(synthetic_images(2) / 255)]).astype(np.float32)
        together = fitted().probabilities(images)
        assert together.sum(1) == pytest.approx(np.ones(4), abs=1e-5)
        np.testing.assert_array_equal(together[2:3], fitted().probabilities(images[2:3]))


class TestTheFile:
    def test_it_is_small(self) -> None:
        assert FILE.stat().st_size < 100_000

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(PackError, match="is missing"):
            Gate.load(tmp_path / "gate.safetensors")

    @pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}"])
    def test_no_coefficients(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "g.safetensors").write_bytes(content)
        with pytest.raises(PackError, match="cannot be read"):
            Gate.load(tmp_path / "g.safetensors")

    def test_cut_short_and_changed(self, tmp_path: Path) -> None:
        data = FILE.read_bytes()
        (tmp_path / "short").write_bytes(data[:-100])
        with pytest.raises(PackError, match="cannot be read"):
            Gate.load(tmp_path / "short")
        (tmp_path / "changed").write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
        with pytest.raises(PackError, match="damaged") as caught:
            Gate.load(tmp_path / "changed")
        assert "\n" not in str(caught.value)
        assert "install dicomnode again" in str(caught.value)

    @pytest.mark.parametrize("said", [{}, {"thresholds": "[]"}, {"thresholds": "x"}, {"thresholds": "[1, null]"}])
    def test_without_thresholds(self, tmp_path: Path, said: dict[str, str]) -> None:
        tensors = load_file(FILE)
        save_file(tensors, tmp_path / "g", {"format": "dicomnode-gate-1", "sha256": digest(tensors), **said})
        with pytest.raises(PackError, match="thresholds"):
            Gate.load(tmp_path / "g")

    def test_of_another_format(self, tmp_path: Path) -> None:
        tensors = load_file(FILE)
        said = {"format": "dicomnode-gate-0", "thresholds": "[0.5, 0.5]", "sha256": digest(tensors)}
        save_file(tensors, tmp_path / "g", said)
        with pytest.raises(PackError, match="another version"):
            Gate.load(tmp_path / "g")


class TestColour:
    def grey(self) -> Image.Image:
        return Image.fromarray((synthetic_images(1)[0]).astype(np.uint8))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA", "P", "CMYK", "YCbCr"])
    def test_grey_has_none_in_whatever_mode(self, mode: str) -> None:
        grey = self.grey()
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200) if mode == "I;16" else grey.convert(mode)
        assert own_colour(image) == 0.0

    def test_the_tint_of_a_screen_and_coloured_marks_are_none(self) -> None:
        grey = np.asarray(self.grey(), dtype=np.float64) / 255
        tinted = np.stack([0.05 + 0.80 * grey**1.1, 0.08 + 0.85 * grey, 0.15 + 0.85 * grey**0.9], -1)
        image = Image.fromarray((tinted * 255).astype(np.uint8))
        assert own_colour(image) < 0.01
        ImageDraw.Draw(image).rectangle((10, 10, 60, 60), fill=(255, 0, 0))  # 5 % of it
        assert 0.03 < own_colour(image) < 0.08
        assert passes_as_picture(image)

    def test_colours_that_nobody_sees_do_not_count(self) -> None:
        image = self.grey().convert("RGBA")
        pixels = np.asarray(image).copy()
        pixels[:, :100] = (255, 0, 255, 0)
        assert own_colour(Image.fromarray(pixels)) == 0.0

    def test_a_picture_in_colour_is_refused_as_such(self) -> None:
        y, x = np.mgrid[0:1:224j, 0:1:224j]
        image = Image.fromarray((np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8))
        assert own_colour(image) > 0.5
        (one,) = fitted().see(picture_pixels(self.grey())[None], colours=[own_colour(image)])
        assert (one.passes, one.kind) == (False, ImageKind.COLOUR)

    def test_what_was_in_colour_is_known_of_the_cleaned_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "in.png"
        Image.fromarray((np.random.default_rng(1).random((60, 60, 3)) * 255).astype(np.uint8)).save(path)
        assert clean_picture(path, tmp_path / "out.png").colour == own_colour(Image.open(path)) > 0.5


def passes_as_picture(image: Image.Image) -> bool:
    (one,) = fitted().see(picture_pixels(image)[None], colours=[own_colour(image)])
    return one.passes
