"""A question without a PACS: an answer for the files at hand, and nothing of them is kept."""

from __future__ import annotations

import pytest
from PIL import Image
from workflow_samples import files, page_picture, pages_in_ct, rows, slice_picture

from dicomnode.domain import Shows, Untaught, VerdictKind
from dicomnode.errors import InputError, QuarantineError, UploadRefused, UsageError
from dicomnode.node import Node
from dicomnode.testing import sample_repository, sample_study, write_study
from dicomnode.workflow.asking import Stage, ask, sort_out
from dicomnode.workflow.ingest import add_paths

CASES = 4


@pytest.fixture(scope="module")
def node(make_node, tmp_path_factory) -> Node:
    folder = tmp_path_factory.mktemp("node")
    node = make_node(folder)
    findings = sample_repository(folder / "studies", CASES, slices=2, matrix=64)
    add_paths(node.context, [folder / "studies"], findings)
    return node


@pytest.fixture(autouse=True)
def _nothing_is_kept(node):
    before = (rows(node), files(node), node.vault.status().patients)
    yield
    assert (rows(node), files(node), node.vault.status().patients) == before


def test_a_folder_with_a_study_is_answered(node, tmp_path):
    images = sample_study(2, matrix=64, patient_id="ASKING", seed=60)
    write_study(images, tmp_path / "deep" / "er")
    (tmp_path / "readme.txt").write_text("junk beside it does no harm")
    answer = ask(node.context, tmp_path, 3)
    assert answer.verdict.kind is VerdictKind.REPOSITORY_TOO_SMALL
    assert [c.rank for c in answer.cases] == [1, 2, 3]
    assert (answer.query["kind"], answer.query["modality"], answer.query["slices"]) == ("study", "CT", 2)
    assert answer.searched == CASES
    assert images[0].StudyInstanceUID not in str(answer.as_json())


@pytest.mark.parametrize(
    ("modality", "series", "study", "body_part", "region", "shows"),
    [
        ("CT", "Thorax axial", "", "CHEST", "CHEST", None),
        ("CT", "5 mm", "", "", "", None),
        ("CT", "Chest and abdomen", "", "", "ABDOMEN/CHEST", None),
        ("CT", "Brain axial", "Chest", "CHEST", "HEAD", Shows("CT", "HEAD")),
        ("CT", "5 mm", "", "BRAIN", "", Shows("CT", "HEAD")),
        ("MR", "T2 axial", "", "", "", Shows("MR")),
    ],
)
def test_it_is_told_where_the_model_learnt_from_nothing_like_it(
    node, tmp_path, modality, series, study, body_part, region, shows
):
    said = {"SeriesDescription": series, "StudyDescription": study, "BodyPartExamined": body_part}
    whose = {"patient_id": "ASKING", "name": "Asking^Anna"}  # no words of the name are among those of the region
    write_study(sample_study(2, matrix=64, seed=60, modality=modality, **whose, **said), tmp_path)
    answer = ask(node.context, tmp_path, 3)
    assert answer.shows == Shows(modality, region)
    assert answer.untaught == (None if shows is None else Untaught((Shows("CT", "CHEST"),), shows))
    halved = 0.5 if shows is not None and (modality == "MR" or region) else 1.0
    assert answer.cases[0].similarity <= halved


def test_one_image_of_a_study_is_answered(node, tmp_path):
    path = write_study(sample_study(1, matrix=64, patient_id="ASKING", seed=60), tmp_path)[0]
    assert len(ask(node.context, path, 10).cases) == CASES


def test_a_picture_is_answered(node, tmp_path):
    slice_picture().save(tmp_path / "a.png")
    answer = ask(node.context, tmp_path / "a.png", 2)
    assert len(answer.cases) == 2
    assert answer.query == {"kind": "image", "modality": "", "slices": 1, "series": []}


def test_a_picture_of_a_page_cannot_be_searched_and_says_why(node, tmp_path):
    page_picture().save(tmp_path / "a.png")
    answer = ask(node.context, tmp_path / "a.png", 2)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert answer.verdict.reason == "The image is no CT or MR slice: it looks like a page, chart or screen."
    assert (answer.cases, answer.searched, answer.query["slices"]) == ((), 0, 0)


