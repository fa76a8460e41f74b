"""The auditor alone finds what de-identification left, whatever was left out or done afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planted import CT, Planted, base_ct, plant, value_of
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomnode.deid import table
from dicomnode.deid.audit import Auditor
from dicomnode.deid.engine import UNWANTED, Deidentifier
from dicomnode.deid.leaks import Needles
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import Action, Recipe, compile_recipe
from dicomnode.deid.text_audit import is_clean
from dicomnode.domain import Pseudonym
from dicomnode.errors import QuarantineError

KEY = b"k" * 32
SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
OPTIONS = (
    "retain-longitudinal-modified-dates",
    "clean-descriptors",
    "clean-pixel-data",
    "retain-patient-characteristics",
)
NAME, ACCESSION = str(value_of(0x00100010)).split("^")[0], str(value_of(0x00080050))
SPREAD = 60  # every 60th rule here; all of them in tests/integration/test_deid_mutations.py


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return compile_recipe("basic", OPTIONS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted") / "in.dcm")


def unaudited(recipe: Recipe, unwanted: tuple[Callable[[int], bool], ...] | None = None) -> Deidentifier:
    return Deidentifier(recipe, KEY, fsync=False, audited=False, unwanted=unwanted)


def places(recipe: Recipe, src: Path, out: Path, subject: Subject = SUBJECT) -> set[str]:
    return {finding.place for finding in Auditor(recipe.options).findings(src, out, subject)}


def test_a_complete_deidentification_passes(recipe: Recipe, planted: Planted, tmp_path: Path) -> None:
    unaudited(recipe).deidentify(planted.path, tmp_path / "out.dcm", SUBJECT)
    assert places(recipe, planted.path, tmp_path / "out.dcm") == set()


def test_the_original_itself_breaks_hundreds_of_rules(recipe: Recipe, planted: Planted) -> None:
    assert len(places(recipe, planted.path, planted.path)) > 1000


def test_each_rule_left_out_is_found(recipe: Recipe, planted: Planted, tmp_path: Path) -> None:
    tags = [tag for tag in recipe.rules if recipe.action(tag, CT) is not Action.KEEP][::SPREAD]
    assert len(tags) > 8
    for tag in tags:
        unaudited(recipe.without(tag)).deidentify(planted.path, tmp_path / "out.dcm", SUBJECT)
        name = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
        found = places(recipe, planted.path, tmp_path / "out.dcm")
        assert any(name in place for place in found), name
        assert all(name in place or place == "header bytes" for place in found), name


@pytest.mark.parametrize("left_out", UNWANTED, ids=lambda step: step.__name__)
def test_each_group_left_in_is_found(
    recipe: Recipe, planted: Planted, tmp_path: Path, left_out: Callable[[int], bool]
) -> None:
    rest = tuple(step for step in UNWANTED if step is not left_out)
    unaudited(recipe, rest).deidentify(planted.path, tmp_path / "out.dcm", SUBJECT)
    expected = {"is_private": "(0009,", "is_curve_or_overlay": "(6000,3000)", "is_unknown": "(0018,EFF0)"}
    found = places(recipe, planted.path, tmp_path / "out.dcm")
    assert any(place.startswith(expected[left_out.__name__]) for place in found)


@pytest.mark.parametrize(
    "keyword",
    ["PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
     "LongitudinalTemporalInformationModified", "PatientID", "PatientName"],
)  # fmt: skip
def test_each_statement_left_out_is_found(recipe: Recipe, tmp_path: Path, keyword: str) -> None:
    src = plant(tmp_path / "in.dcm", tags=[]).path
    unaudited(recipe.without(keyword)).deidentify(src, tmp_path / "out.dcm", SUBJECT)
    assert places(recipe, src, tmp_path / "out.dcm")


@pytest.fixture
def clean(recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    src = plant(tmp_path / "in.dcm", tags=[0x00100010, 0x00100020, 0x00080020, 0x00080050, 0x00080018]).path
    unaudited(recipe).deidentify(src, tmp_path / "out.dcm", SUBJECT)
    assert places(recipe, src, tmp_path / "out.dcm") == set()
    return src, tmp_path / "out.dcm"


def test_tampered_bytes_are_found(recipe: Recipe, clean: tuple[Path, Path]) -> None:
    src, out = clean
    raw = out.read_bytes()
    for changed, place in [
        (b"x" + raw[1:], "preamble"),
        (raw + b"more", "end of file"),
        (raw[:-2], "pixel data"),
        (raw[:-2] + b"\x01\x02", "pixel data"),
        (raw.replace(b"DICOMNODE_1", b"MERCURE_0_4"), "(0002,0013)"),
        (raw.replace(b"CHEST", b"PHIX0"), ""),
    ]:
        out.write_bytes(changed)
        found = places(recipe, src, out)
        assert (place in found) if place else not found


@pytest.mark.parametrize(
    ("tag", "vr", "value", "place"),
    [
        (0x00181020, "LO", f"{NAME} made it", "(0018,1020)"),  # the name in an attribute that the table lacks
        (0x00181020, "LO", f"acc-{ACCESSION}-x", "(0018,1020)"),  # the accession number between other characters
        (0x00181020, "LO", "on 14.03.1977", "(0018,1020)"),  # the study date in another form
        (0x00181020, "LO", "1.2.826.0.1.3680043.9999.1.2", "(0018,1020)"),
        (0x00081030, "LO", "Chest of Kowalski", "(0008,1030)"),
        (0x00080080, "LO", "General Hospital", "(0008,0080)"),
        (0x00080020, "DA", "19770315", "(0008,0020)"),
        (0x00080021, "DA", "19770315", "(0008,0021)"),
        (0x0020000D, "UI", "1.2.3.4", "(0020,000D)"),
        (0x00101010, "AS", "091Y", "(0010,1010)"),
        (0x00100020, "LO", "4711", "(0010,0020)"),
        (0x00091001, "LO", "x", "(0009,1001)"),
        (0x60000010, "US", 3, "(6000,0010)"),
        (0x00080201, "SH", "Madrid", "(0008,0201)"),
    ],
)
def test_a_value_put_in_afterwards_is_found(
    recipe: Recipe, clean: tuple[Path, Path], tag: int, vr: str, value: object, place: str
) -> None:
    src, out = clean
    ds = dcmread(out)
    ds[tag] = DataElement(tag, vr, value)
    ds.save_as(out)
    assert place in places(recipe, src, out)


def test_file_meta_of_the_sender_is_found(recipe: Recipe, clean: tuple[Path, Path]) -> None:
    src, out = clean
    ds = dcmread(out)
    ds.file_meta.SourceApplicationEntityTitle = "WARD7"
    ds.save_as(out)
    assert "(0002,0016)" in places(recipe, src, out)


def test_the_dates_of_another_patient_are_found(recipe: Recipe, clean: tuple[Path, Path]) -> None:
    src, out = clean
    assert "(0008,0020)" in places(recipe, src, out, Subject(SUBJECT.pseudonym, -101))
    assert "(0010,0020)" in places(recipe, src, out, Subject(Pseudonym("DN-OTHER22222"), SUBJECT.days))


def test_common_values_do_not_condemn_an_object(recipe: Recipe, tmp_path: Path) -> None:
    ds = base_ct()
    ds.StationName, ds.PatientName, ds.InstitutionName = "CT", "CHEST^PHANTOM", "GE Medical Systems"
    ds.OperatorsName, ds.StudyID, ds.AccessionNumber = "Siemens^Test", "1", "120"
    ds.file_meta = dcmread(plant(tmp_path / "in.dcm", tags=[]).path).file_meta
    ds.save_as(tmp_path / "in.dcm", enforce_file_format=True)
    unaudited(recipe).deidentify(tmp_path / "in.dcm", tmp_path / "out.dcm", SUBJECT)
    assert places(recipe, tmp_path / "in.dcm", tmp_path / "out.dcm") == set()


def test_the_error_names_the_tag_and_not_the_value(recipe: Recipe, clean: tuple[Path, Path]) -> None:
    src, out = clean
    ds = dcmread(out)
    ds.SoftwareVersions = NAME
    ds.save_as(out)
    with pytest.raises(QuarantineError) as refused:
        Auditor(recipe.options).check(src, out, SUBJECT)
    assert refused.value.reason == "audit"
    assert "(0018,1020)" in str(refused.value)
    assert "PHIX" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(recipe: Recipe, clean: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "junk.dcm").write_bytes(b"PHIX" * 100)
    with pytest.raises(QuarantineError, match="could not be finished") as refused:
        Auditor(recipe.options).check(clean[0], tmp_path / "junk.dcm", SUBJECT)
    assert refused.value.reason == "audit"


def test_the_auditor_shares_no_code_with_what_it_audits() -> None:
    folder = Path(table.__file__).parent
    for name in ("audit.py", "leaks.py", "private_audit.py"):
        text = (folder / name).read_text("utf-8")
        for part in ("recipe", "engine", "source", "gate", "text", "private"):
            assert f"dicomnode.deid.{part} " not in text
            assert f"import {part}" not in text


def test_the_uid_of_a_device_passes_where_the_option_keeps_it(tmp_path: Path) -> None:
    recipe = compile_recipe("basic", ["retain-device-identity"])
    src = plant(tmp_path / "in.dcm", [0x00181002], ["top", "nested"]).path
    Deidentifier(recipe, KEY, fsync=False).deidentify(src, tmp_path / "out.dcm", SUBJECT)
    assert dcmread(tmp_path / "out.dcm").DeviceUID == value_of(0x00181002)
    strict = compile_recipe("basic", ())
    assert "(0018,1002)" in places(strict, src, tmp_path / "out.dcm")


def test_a_name_is_searched_for_though_it_is_an_everyday_word_or_the_form_of_a_listed_one() -> None:
    ds = Dataset()
    ds.PatientName, ds.PatientComments = "Hill^White", "still painful"
    needles = Needles.of([ds], frozenset(), "DN-ABCDEFGH23")
    assert {"hill", "white"} <= needles.words
    assert "still painful" not in needles.texts


@pytest.mark.parametrize("text", ["STILL painful", "Hill", "Campos", "Toracosmith"])
def test_the_auditor_refuses_surnames_that_the_lists_of_forms_would_make(text: str) -> None:
    assert not is_clean(text)
