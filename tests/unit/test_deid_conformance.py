"""The conformance report on a fixed sample, and its judge: planted identities are gone, and what is left is found."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from deid_report import page
from deid_report.identities import REPORT, TUNE, people
from deid_report.judge import Judge
from deid_report.objects import carriers
from deid_report.pixels import MODALITIES, judged_lines, plant_images, retained
from deid_report.plants import Planted, Planter
from deid_report.run import Run, deidentify_all, judge_pixels, plant_all
from pydicom import dcmread
from pydicom.tag import Tag

from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.words import vocabulary
from dicomnode.domain import Pseudonym

MODIFIED = "retain-longitudinal-modified-dates"
DEFAULT = (MODIFIED, "clean-descriptors", "clean-pixel-data", "retain-patient-characteristics")
SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
SAMPLE = ("CT_small.dcm", "MR_small_implicit.dcm", "rtdose_1frame.dcm", "liver_1frame.dcm", "generated 1")


def planted_ct(tmp_path: Path) -> Planted:
    carrier = next(one for one in carriers() if one.source == "CT_small.dcm")
    (who,) = people(TUNE, 1, seed=3)
    return Planter(carrier, who, 1, {"study": "1.2.3.4.1001", "frame": "1.2.3.4.1002"}, 3).write(
        tmp_path / "in.dcm", 0, TUNE.also_words
    )


def judged(planted: Planted, tmp_path: Path, leave_out: int | str = "") -> Judge:
    recipe = compile_recipe("basic", DEFAULT)
    recipe = recipe.without(leave_out) if leave_out else recipe
    out = tmp_path / "out.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Deidentifier(recipe, bytes(32), fsync=False, audited=False).deidentify(planted.file, out, SUBJECT)
        judge = Judge(frozenset(DEFAULT))
        judge.judge(planted, out)
    return judge


def test_the_two_lists_of_identities_share_no_name() -> None:
    assert TUNE.words() & REPORT.words() == set()
    for language in ("en", "es"):
        assert not set(TUNE.phrases[language]) & set(REPORT.phrases[language])
    known = {word.casefold() for word in REPORT.also_words}
    assert REPORT.words() & vocabulary() <= known


def test_identities_come_from_the_seed_and_their_check_digits_are_right() -> None:
    assert people(REPORT, 4, seed=1) == people(REPORT, 4, seed=1) != people(REPORT, 4, seed=2)
    numbers = [one.secrets["national id"] for one in people(REPORT, 40, seed=1) if one.language == "es"]
    ruts = [number for number in numbers if "-" in number]
    assert len(ruts) > 3
    for rut in ruts:
        digits, check = rut.replace(".", "").split("-")
        total = sum(
            int(digit) * factor for digit, factor in zip(reversed(digits), [2, 3, 4, 5, 6, 7, 2, 3], strict=False)
        )
        assert "0123456789K0"[11 - total % 11] == check


@pytest.mark.parametrize("options", [(), DEFAULT], ids=["basic", "default"])
def test_a_sample_of_the_report_passes_every_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr("deid_report.run.carriers", lambda: (one for one in carriers() if one.source in SAMPLE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planted = plant_all(tmp_path, TUNE, 1, seed=7)
        run: Run = deidentify_all(tmp_path, planted, options)
        images = plant_images(tmp_path, TUNE, 2, seed=7)
        judge_pixels(tmp_path, images, run)
    assert run.withheld == []
    assert sum(run.done.values()) == len(planted) == 10
    for check, tally in run.judge.tallies.items():
        assert tally.failures == [], check
        measured = check != "date_shifted" or MODIFIED in options
        assert (tally.n > 0) == measured, check
    data = page.as_json({"run": run}, planted, 7, 1)
    text = page.markdown(data)
    lines = sum(len(image.lines) for image in images)
    assert f"| pixels_hidden | {lines} | {lines} | 100.00 |" in text
    assert f"| text_removed | {run.judge.tallies['text_removed'].n} |" in text


@pytest.mark.parametrize(
    ("leave_out", "check"),
    [
        (0x00104000, "text_removed"),  # Patient Comments
        (0x00080090, "text_removed"),  # Referring Physician's Name
        (0x00080020, "date_shifted"),  # Study Date
        (0x0020000D, "uid_changed"),  # Study Instance UID
    ],
)
def test_the_judge_finds_a_rule_that_is_left_out(tmp_path: Path, leave_out: int, check: str) -> None:
    planted = planted_ct(tmp_path)
    assert judged(planted, tmp_path).tallies[check].failures == []
    assert judged(planted, tmp_path, leave_out).tallies[check].failures != []


@pytest.mark.parametrize(
    ("keyword", "value", "check"),
    [
        ("SliceThickness", None, "tag_retained"),
        ("SliceThickness", "9.5", "text_retained"),
        ("SeriesInstanceUID", "", "text_notnull"),
        ("PatientID", "1CT1", "patid_consistent"),
        ("StudyDescription", "", "text_retained"),
        ("PixelData", b"\0" * 32768, "pixels_retained"),
    ],
)
def test_the_judge_finds_what_was_changed_afterwards(tmp_path: Path, keyword: str, value: object, check: str) -> None:
    planted = planted_ct(tmp_path)
    judge = judged(planted, tmp_path)
    assert judge.tallies[check].failures == []
    ds = dcmread(tmp_path / "out.dcm")
    if keyword == "PatientID":
        value = dcmread(planted.file).PatientID
    if value is None:
        del ds[Tag(keyword)]
    else:
        setattr(ds, keyword, value)
    ds.save_as(tmp_path / "out.dcm")
    again = Judge(frozenset(DEFAULT))
    again.judge(planted, tmp_path / "out.dcm")
    assert again.tallies[check].failures != []


def test_the_judge_finds_one_uid_that_became_two(tmp_path: Path) -> None:
    planted = planted_ct(tmp_path)
    judge = judged(planted, tmp_path)
    ds = dcmread(tmp_path / "out.dcm")
    ds.StudyInstanceUID = "2.25.12345"
    ds.save_as(tmp_path / "out.dcm")
    judge.judge(planted, tmp_path / "out.dcm")
    assert judge.tallies["uid_consistent"].failures != []


def test_the_judge_imports_nothing_of_what_it_judges() -> None:
    folder = Path(page.__file__).parent
    for name in ("judge.py", "table_rows.py", "plants.py", "objects.py", "identities.py"):
        assert "import dicomnode" not in (folder / name).read_text("utf-8")
        assert "from dicomnode" not in (folder / name).read_text("utf-8")


def test_the_judge_of_pixels_finds_text_that_is_left_and_pixels_that_are_gone(tmp_path: Path) -> None:
    (image,) = plant_images(tmp_path, TUNE, 1, seed=7)
    left = [wrong for _, wrong in judged_lines(image, image.file)]
    assert len(left) == len(image.lines) > 0
    assert all(left)
    assert retained(image, image.file) == ""
    ds = dcmread(image.file)
    pixels = ds.pixel_array.copy()
    for line in image.lines:
        pixels[line.box[0] : line.box[2], line.box[1] : line.box[3]] = 0
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "out.dcm")
    assert [wrong for _, wrong in judged_lines(image, tmp_path / "out.dcm")] == [""] * len(left)
    assert retained(image, tmp_path / "out.dcm") == ""
    ds.PixelData = bytes(pixels.size)
    ds.save_as(tmp_path / "out.dcm")
    assert "far from any line" in retained(image, tmp_path / "out.dcm")


def test_each_modality_and_look_is_planted_and_the_seed_decides(tmp_path: Path) -> None:
    images = plant_images(tmp_path, TUNE, 24, seed=7)
    assert {image.modality for image in images} == set(MODALITIES)
    assert len({line.look for image in images for line in image.lines}) == 10
    again = plant_images(tmp_path, TUNE, 1, seed=7)
    assert [line.box for line in again[0].lines] == [line.box for line in images[0].lines]