@pytest.mark.parametrize("image", [Image.new("L", (60, 60)), Image.new("RGBA", (60, 60), (255, 0, 0, 0))])
def test_a_blank_picture_cannot_be_searched_and_says_why(node, tmp_path, image):
    image.save(tmp_path / "a.png")
    answer = ask(node.context, tmp_path / "a.png", 2)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert answer.verdict.reason == "The image is no CT or MR slice: it looks like an empty image."


def test_pages_in_dicom_that_claim_to_be_ct_cannot_be_searched(node, tmp_path):
    write_study(pages_in_ct(), tmp_path)
    answer = ask(node.context, tmp_path, 2)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert answer.verdict.reason.startswith("Most images of the study are no CT or MR slices")
    assert answer.cases == ()


def test_one_odd_image_among_slices_does_not_cost_the_answer(node, tmp_path):
    images = sample_study(4, matrix=64, patient_id="ASKING", seed=60)
    odd = pages_in_ct(1)[0]
    images[0].Rows, images[0].Columns, images[0].PixelData = 256, 256, odd.PixelData
    images[0].RescaleSlope, images[0].RescaleIntercept = "1", "0"
    images[0].PixelRepresentation = 1
    write_study(images, tmp_path)
    assert len(ask(node.context, tmp_path, 10).cases) == CASES


@pytest.mark.parametrize("modality", ["CR", "DX", "PT", "NM"])
def test_other_modalities_cannot_be_searched(node, tmp_path, modality):
    images = sample_study(2, matrix=64, BurnedInAnnotation="NO", Modality=modality)
    answer = ask(node.context, write_study(images, tmp_path)[0], 2)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert "other modalities" in answer.verdict.reason


def test_headers_that_claim_no_slice_answer_before_text_is_looked_for(node, tmp_path):
    images = sample_study(2, matrix=64, BurnedInAnnotation="YES", Modality="US")
    images[1].Modality = "DOE^JANE"  # no modality: not repeated
    write_study(images, tmp_path)
    answer = ask(node.context, tmp_path, 2)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert "other modalities" in answer.verdict.reason
    assert answer.query == {"kind": "study", "modality": "US", "slices": 0, "series": []}


