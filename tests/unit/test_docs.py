"""The documentation cannot drift: what exists is documented, what is named exists, written pages are current."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.cli.reference import as_markdown, commands
from dicomnode.config import Settings
from dicomnode.domain import VerdictKind
from dicomnode.report.codes import ENGLISH
from dicomnode.telemetry.audit import EVENTS, AuditEvent
from dicomnode.telemetry.logging import KEYS
from dicomnode.telemetry.metrics import METRICS, QUARANTINE_REASONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "config" / "packs" / "cenet-xception" / "card.md"])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
# Codes of errors that become reasons where "index add" or a step meets them (errors.py).
CODES_AS_REASONS = {"deid", "input"}
LEVELS = {"debug", "info", "warning", "error", "exception"}


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def source() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted((ROOT / "dicomnode").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            yield path, node


def literal(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def reasons() -> set[str]:
    """Every reason that the code gives to ``QuarantineError`` or ``Quarantine.hold``, as a literal."""
    found = set()
    for _, node in source():
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ("QuarantineError", "hold") and (reason := literal(node.args[0])) is not None:
                found.add(reason)
    return found


def documented_reasons() -> set[str]:
    rows = [line for line in page("quarantine.md").splitlines() if line.startswith("| `")]
    return {reason for row in rows for reason in re.findall(r"`([a-z-]+)`", row.split("|")[1])}


class TestGeneratedPages:
    def test_the_page_of_commands_is_current(self):
        assert page("commands.md") == as_markdown(), "make docs"

    def test_the_page_of_metrics_is_current(self):
        done = subprocess.run([sys.executable, "-m", "dicomnode.telemetry"], capture_output=True, text=True, cwd=ROOT)
        assert page("metrics.md") == done.stdout, "make docs"

    def test_make_docs_writes_every_such_page(self):
        recipe = (ROOT / "Makefile").read_text().split("docs: install")[1].split("\n\n")[0]
        written = set(re.findall(r"> docs/(\S+)", recipe))
        said = {p.name for p in DOCS.glob("*.md") if "written by `make docs`" in p.read_text("utf-8")}
        assert written == said


class TestEverythingIsDocumented:
    def test_every_setting(self):
        sections = page("settings.md").split("\n## [")
        for name, field in Settings.model_fields.items():
            (section,) = [s for s in sections if s.startswith(f"{name}]")]
            for key in field.annotation.model_fields:
                assert f"`{key}`" in section or f"`[[{key}]] " in section, f"[{name}] {key}"

    def test_every_command_with_each_of_its_options(self):
        text = page("commands.md")
        found = dict(commands())
        assert len(found) > 15
        for words, command in found.items():
            section = text.split(f"## {words}\n")[1].split("\n## ")[0]
            for parameter in command.params:
                if parameter.param_type_name == "option" and parameter.name not in ("config", "help"):
                    assert parameter.opts[0] in section, f"{words} {parameter.opts[0]}"

    def test_every_metric(self):
        for metric in METRICS:
            assert f"`{metric.name}`" in page("metrics.md")

    def test_every_audit_event(self):
        assert set(EVENTS) == set(AuditEvent)
        for event in AuditEvent:
            assert f"`{event.value}`" in page("metrics.md")

    def test_every_key_that_is_logged(self):
        logged: dict[str, str] = {}
        for path, node in source():
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and getattr(node.func.value, "id", "") in ("log", "_log")
            ):
                logged |= {
                    k.arg: f"{path.name}:{node.lineno}" for k in node.keywords if k.arg not in (None, "exc_info")
                }
        assert logged
        assert {key: place for key, place in logged.items() if key not in KEYS} == {}
        for key in KEYS:
            assert f"| `{key}` |" in page("metrics.md")

    def test_every_verdict_and_caution_as_it_is_worded(self):
        said = " ".join(page("for-radiologists.md").split())
        assert [kind for kind in VerdictKind if f"| `{kind.value}` |" not in said] == []
        for sentence, values in (
            (ENGLISH.other_modality, {"modality": "MR"}),
            (ENGLISH.untaught, {"taught": "CT (chest)", "shows": "MR (head)"}),
        ):
            assert f'"{sentence.format(**values).rstrip(".")}"' in said

    def test_every_reason_of_the_quarantine(self):
        given = reasons() | CODES_AS_REASONS
        assert {"burned-in", "mixed-patients", "audit", "not-searchable"} <= given
        assert given - documented_reasons() == set(), "docs/quarantine.md"
        assert given - set(QUARANTINE_REASONS) == set(), "telemetry/metrics.py counts it as other"

    def test_no_reason_that_nothing_gives(self):
        given = reasons() | CODES_AS_REASONS
        assert documented_reasons() - given == set()
        assert set(QUARANTINE_REASONS) - given == set()


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


class TestLinks:
    @pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
    def test_every_link_leads_somewhere(self, path):
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        for match in LINK.finditer(text):
            target, _, anchor = (match[1] or match[2]).partition("#")
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path.name}: {target}"
            if anchor and file.suffix == ".md":
                assert anchor in anchors(file.read_text("utf-8")), f"{path.name}: {target}#{anchor}"

    def test_the_table_of_the_readme_names_files_that_exist(self):
        table = (ROOT / "README.md").read_text("utf-8").split("## Need")[1]
        named = [f for row in re.findall(r"^\|.*\|$", table, re.MULTILINE) for f in re.findall(r"`([\w/.-]+)`", row)]
        files = [f for f in named if f.startswith(("dicomnode/", "docs/", "config/", "tests/", "benchmarks/"))]
        assert len(files) >= 3
        assert [f for f in files if not (ROOT / f).exists()] == []

    def test_every_command_and_target_that_the_pages_name_exists(self):
        known = {tuple(words.split()[1:]) for words, _ in commands()}
        groups = {words[:1] for words in known if len(words) > 1}
        targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for path in PAGES:
            text = path.read_text("utf-8")
            for first, second in re.findall(r"[`\s]dicomnode ([a-z]+)(?: ([a-z]+))?(?=[\s`])", text):
                if (first,) in groups:
                    assert not second or (first, second) in known, f"{path.name}: dicomnode {first} {second}"
            for target in re.findall(r"`make ([a-z-]+)", text):
                assert target in targets, f"{path.name}: make {target}"


def texts() -> Iterator[Path]:
    """Every text file of the project."""
    folders = ("dicomnode", "docs", "config", "scripts", "tests", "benchmarks", ".ci")
    inside = [p for f in folders for p in (ROOT / f).rglob("*") if "__pycache__" not in p.parts]
    for path in [*inside, *ROOT.glob("*"), *ROOT.glob(".*")]:
        binary = path.suffix in (".safetensors", ".onnx", ".png", ".webp", ".pyc") or path.name == Path(__file__).name
        if path.is_file() and not binary:
            yield path


# Where the work is done and by whom is no part of the project; nor is where packages come from.
FORBIDDEN = re.compile(
    r"/work/|/farm/|/home/\w|\bclaude\b|\banthropic\b|\bchatgpt\b|\b(coding|ai) (agent|assistant)s?\b"
    r"|\b(this|another|other|next|previous) (agent|session)\b|pypi\.org|pythonhosted|registry\.npmjs|\bissue #?\d",
    re.IGNORECASE,
)


def test_the_texts_of_the_project_speak_of_the_project_alone():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in texts()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if (match := FORBIDDEN.search(line))
    ]
    assert found == []


def test_no_place_is_left_to_be_filled_in():
    marker = re.compile(r"\b(TODO|FIXME|XXX|TBD|lorem ipsum)\b")
    found = [str(p.relative_to(ROOT)) for p in texts() if marker.search(p.read_text("utf-8"))]
    assert found == []


def test_commands_of_dcmtk_that_pynetdicom_shadows_are_called_by_full_path():
    shadowed = re.compile(r"^    (?:findscu|storescu|storescp|echoscu) -", re.MULTILINE)
    assert [p.name for p in PAGES if shadowed.search(p.read_text("utf-8"))] == []
    remark = re.search(r"\(The `\.venv` also holds [^)]*\)", (ROOT / "README.md").read_text("utf-8"))
    assert remark
    assert set(re.findall(r"`(\w+sc[up])`", remark[0])) == {"storescu", "storescp", "findscu", "echoscu"}
