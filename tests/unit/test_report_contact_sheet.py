"""The contact sheet: a plain image in the query's study that says of every case that it is not this patient."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicomnode.domain import (
    Answer,
    Case,
    Finding,
    FindingStatus,
    ModelId,
    OriginalUid,
    Pseudonym,
    PseudoUid,
    Shows,
    Untaught,
    Verdict,
    VerdictKind,
    too_few,
)
from dicomnode.report.codes import SECONDARY_CAPTURE, Language, texts
from dicomnode.report.contact_sheet import QueryTile, Tiles, build_contact_sheet
from dicomnode.report.fonts import can_shape
from dicomnode.report.header import to_bytes
from dicomnode.report.sheet_image import BAND_HEIGHT, CAPTION_HEIGHT, TEXT, WARNING, draw_sheet, grid
from dicomnode.report.spec import ObjectSpec, QueryImage
from dicomnode.report.tiles import case_letter, query_letter, score_words
from dicomnode.report.uids import subject_uid
from dicomnode.report.words import verdict_sentence

SPEC = ObjectSpec(
    series_instance_uid="2.25.1",
    sop_instance_uid="2.25.2",
    created=datetime(2026, 3, 4, tzinfo=UTC),
    link="https://node.example/v/r/1",
    software_version="0.1.0",
)
OWN = QueryImage("1.2.840.10008.5.1.4.1.1.2", OriginalUid("1.2.3"), OriginalUid("1.2"), 3, 17, PseudoUid("2.25.9"))


@pytest.fixture
def header() -> Dataset:
    return pydicom.dcmread(get_testdata_file("CT_small.dcm"), stop_before_pixels=True)


def slice_of(grey: int, shape: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full(shape, grey, np.uint8)


def tiles(n: int, *, kind: VerdictKind = VerdictKind.SIMILAR, findings: tuple[Finding, ...] = ()) -> Tiles:
    cases = tuple(
        Case(
            rank=i + 1,
            similarity=0.9,
            subject=Pseudonym(f"DN-{i}"),
            study_uid=PseudoUid(subject_uid(f"s{i}")),
            series_uid=PseudoUid(subject_uid(f"e{i}")),
            modality="CT",
            status=FindingStatus.PRESENT if findings else list(FindingStatus)[i % 3],
            findings=findings,
            matches=(),
        )
        for i in range(n)
    )
    answer = Answer({}, ModelId("m"), Verdict(kind), cases, searched=99)
    return Tiles(answer, (QueryTile(slice_of(180), OWN),), {i + 1: slice_of(90) for i in range(n)})


def bands(image: np.ndarray) -> int:
    """Number of yellow bars of a case tile: runs of warning-coloured pixels down and along the case area."""
    mask = (image == np.array(WARNING)).all(axis=2)[160:, 310:]
    starts = mask & ~np.pad(mask, ((1, 0), (0, 0)))[:-1] & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    return sum(mask[y : y + BAND_HEIGHT, x].all() and mask[y, x : x + 40].all() for y, x in np.argwhere(starts))


def test_the_sheet_is_an_rgb_secondary_capture_of_the_query_study(header: Dataset) -> None:
    ds, image = build_contact_sheet(header, tiles(5), SPEC)
    read = pydicom.dcmread(BytesIO(to_bytes(ds)))
    assert read.SOPClassUID == SECONDARY_CAPTURE
    assert (read.StudyInstanceUID, read.PatientID) == (header.StudyInstanceUID, header.PatientID)
    assert (read.SeriesNumber, read.Modality, list(read.ImageType)) == (9910, "OT", ["DERIVED", "SECONDARY"])
    assert read.BurnedInAnnotation == "NO"
    assert np.array_equal(read.pixel_array, np.asarray(image))
    assert (read.Columns, read.Rows) == (1600, 1200)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 12])
@pytest.mark.parametrize("language", list(Language))
def test_every_case_carries_the_bar_that_it_is_not_this_patient(n: int, language: Language) -> None:
    assert bands(np.asarray(draw_sheet(tiles(n), language, "0.1.0"))) == n


def test_a_case_without_picture_keeps_its_bar_and_place() -> None:
    some = tiles(3)
    missing = replace(some, cases={1: some.cases[1]})
    assert bands(np.asarray(draw_sheet(missing, Language.EN, "0.1.0"))) == 3


def test_more_cases_than_fit_are_counted_not_squeezed_in() -> None:
    twelve, forty = (np.asarray(draw_sheet(tiles(n), Language.EN, "0.1.0")) for n in (12, 40))
    assert bands(forty) == 12
    assert not np.array_equal(twelve[1160:], forty[1160:])  # the footer says how many are left
    assert np.array_equal(twelve[150:1150], forty[150:1150])


def test_the_picture_keeps_its_proportions_and_is_not_covered() -> None:
    pixels = np.zeros((100, 50), np.uint8)
    pixels[:, :] = 200
    sheet = np.asarray(draw_sheet(replace(tiles(1), cases={1: pixels}), Language.EN, "0.1.0"))
    drawn = (sheet[130:, 460:1050] == 200).all(axis=2)
    rows, columns = drawn.any(axis=1).sum(), drawn.any(axis=0).sum()
    assert rows == pytest.approx(2 * columns, abs=2)
    assert drawn.sum() == rows * columns


@pytest.mark.parametrize("kind", [VerdictKind.NONE, VerdictKind.REPOSITORY_TOO_SMALL])
def test_a_list_below_threshold_looks_different_at_the_top_and_in_every_tile(kind: VerdictKind) -> None:
    similar, below = (
        np.asarray(draw_sheet(tiles(2, kind=k), Language.EN, "0.1.0")) for k in (VerdictKind.SIMILAR, kind)
    )
    assert not np.array_equal(similar[:140], below[:140])
    assert bands(below) == 2

    def yellow(image: np.ndarray) -> int:
        return int((image[160:1150, 310:] == np.array(WARNING)).all(axis=2).sum())

    assert yellow(below) > yellow(similar)


@pytest.mark.parametrize("language", list(Language))
def test_an_answer_without_cases_can_be_drawn(header: Dataset, language: Language) -> None:
    empty = replace(tiles(0, kind=VerdictKind.NOT_SEARCHABLE), query=())
    ds, _ = build_contact_sheet(header, empty, replace(SPEC, language=language))
    assert ds.Rows == 1200


def test_a_finding_the_font_cannot_draw_shows_its_code() -> None:
    in_japanese, as_code = (
        np.asarray(draw_sheet(tiles(1, findings=(Finding("SCT", "233604007", text),)), Language.EN, "0.1.0"))
        for text in ("肺炎", "SCT 233604007")
    )
    assert np.array_equal(in_japanese, as_code)


def test_a_diagnosis_coded_in_two_systems_is_said_once() -> None:
    coded = (Finding("I10C", "U07.1", "COVID-19"), Finding("SCT", "840539006", "COVID-19"))
    twice, once = (np.asarray(draw_sheet(tiles(1, findings=f), Language.EN, "1")) for f in (coded, coded[:1]))
    assert np.array_equal(twice, once)


def test_no_identity_is_drawn(header: Dataset) -> None:
    one, _ = build_contact_sheet(header, tiles(3), SPEC)
    header.PatientName, header.PatientID, header.AccessionNumber = "Other^Person", "42", "ACC"
    header.StudyDate, header.StudyInstanceUID = "19990101", "1.2.3.4"
    other, _ = build_contact_sheet(header, tiles(3), SPEC)
    assert one.PixelData == other.PixelData


def test_the_same_tiles_give_the_same_file(header: Dataset) -> None:
    first, second = (to_bytes(build_contact_sheet(header, tiles(4), SPEC)[0]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("caption", [CAPTION_HEIGHT, CAPTION_HEIGHT + 22])
def test_the_grid_has_room_for_every_case_and_no_empty_row(count: int, caption: int) -> None:
    layout = grid(count, 1262, 980, caption)
    assert layout.columns * layout.rows >= count
    assert layout.columns * (layout.rows - 1) < count
    assert layout.side >= 180  # pixels: anatomy must be recognisable at any number of cases


def test_a_right_to_left_finding_is_drawn_at_the_right_in_its_order() -> None:
    def caption(display: str) -> np.ndarray:
        sheet = np.asarray(draw_sheet(tiles(10, findings=(Finding("SCT", "1", display),)), Language.EN, "0.1.0"))
        return (sheet[520:640, 350:557] == np.array(TEXT)).all(axis=2)  # the findings of the first tile

    if not can_shape():
        pytest.skip("Pillow finds no FriBiDi (apt-get install libfribidi0)")
    hebrew, reversed_by_hand = caption("דלקת"), caption("תקלד")
    assert hebrew.any()
    assert not np.array_equal(hebrew, reversed_by_hand)
    latin = caption("abcd")
    changed = np.argwhere(hebrew != latin)
    assert changed[:, 1].max() > 180  # it ends where the tile does; Latin text begins at the left


def test_a_finding_cannot_turn_the_text_around_it() -> None:
    plain, override = (
        np.asarray(draw_sheet(tiles(1, findings=(Finding("SCT", "1", text),)), Language.EN, "0.1.0"))
        for text in ("abc def", "abc \u202edef\u2066")
    )
    assert np.array_equal(plain, override)


@pytest.mark.parametrize("similarity", [0.0, 1.0])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_ends_of_the_scale_can_be_drawn(similarity: float, calibrated: bool) -> None:
    some = tiles(2)
    cases = tuple(replace(c, similarity=similarity, modality="X" * 90) for c in some.answer.cases)
    answer = replace(some.answer, cases=cases, calibrated=calibrated)
    assert bands(np.asarray(draw_sheet(replace(some, answer=answer), Language.ES, "0.1.0" * 40))) == 2


def test_a_query_slice_without_place_in_the_study_has_no_words() -> None:
    some = tiles(1)
    without = replace(some, query=(QueryTile(some.query[0].pixels),))
    placed, unplaced = (np.asarray(draw_sheet(t, Language.EN, "0.1.0")) for t in (some, without))
    assert not np.array_equal(placed, unplaced)


def test_drawing_needs_none_of_the_libraries_of_the_structured_report() -> None:
    code = "import sys, dicomnode.report.sheet_image, dicomnode.report.document; sys.exit('highdicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_only_grey_slices_are_tiles(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        replace(tiles(1), cases={1: bad})


def test_two_findings_leave_less_than_a_fifth_of_a_tile_empty() -> None:
    some = tiles(10, findings=(Finding("SCT", "27925004", "Nodule"), Finding("SCT", "60046008", "Pleural effusion")))
    square = replace(some, cases={rank: slice_of(200, (64, 64)) for rank in some.cases})
    grey = np.asarray(draw_sheet(square, Language.EN, "0.1.0").convert("L"))
    top, bottom = 140, 634  # of the first of two rows of five
    written = (grey[top:bottom, 320:540] > 100).any(axis=1)
    assert not written[-2:].any()
    assert np.flatnonzero(written).max() >= 0.8 * (bottom - top)


@pytest.mark.parametrize(
    ("language", "calibrated", "said"),
    [
        (Language.EN, False, ("score", "0.950")),
        (Language.ES, False, ("puntuación", "0,950")),
        (Language.EN, True, ("similarity", "95.0 %")),
        (Language.ES, True, ("similitud", "95,0 %")),
    ],
)
def test_a_score_is_written_as_its_language_writes_numbers(
    language: Language, calibrated: bool, said: tuple[str, str]
) -> None:
    some = tiles(1)
    answer = replace(some.answer, calibrated=calibrated)
    assert score_words(answer, replace(answer.cases[0], similarity=0.95), texts(language)) == said


def test_the_share_of_a_verdict_is_written_so_too() -> None:
    answer = replace(tiles(1).answer, verdict=Verdict(VerdictKind.NONE, p=0.012))
    assert "0.012" in verdict_sentence(answer, texts(Language.EN))
    assert "0,012" in verdict_sentence(answer, texts(Language.ES))


@pytest.mark.parametrize(
    ("language", "patients", "searched", "said"),
    [
        (Language.EN, 12, 22, ": 12 patients in the repository; a statement needs 20; 22 cases searched. The nearest"),
        (Language.EN, 1, 1, ": 1 patient in the repository; a statement needs 20; 1 case searched. The nearest"),
        (Language.ES, 12, 22, ": 12 pacientes en el repositorio; una afirmación requiere 20; 22 casos examinados. Aun"),
        (Language.ES, 1, 1, ": 1 paciente en el repositorio; una afirmación requiere 20; 1 caso examinado. Aun"),
    ],
)
def test_a_repository_that_is_too_small_tells_patients_from_cases(
    language: Language, patients: int, searched: int, said: str
) -> None:
    small = Verdict(VerdictKind.REPOSITORY_TOO_SMALL, reason=too_few(patients))
    answer = replace(tiles(1).answer, verdict=small, searched=searched)
    assert said in verdict_sentence(answer, texts(language))


@pytest.mark.parametrize("kind", [VerdictKind.SIMILAR, VerdictKind.NONE, VerdictKind.REPOSITORY_TOO_SMALL])
def test_a_model_that_learnt_from_nothing_like_the_study_is_said(kind: VerdictKind) -> None:
    answer = tiles(2).answer
    beyond = Untaught((Shows("CT", "CHEST"),), Shows("MR", "ABDOMEN/HEAD")).as_json()
    answer = replace(answer, query={"modality": "MR", "untaught": beyond}, verdict=Verdict(kind))
    assert verdict_sentence(answer, texts(Language.EN)).endswith(
        " Caution: the model learnt from CT (chest) and was not taught MR (abdomen and pelvis, head)."
    )
    assert verdict_sentence(answer, texts(Language.ES)).endswith(
        " Atención: el modelo aprendió de CT (tórax) y no se le enseñó MR (abdomen y pelvis, cabeza)."
    )
    assert "Caution" not in verdict_sentence(replace(answer, cases=(), query=answer.query), texts(Language.EN))


@pytest.mark.parametrize(("asked", "found", "said"), [("MR", "CT", True), ("CT", "CT", False), ("", "CT", False)])
def test_a_study_of_another_modality_than_all_its_cases_is_said(asked: str, found: str, said: bool) -> None:
    answer = tiles(2).answer
    cases = tuple(replace(c, modality=found) for c in answer.cases)
    answer = replace(answer, cases=cases, query={"modality": asked})
    for language in Language:
        t = texts(language)
        assert (t.other_modality.format(modality=asked) in verdict_sentence(answer, t)) is said
    below = replace(answer, verdict=Verdict(VerdictKind.NONE, p=0.01))
    assert "Caution" not in verdict_sentence(below, texts(Language.EN))  # it says already that nothing is similar


def test_a_case_has_the_letter_of_the_slice_of_this_study_that_it_is_like() -> None:
    one = tiles(3)
    three = replace(one, query=(*one.query, *one.query, *one.query), pairs={1: 0, 2: 2})
    assert [case_letter(three, case) for case in three.answer.cases] == ["A", "C", ""]
    assert [query_letter(three, place) for place in range(3)] == ["A", "B", "C"]
    with_letters, without = (draw_sheet(t, Language.EN, "1") for t in (three, replace(three, pairs={})))
    assert with_letters.tobytes() != without.tobytes()
    assert bands(np.asarray(with_letters)) == 3


def test_one_slice_needs_no_letter() -> None:
    one = replace(tiles(3), pairs={1: 0})
    assert case_letter(one, one.answer.cases[0]) == query_letter(one, 0) == ""