def test_localizers_alone_cannot_be_searched(node, tmp_path):
    images = sample_study(2, matrix=64, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_study(images, tmp_path)
    answer = ask(node.context, tmp_path, 2)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert "localizers" in answer.verdict.reason


def test_the_patients_own_cases_are_left_out(node, tmp_path):
    known = sample_study(2, matrix=64, patient_id="PHANTOM-00-0001", seed=61)
    write_study(known, tmp_path)
    answer = ask(node.context, tmp_path, 10)
    mine = node.vault.pseudonym_for("", "PHANTOM-00-0001", create=False)
    assert mine is not None
    assert mine not in {c.subject for c in answer.cases}
    assert len(answer.cases) == answer.searched == CASES - 1


def test_words_leave_only_the_cases_that_have_them(node, tmp_path):
    write_study(sample_study(1, matrix=64, patient_id="ASKING", seed=60), tmp_path)
    answer = ask(node.context, tmp_path, 10, "pleural EFFUSION")
    assert [c.findings[0].display for c in answer.cases] == ["Pleural effusion"]
    assert answer.query["text"] == "pleural EFFUSION"
    assert answer.searched == 1


def test_a_folder_without_an_image_cannot_be_searched_and_says_what_it_holds(node, tmp_path):
    (tmp_path / "a.txt").write_text("no")
    answer = ask(node.context, tmp_path, 10)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert "1 files: not DICOM" in answer.verdict.reason
    assert answer.cases == ()


def test_images_that_cannot_be_used_cannot_be_searched(node, tmp_path):
    images = sample_study(1, matrix=64, RescaleSlope=None, RescaleIntercept=None)
    answer = ask(node.context, write_study(images, tmp_path)[0], 10)
    assert answer.verdict.kind is VerdictKind.NOT_SEARCHABLE
    assert answer.verdict.reason


def test_a_folder_with_two_studies_is_refused(node, tmp_path):
    for n in (1, 2):
        write_study(sample_study(1, matrix=64, patient_id=f"P{n}"), tmp_path / str(n))
    with pytest.raises(InputError, match="2 studies") as caught:
        ask(node.context, tmp_path, 10)
    assert str(caught.value) == f"{tmp_path}: these are images of 2 studies (query one of them: 1, 2)"


def test_one_place_of_each_of_five_studies_is_named(node, tmp_path):
    for n in range(7):
        images = sample_study(2, matrix=64, patient_id=f"P{n}")
        write_study(images, tmp_path / "all" / ("mixed" if n in (1, 2) else f"d{n}/deep"))
        if n in (1, 2):
            (tmp_path / "all" / "mixed" / "000001.dcm").rename(tmp_path / "all" / "mixed" / f"{n}.dcm")
            (tmp_path / "all" / "mixed" / "000002.dcm").unlink()
    with pytest.raises(InputError) as caught:
        ask(node.context, tmp_path, 10)
    named = "all/d0, all/d3, all/d4, all/d5, all/d6, and 2 more"
    assert caught.value.advice == f"query one of them: {named}"
    with pytest.raises(InputError) as caught:
        ask(node.context, tmp_path / "all" / "mixed", 10)
    assert caught.value.advice == "query one of them: 1.dcm, 2.dcm"


def test_no_file_of_an_upload_is_named(tmp_path):
    both = [write_study(sample_study(1, matrix=64, patient_id=f"P{n}"), tmp_path / str(n))[0] for n in (1, 2)]
    with pytest.raises(UploadRefused) as caught:
        sort_out(both, "")
    assert (caught.value.place, caught.value.advice) == ("", "query one of them")


def test_a_study_of_two_patients_is_refused_without_naming_them(node, tmp_path):
    images = sample_study(2, matrix=64, patient_id="SECRET-1")
    images[1].PatientID = "SECRET-2"
    write_study(images, tmp_path)
    with pytest.raises(InputError) as caught:
        ask(node.context, tmp_path, 10)
    assert "SECRET" not in str(caught.value)


def test_what_is_no_picture_is_an_input_error_and_what_is_not_there_a_usage_error(node, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError):
        ask(node.context, tmp_path / "a.png", 10)
    with pytest.raises(UsageError):
        ask(node.context, tmp_path / "absent", 10)


def test_what_may_show_text_is_refused_as_a_received_study_is(node, tmp_path):
    images = sample_study(2, matrix=64, BurnedInAnnotation="YES")
    with pytest.raises(QuarantineError) as caught:
        ask(node.context, write_study(images, tmp_path)[0].parent, 10)
    assert caught.value.reason == "burned-in"


def test_a_screenshot_in_a_study_does_not_cost_it_its_answer(node, tmp_path):
    write_study(sample_study(2, matrix=64, patient_id="ASKING", seed=60), tmp_path / "a")
    screen = sample_study(1, matrix=64, patient_id="ASKING", seed=60, BurnedInAnnotation="YES")
    screen[0].SOPInstanceUID = "2.25.77"
    write_study(screen, tmp_path / "b")
    assert ask(node.context, tmp_path, 10).query["slices"] == 2


def test_each_stage_is_told_in_order(node, tmp_path):
    write_study(sample_study(2, matrix=64, patient_id="ASKING", seed=60), tmp_path)
    told = []
    ask(node.context, tmp_path, 10, tell=lambda stage, progress: told.append((list(Stage).index(stage), progress)))
    assert told == sorted(told)
    assert {stage for stage, _ in told} == {0, 1, 2, 3}
    assert all(0 < progress <= 1 for _, progress in told)


def test_a_folder_with_several_pictures_is_refused(node, tmp_path):
    for name in ("a.png", "b.png"):
        Image.effect_noise((40, 40), 60).save(tmp_path / name)
    with pytest.raises(InputError, match="2 pictures"):
        ask(node.context, tmp_path, 10)
