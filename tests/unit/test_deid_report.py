"""Reports of ``dicomnode deid``: the same facts in three forms, no value of any object, nothing that runs."""

from __future__ import annotations

import csv
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dicomnode import __version__
from dicomnode.deid.changes import WORDS, changes_of
from dicomnode.deid.engine import Deidentifier
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.recipe import compile_recipe
from dicomnode.domain import Pseudonym
from dicomnode.testing import sample_study, write_study
from dicomnode.workflow.batch.choices import ReportPaths
from dicomnode.workflow.batch.explain import departures
from dicomnode.workflow.batch.page import MEANINGS
from dicomnode.workflow.batch.report import CSV_COLUMNS, Report, write_report
from dicomnode.workflow.deidentify import Request, deidentified

SECRET = "SECRET"


@pytest.fixture
def reported(node, tmp_path):
    """Reports of one run in every form and under both ways to name inputs."""
    folder = tmp_path / "in"
    study = sample_study(2, matrix=64, patient_id=f"{SECRET}-1", name=f"{SECRET}^Jane", StudyDescription=f"CT {SECRET}")
    write_study(study, folder / f"{SECRET} <b>Jane</b>")
    (folder / "=cmd|calc").write_text("no DICOM")
    with deidentified(node.deid_context, Request([folder], tmp_path / "out")) as run:
        for paths in ReportPaths:
            for form in ("json", "csv", "html"):
                write_report(Report(run, paths), tmp_path / f"{paths}.{form}")
    return tmp_path


def test_the_json_has_what_an_auditor_asks_for(node, reported):
    data = json.loads((reported / "hashed.json").read_text())
    assert data["version"] == __version__
    assert data["recipe"] == node.recipe.sha256
    assert data["settings"] == {"pixels": "mask", "ocr_sample": 0.0, "faces": "flag"}
    assert data["options"] == sorted(node.settings.deid.options)
    assert data["quarantine"] == {"not-dicom": 1}
    assert data["changes"]["PatientName"] == {"replaced": 2}
    assert data["changes"]["StudyDescription"] == {"cleaned": 2}
    assert data["changes"]["PatientIdentityRemoved"] == {"added": 2}
    assert set(data["actions"]) == set(WORDS)
    assert data["actions"]["shifted"] == sum(words.get("shifted", 0) for words in data["changes"].values()) > 0
    assert "PatientSex" in data["exceptions"]["retain-patient-characteristics"]
    assert data["pixels"] == {"masked": 0, "examined": 0, "not-examined": 2}  # CT as acquired


def test_the_page_of_documentation_names_every_key(reported):
    page = (Path(__file__).parents[2] / "docs" / "deid.md").read_text("utf-8")
    line = next(line for line in page.splitlines() if line.startswith("| anything else | JSON"))
    assert [key for key in json.loads((reported / "hashed.json").read_text()) if f"`{key}`" not in line] == []


def test_the_table_has_the_same_figures_and_no_formula(reported):
    data = json.loads((reported / "relative.json").read_text())
    with (reported / "relative.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    files = [row for row in rows if row["record"] == "file"]
    assert [row["status"] for row in files] == [row["status"] for row in data["files"]]
    assert {row["name"]: int(row["count"]) for row in rows if row["record"] == "count"} == data["counts"]
    assert {row["name"]: int(row["count"]) for row in rows if row["record"] == "action"} == data["actions"]
    assert {row["name"]: int(row["count"]) for row in rows if row["record"] == "pixels"} == data["pixels"]
    changes = {(r["name"], r["status"]): int(r["count"]) for r in rows if r["record"] == "change"}
    assert changes == {(k, word): n for k, words in data["changes"].items() for word, n in words.items()}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@"))]
    assert "'=cmd|calc" in [row["input"] for row in files]


class _Page(HTMLParser):
    """Tags of a page, and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]


def test_the_page_is_self_contained_without_script_and_escapes_names(reported):
    for paths in ReportPaths:
        text = (reported / f"{paths}.html").read_text()
        page = _Page()
        page.feed(text)
        assert page.tags & {"script", "img", "link", "iframe", "object", "form", "b"} == {"b"}
        assert page.loaded == []
        assert "<b>Jane" not in text
        assert "2 of 3 files passed de-identification and audit; 1 was held back." in text
    assert "&lt;b&gt;" not in (reported / "hashed.html").read_text()  # no name at all
    assert "=cmd|calc" in (reported / "relative.html").read_text()


def test_hashed_reports_name_nobody_and_others_are_for_their_owner(reported):
    for form in ("json", "csv", "html"):
        text = (reported / f"hashed.{form}").read_text()
        assert SECRET not in text
        assert "Jane" not in text
        assert "cmd" not in text
        assert stat.S_IMODE((reported / f"relative.{form}").stat().st_mode) == 0o600
    assert SECRET in (reported / "relative.json").read_text()


def test_a_report_that_cannot_be_written_leaves_nothing_behind(node, reported):
    target = reported / "taken.json"
    target.mkdir()
    with deidentified(node.deid_context, Request([reported / "in"], reported / "out")) as run, pytest.raises(OSError):
        write_report(Report(run), target)
    assert list(reported.glob(".report-*")) == []


def test_every_reason_has_its_meaning_on_the_page():
    page = re.findall(r"QuarantineError\(\s*\"([a-z-]+)\"", _sources())
    assert set(page) - {"failed", "mixed-patients", "not-searchable"} <= set(MEANINGS)


def _sources() -> str:
    from pathlib import Path

    import dicomnode

    root = Path(dicomnode.__file__).parent
    return "".join(p.read_text("utf-8") for part in ("deid", "workflow") for p in (root / part).rglob("*.py"))


def test_changes_are_what_happened_to_the_file(tmp_path):
    recipe = compile_recipe("basic", ("retain-patient-characteristics",))
    (ds,) = sample_study(1, matrix=32, PatientSex="F", StudyDescription="CT CHEST", ReferringPhysicianName="A^B")
    ds.private_block(0x0099, "SECRET", create=True).add_new(1, "LO", "x")
    (source,) = write_study([ds], tmp_path)
    Deidentifier(recipe, bytes(32)).deidentify(source, tmp_path / "out.dcm", Subject(Pseudonym("DN-ABCDEFGH23"), -5))
    changes = changes_of(source, tmp_path / "out.dcm", recipe)
    assert changes["(private)"] == {"removed": 2}
    assert changes["PatientID"] == changes["SOPInstanceUID"] == {"replaced": 1}
    assert changes["ReferringPhysicianName"] == {"emptied": 1}
    assert changes["StudyDescription"] == {"removed": 1}
    assert changes["PatientSex"] == {"kept": 1}
    assert "Rows" not in changes


def test_departures_are_none_without_options():
    basic = compile_recipe("basic", ())
    assert departures(basic, basic) == {}
