"""A site's own rules: they strengthen freely, weaken with a named exception only, and nothing in them is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import CT, base_ct, plant
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from test_cli import run as command

from dicomnode.deid import table
from dicomnode.deid.audit import Auditor
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pool import DeidPool, DeidTask
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import Action, Recipe, compile_recipe
from dicomnode.deid.site import load
from dicomnode.domain import Pseudonym
from dicomnode.errors import SettingsError
from dicomnode.workflow.batch.explain import explain_file

SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
DEFAULT = ("retain-longitudinal-modified-dates", "clean-descriptors", "retain-patient-characteristics")
REASON = "agreed by the data protection officer"


def rule(**cells: str) -> str:
    return "[[rule]]\n" + "".join(f'{name} = "{value}"\n' for name, value in cells.items())


def recipe(tmp_path: Path, text: str, options: tuple[str, ...] = DEFAULT) -> Recipe:
    file = tmp_path / "site.toml"
    file.write_text(text, "utf-8")
    return compile_recipe("basic", options, load(file, keeps_private="retain-safe-private" in options))


def source(tmp_path: Path, **values: object) -> Path:
    ds = base_ct()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "in.dcm", enforce_file_format=True)
    return tmp_path / "in.dcm"


def deidentified(recipe: Recipe, src: Path) -> Dataset:
    out = src.with_name("out.dcm")
    Deidentifier(recipe, bytes(32), fsync=False).deidentify(src, out, SUBJECT)
    return dcmread(out)


def test_rules_that_strengthen_need_no_word(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        rule(attribute="SoftwareVersions", action="remove")
        + rule(attribute="(0018,0024)", action="clean")
        + rule(attribute="PatientSex", action="blank")
        + rule(attribute="StudyDate", action="blank"),
    )
    src = source(
        tmp_path, SoftwareVersions="room 3", SequenceName="axial Talavera", PatientSex="F", StudyDate="20200229",
        SeriesDate="20200229",
    )  # fmt: skip
    ds = deidentified(own, src)
    assert "SoftwareVersions" not in ds
    assert (ds.SequenceName, ds.PatientSex, ds.StudyDate, ds.SeriesDate) == ("axial", "", "", "20191121")
    assert own.exceptions == ()
    assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


def test_a_rule_that_weakens_names_its_exception_and_the_profile_is_not_claimed(tmp_path: Path) -> None:
    own = recipe(tmp_path, rule(attribute="StudyID", action="keep", exception=REASON))
    ds = deidentified(own, source(tmp_path, StudyID="ST4711"))
    assert ds.StudyID == "ST4711"
    assert own.exceptions == (f"site rule 1: keep StudyID, exception: {REASON}",)
    assert ds.DeidentificationMethod.endswith(", 1 exceptions")
    assert "113100" not in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def test_a_text_that_the_profile_removes_is_cleaned_with_an_exception(tmp_path: Path) -> None:
    own = recipe(tmp_path, rule(attribute="StudyDescription", action="clean", exception=REASON), ())
    assert deidentified(own, source(tmp_path, StudyDescription="CT chest Kowalski")).StudyDescription == "CT chest"


def test_the_hash_covers_rules_and_reasons(tmp_path: Path) -> None:
    texts = [
        "",
        rule(attribute="SoftwareVersions", action="remove"),
        rule(attribute="StudyID", action="keep", exception=REASON),
        rule(attribute="StudyID", action="keep", exception="another reason"),
    ]
    assert len({recipe(tmp_path, text).sha256 for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (rule(attribute="PatientAdress", action="remove"), "no keyword"),
        (rule(attribute="(0018,EFF0)", action="remove"), "no keyword"),
        (rule(attribute="SoftwareVersions", action="Remove"), "the action is none of"),
        (rule(attribute="SoftwareVersions"), "the action is none of"),
        (rule(attribute="SoftwareVersions", action="remove", reason="x"), "unknown field 'reason'"),
        ('[rules]\nattribute = "SoftwareVersions"\n', "only .*rule"),
        (rule(attribute="SoftwareVersions", action="remove") * 2, "an earlier rule"),
        (
            rule(attribute="SoftwareVersions", action="remove") + rule(attribute="(0018,1020)", action="blank"),
            "an earlier rule",
        ),
        (rule(attribute="(0019,xx9e)", action="remove"), "needs its creator"),
        (rule(attribute="(0019,109E)", action="remove", creator="GEMS_ACQU_01"), "written .*xxee"),
        (rule(attribute="(0019,xx01)", creator="ACME", action="remove"), "removed without a rule"),
        (rule(attribute="(0018,xx01)", creator="ACME", action="remove"), "odd group"),
        (rule(attribute="(0019,xx9e)", creator="GEMS_ACQU_01", action="blank"), "kept or removed"),
        (rule(attribute="SoftwareVersions", creator="ACME", action="remove"), "for private attributes"),
        (rule(attribute="StudyID", action="keep"), "needs an exception"),
        (rule(attribute="StationName", action="clean"), "needs an exception"),
        (rule(attribute="SoftwareVersions", action="remove", exception="x"), "nothing is weakened"),
        (rule(attribute="SoftwareVersions", action="keep"), "without it"),
        (rule(attribute="PatientAddress", action="remove"), "without it"),
        (rule(attribute="StudyDescription", action="clean"), "without it"),
        (rule(attribute="PatientID", action="keep", exception="x"), "stands on"),
        (rule(attribute="SOPInstanceUID", action="remove"), "stands on"),
        (rule(attribute="Rows", action="remove"), "stands on"),
        (rule(attribute="OperatorsName", action="keep", exception="x"), "never kept"),
        (rule(attribute="FrameOfReferenceUID", action="keep", exception="x"), "never kept"),
        (rule(attribute="StudyDate", action="clean"), "only texts"),
        (rule(attribute="(6000,3000)", action="keep", exception="x"), "curves|no keyword"),
        (rule(attribute="(0021,xx05)", creator="ACME", vr="DS", action="keep", exception="x"), "retain-safe-private"),
        (rule(attribute="SoftwareVersion", action="remove"), r"\(SoftwareVersion\).*did you mean SoftwareVersions\?"),
        (rule(attribute="StudyID", action="keep"), r"site_recipe, rule 1 \(StudyID\)"),
        ("[[rule", "cannot be read"),
        ("[[rule]]\nattribute = 3\n", "text in quotes"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_weaken_in_silence_is_refused(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        recipe(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path / "none.toml", keeps_private=False)


def test_private_attributes_by_creator(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        rule(attribute="(0019,xx9e)", creator="GEMS_ACQU_01", action="remove")
        + rule(attribute="(0021,xx05)", creator="ACME", vr="DS", action="keep", exception=REASON),
        (*DEFAULT, "retain-safe-private"),
    )
    ds = dcmread(source(tmp_path))
    ge, acme = (
        ds.private_block(group, creator, create=True) for group, creator in ((0x19, "GEMS_ACQU_01"), (0x21, "ACME"))
    )
    ge.add_new(0x9E, "LO", "axial")
    ge.add_new(0x27, "DS", "1.5")
    acme.add_new(0x05, "DS", "2.5")
    acme.add_new(0x06, "DS", "3.5")
    ds.save_as(tmp_path / "in.dcm")
    out = deidentified(own, tmp_path / "in.dcm")
    kept = [int(element.tag) for element in out if element.tag.is_private and element.tag.element > 0xFF]
    assert kept == [0x00191027, 0x00211005]
    lines = "\n".join(row.line for row in explain_file(own, tmp_path / "in.dcm"))
    assert "Table E.3.10-1 or the site's recipe" in lines


def test_the_audit_knows_the_sites_rules_by_itself(tmp_path: Path) -> None:
    text = rule(attribute="SoftwareVersions", action="remove") + rule(attribute="SequenceName", action="clean")
    own = recipe(tmp_path, text)
    src = source(tmp_path, SoftwareVersions="room 3", SequenceName="axial Talavera")
    for tag in (0x00181020, 0x00180024):
        Deidentifier(own.without(tag), bytes(32), fsync=False, audited=False).deidentify(
            src, tmp_path / "out.dcm", SUBJECT
        )
        found = Auditor(own.options, own.site).findings(src, tmp_path / "out.dcm", SUBJECT)
        assert [finding.place for finding in found] == [f"({tag >> 16:04X},{tag & 0xFFFF:04X})"]


def test_an_exception_loosens_nothing_else(tmp_path: Path) -> None:
    own = recipe(tmp_path, rule(attribute="StudyID", action="keep", exception=REASON))
    planted = plant(tmp_path / "in.dcm")
    raw = (deidentified(own, planted.path), (tmp_path / "out.dcm").read_bytes())[1]
    kept = {tag for tag in own.rules if own.action(tag, CT) is Action.KEEP}
    assert {tag for tag, marker in planted.markers.items() if marker in raw} <= kept
    assert planted.markers[0x00200010] in raw


def test_explaining_names_the_rule_that_decided(tmp_path: Path) -> None:
    own = recipe(tmp_path, rule(attribute="StudyID", action="keep", exception=REASON))
    lines = [row.line for row in explain_file(own, source(tmp_path, StudyID="ST4711", PatientSex="F"))]
    assert [line for line in lines if "(0020,0010)" in line] == [
        f"(0020,0010) Study ID: keep [site rule 1: keep StudyID, exception: {REASON}]"
    ]
    assert not any("ST4711" in line for line in lines)


def test_the_workers_know_the_sites_rules(tmp_path: Path) -> None:
    own = recipe(tmp_path, rule(attribute="SoftwareVersions", action="remove"))
    src = source(tmp_path, SoftwareVersions="room 3")
    with DeidPool(DEFAULT, bytes(32), workers=1, fsync=False, site=own.site) as pool:
        (result,) = pool.run([DeidTask(src, tmp_path / "out.dcm", SUBJECT)])
    assert getattr(result, "recipe_sha256", result) == own.sha256
    assert "SoftwareVersions" not in dcmread(tmp_path / "out.dcm")


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    text = table.data_file("example-site.toml").read_text("utf-8")
    assert recipe(tmp_path, text, (*DEFAULT, "retain-safe-private")).exceptions == ()
    every = text.replace("# [[rule]]", "[[rule]]").replace("# attribute = ", "attribute = ")
    every = every.replace("# action = ", "action = ").replace("# exception = ", "exception = ")
    assert len(recipe(tmp_path, every, ("clean-descriptors", "retain-safe-private")).exceptions) == 1


def test_the_command_and_its_report_tell_the_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site.toml"
    site.write_text(rule(attribute="StudyID", action="keep", exception=REASON), "utf-8")
    monkeypatch.setenv("DICOMNODE__NODE__DATA_DIR", str(tmp_path / "var"))
    monkeypatch.setenv("DICOMNODE__DEID__SITE_RECIPE", str(site))
    (tmp_path / "in").mkdir()
    src = source(tmp_path / "in", StudyID="ST4711", PatientID="4711")
    report = tmp_path / "report.json"
    done = command("deid", src, "--out", tmp_path / "out", "--report", report)
    assert done.code == 0, done.err
    assert f"exception: {REASON}" in " ".join((done.out + done.err).split())
    assert json.loads(report.read_text("utf-8"))["site_exceptions"] == [
        f"site rule 1: keep StudyID, exception: {REASON}"
    ]
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert dcmread(written).StudyID == "ST4711"
    checked = command("config", "check")
    assert f"site rule 1: keep StudyID, exception: {REASON}" in " ".join(checked.out.split())
