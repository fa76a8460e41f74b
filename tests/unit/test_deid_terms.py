"""Characteristics of the patient that an option keeps: terms and small numbers, never a text that tells who it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import base_ct
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.deid.audit import Auditor
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.deid.text import clean, name_words, term
from dicomnode.domain import Pseudonym

SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
RECIPE = compile_recipe("basic", ["retain-patient-characteristics", "clean-descriptors"])


def source(tmp_path: Path, **values: object) -> Path:
    ds = base_ct()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "in.dcm", enforce_file_format=True)
    return tmp_path / "in.dcm"


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientSex", "F", "F"),
        ("PatientSex", "KOWALSKI", ""),
        ("EthnicGroup", "Caucasian", "Caucasian"),
        ("EthnicGroup", "Talavera 14/3/1977", ""),
        ("SmokingStatus", "UNKNOWN", "UNKNOWN"),
        ("SmokingStatus", "Kowalski", ""),
        ("PatientSexNeutered", "ALTERED", "ALTERED"),
        ("PatientWeight", "71.5", "71.5"),
        ("PatientSize", "7412933", None),
    ],
)
def test_a_characteristic_stays_only_as_a_term(tmp_path: Path, keyword: str, value: str, kept: str | None) -> None:
    src = source(tmp_path, **{keyword: value})
    Deidentifier(RECIPE, bytes(32), fsync=False).deidentify(src, tmp_path / "out.dcm", SUBJECT)
    assert dcmread(tmp_path / "out.dcm")[keyword].value == kept


@pytest.mark.parametrize(("keyword", "value"), [("EthnicGroup", "Talavera"), ("PatientWeight", "7412933")])
def test_the_audit_finds_another_text_by_itself(tmp_path: Path, keyword: str, value: str) -> None:
    src, out = source(tmp_path, **{keyword: value}), tmp_path / "out.dcm"
    Deidentifier(RECIPE, bytes(32), fsync=False).deidentify(src, out, SUBJECT)
    ds = dcmread(out)
    setattr(ds, keyword, value)
    ds.save_as(out)
    found = Auditor(RECIPE.options).findings(src, out, SUBJECT)
    assert [finding.rule for finding in found] == ["a characteristic of the patient is none of its terms"]


def test_ages_in_other_attributes_are_capped_too(tmp_path: Path) -> None:
    src = source(tmp_path, SelectorASValue="095Y")
    Deidentifier(RECIPE, bytes(32), fsync=False).deidentify(src, tmp_path / "out.dcm", SUBJECT)
    assert dcmread(tmp_path / "out.dcm").SelectorASValue == "090Y"


def test_a_name_that_is_a_word_of_the_vocabulary_leaves_the_descriptions(tmp_path: Path) -> None:
    src = source(tmp_path, PatientName="Head^Mary", StudyDescription="CT abdomen Head, Mary 5 mm")
    out = tmp_path / "out.dcm"
    Deidentifier(RECIPE, bytes(32), fsync=False).deidentify(src, out, SUBJECT)
    ds = dcmread(out)
    assert ds.StudyDescription == "CT abdomen 5 mm"
    ds.StudyDescription = "CT abdomen Head"
    ds.save_as(out)
    found = Auditor(RECIPE.options).findings(src, out, SUBJECT)
    assert [finding.rule for finding in found] == ["a descriptive text has a word of a person's name"]


def test_words_of_two_letters_are_no_names() -> None:
    names = name_words(["CT^Head", "Li^Wei"])
    assert names == {"head", "wei"}
    assert clean("CT head", names) == "CT"
    assert term("EthnicGroup", "") == ""
