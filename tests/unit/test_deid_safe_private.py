"""The Retain Safe Private Option: what Table E.3.10-1 lists stays, by creator; the audit judges it by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted import base_ct, element_of, plantable
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.deid import safe_private
from dicomnode.deid.audit import Auditor
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.domain import Pseudonym

SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
OPTIONS = ("retain-safe-private", "retain-longitudinal-modified-dates", "clean-descriptors")
RECIPE = compile_recipe("basic", OPTIONS)
PHILIPS, GE, SIEMENS = "Philips Imaging DD 001", "GEMS_ACQU_01", "SIEMENS MR HEADER"
# pydicom's dictionary of private attributes has another VR, or none, and Implicit VR does not say it.
OTHER_IN_PYDICOM = {"Pitch", "Graphic Line Color", "Redundant Overlay Plane Id"}
# By VR: a value that may stay, and one that may not.
GOOD: dict[str, Any] = {
    "CS": "NONE", "DS": "1.25", "FD": 1.5, "FL": 1.5, "IS": "8", "LO": "axial T2", "SH": "axial", "SL": 5, "SS": 5,
    "UL": 5, "US": 5,
}  # fmt: skip


def ct_with_names() -> Dataset:
    ds = base_ct()
    ds.PatientName = "Kowalski^Anna"
    return ds


def saved(path: Path, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


def deidentified(ds: Dataset, tmp_path: Path, syntax: str = ExplicitVRLittleEndian, recipe: Any = RECIPE) -> Dataset:
    src = saved(tmp_path / "in.dcm", ds, syntax)
    Deidentifier(recipe, bytes(32), fsync=False).deidentify(src, tmp_path / "out.dcm", SUBJECT)
    return dcmread(tmp_path / "out.dcm")


def codes(ds: Dataset) -> list[str]:
    return [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def values_of(entry: safe_private.SafeElement) -> Any:
    if entry.vr == "SQ":
        return Sequence([Dataset()])
    count = int(entry.vm.partition("-")[0])
    return GOOD[entry.vr] if count == 1 else [GOOD[entry.vr]] * count


def test_the_table_has_its_87_attributes() -> None:
    assert len(safe_private.elements()) == 87
    assert safe_private.elements()[0x0019, SIEMENS, 0x0C].vr == "IS"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_safe_attribute_stays_where_its_creator_owns_it(tmp_path: Path, syntax: str) -> None:
    ds = ct_with_names()
    safe = list(safe_private.elements().values())
    if syntax == ImplicitVRLittleEndian:
        safe = [entry for entry in safe if entry.name not in OTHER_IN_PYDICOM]
    for entry in safe:
        ds.private_block(entry.group, entry.creator, create=True).add_new(entry.element, entry.vr, values_of(entry))
    out = deidentified(ds, tmp_path, syntax)
    lost = [entry.name for entry in safe if entry.element not in out.private_block(entry.group, entry.creator)]
    assert lost == []
    assert "113111" in codes(out)


def test_the_same_place_of_another_creator_goes_with_its_creator(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, GE, create=True).add_new(0x23, "DS", "39.37")
    ds.private_block(0x0019, "ACME Kowalski", create=True).add_new(0x23, "DS", "39.37")
    ds.private_block(0x0019, SIEMENS, create=True).add_new(0x23, "DS", "39.37")
    ds.private_block(0x0019, GE).add_new(0x99, "DS", "1")
    ds[0x00191523] = DataElement(0x00191523, "DS", "1")  # nobody's block
    out = deidentified(ds, tmp_path)
    assert [int(element.tag) for element in out if element.tag.is_private] == [0x00190010, 0x00191023]
    assert out[0x00190010].value == GE


def test_a_block_that_is_not_the_first_keeps_its_place(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, "ACME", create=True).add_new(0x01, "LO", "x")
    ds.private_block(0x0019, SIEMENS, create=True).add_new(0x0C, "IS", "800")
    out = deidentified(ds, tmp_path)
    assert [int(element.tag) for element in out if element.tag.is_private] == [0x00190011, 0x0019110C]


@pytest.mark.parametrize(
    ("group", "creator", "element", "vr", "value"),
    [
        (0x0019, SIEMENS, 0x0C, "LO", "Kowalski"),  # another VR than the listed one
        (0x0019, SIEMENS, 0x0D, "CS", "KOWALSKI"),  # a code that is none
        (0x0019, SIEMENS, 0x0D, "CS", "19770314"),
        (0x0019, SIEMENS, 0x0E, "FD", [1.0, 2.0]),  # two values where three belong
        (0x0019, GE, 0x9E, "LO", "Kowalski 14.03.1977"),
        (0x2001, PHILIPS, 0xC1, "LO", ["axial", "Kowalski"]),
        (0x2001, PHILIPS, 0x6E, "SH", "Talavera"),
    ],
)
def test_a_value_that_may_not_stay_goes(
    tmp_path: Path, group: int, creator: str, element: int, vr: str, value: Any
) -> None:
    ds = ct_with_names()
    ds.private_block(group, creator, create=True).add_new(element, vr, value)
    out = deidentified(ds, tmp_path)
    assert [element for element in out if element.tag.is_private] == []
    assert "113111" not in codes(out)  # nothing was kept: nothing is claimed


def test_texts_pass_the_cleaner(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, GE, create=True).add_new(0x9E, "LO", "axial T2 Kowalski")
    assert deidentified(ds, tmp_path).private_block(0x0019, GE)[0x9E].value == "axial T2"


def test_a_code_that_is_the_patients_name_goes(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.PatientName = "Head^Mary"
    ds.private_block(0x01F1, "ELSCINT1", create=True).add_new(0x01, "CS", "HEAD")
    assert [element for element in deidentified(ds, tmp_path) if element.tag.is_private] == []


def test_the_rows_of_the_table_hold_inside_a_safe_sequence(tmp_path: Path) -> None:
    ds = ct_with_names()
    item = Dataset()
    for tag in plantable():
        item.add(element_of(tag))
    item.private_block(0x0019, "ACME", create=True).add_new(0x01, "LO", "Kowalski")
    item.private_block(0x0019, SIEMENS, create=True).add_new(0x0C, "IS", "800")
    ds.private_block(0x2001, PHILIPS, create=True).add_new(0x69, "SQ", Sequence([item]))
    out = deidentified(ds, tmp_path)
    kept = out.private_block(0x2001, PHILIPS)[0x69].value[0]
    assert kept.private_block(0x0019, SIEMENS)[0x0C].value == 800
    assert kept.StudyDate == "19761204"
    raw = (tmp_path / "out.dcm").read_bytes()
    assert b"PHIX" not in raw
    assert b"ACME" not in raw
    assert b"owalski" not in raw


def test_without_the_option_everything_private_goes(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, SIEMENS, create=True).add_new(0x0C, "IS", "800")
    out = deidentified(ds, tmp_path, recipe=compile_recipe("basic", OPTIONS[1:]))
    assert [element for element in out if element.tag.is_private] == []


@pytest.mark.parametrize(
    ("tag", "vr", "value", "rule"),
    [
        (0x0019100F, "LO", "x", "not one of the safe ones"),
        (0x0019110C, "IS", "800", "not one of the safe ones"),
        (0x00190011, "LO", "ACME", "private creator"),
        (0x00190011, "LO", GE, "private creator"),  # owns nothing
        (0x0019100C, "LO", "x", "another VR"),
        (0x0019100C, "IS", ["1", "2"], "more or fewer values"),
        (0x0019100D, "CS", "TALAVERA", "private code"),
        (0x20011062, "CS", "Y", "not one of the safe ones"),  # no creator there
    ],
)
def test_the_audit_alone_finds_what_may_not_be_there(tmp_path: Path, tag: int, vr: str, value: Any, rule: str) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, SIEMENS, create=True).add_new(0x0C, "IS", "800")
    out = deidentified(ds, tmp_path)
    out[tag] = DataElement(tag, vr, value)
    out.save_as(tmp_path / "out.dcm")
    found = Auditor(RECIPE.options).findings(tmp_path / "in.dcm", tmp_path / "out.dcm", SUBJECT)
    assert len(found) == 1
    assert rule in found[0].rule
    assert found[0].place == f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def test_the_audit_finds_a_text_that_was_not_cleaned(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, GE, create=True).add_new(0x9E, "LO", "axial T2")
    out = deidentified(ds, tmp_path)
    for text, rule in (("axial Talavera", "private text"), ("axial Kowalski", "private text")):
        out[0x0019109E].value = text
        out.save_as(tmp_path / "out.dcm")
        found = Auditor(RECIPE.options).findings(tmp_path / "in.dcm", tmp_path / "out.dcm", SUBJECT)
        assert any(rule in finding.rule for finding in found)


def test_the_code_of_the_option_is_claimed_only_where_it_is_true(tmp_path: Path) -> None:
    ds = ct_with_names()
    ds.private_block(0x0019, SIEMENS, create=True).add_new(0x0C, "IS", "800")
    out = deidentified(ds, tmp_path)
    del out[0x0019100C], out[0x00190010]
    out.save_as(tmp_path / "out.dcm")
    found = Auditor(RECIPE.options).findings(tmp_path / "in.dcm", tmp_path / "out.dcm", SUBJECT)
    assert [finding.place for finding in found] == ["(0012,0064)"]


def test_private_elements_of_real_files_pass_the_audit(tmp_path: Path) -> None:
    kept = 0
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "emri_small.dcm", "explicit_VR-UN.dcm"):
        src, out = Path(str(get_testdata_file(name, download=False))), tmp_path / name
        Deidentifier(RECIPE, bytes(32), fsync=False).deidentify(src, out, SUBJECT)
        kept += sum(element.tag.is_private for element in dcmread(out).iterall())
    assert kept > 0
