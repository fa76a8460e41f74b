"""The house stays simple to see: imports point one way, modules are short, folders are those of the design."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dicomnode"
ROOT = PACKAGE.parent
MAX_LINES = 500
EVERYONE = {"domain", "errors", "durable", "csvrows"}
EVERYTHING = {"*"}

# What each part may import besides domain, errors and telemetry's logging of its own (docs/architecture.md).
ALLOWED: dict[str, set[str]] = {
    "domain": set(),
    "errors": set(),
    "durable": set(),
    "csvrows": set(),
    "config": set(),
    "testing": EVERYTHING,
    "cli": EVERYTHING,
    "node": EVERYTHING,
    "serving": EVERYTHING,
    "doctor": EVERYTHING,
    "webside": EVERYTHING,
    "scp": {"archive", "config", "telemetry"},
    "scu": {"archive", "config"},
    "deid": {"config"},
    "models": {"config"},
    "index": {"archive"},
    "evaluation": {"models", "index"},
    "archive": {"config"},
    "report": set(),
    "clinical": {"deid", "archive"},
    "workflow": {"archive", "deid", "evaluation", "index", "models", "report", "scp", "telemetry", "clinical"},
    "web": {"archive", "index", "telemetry", "config"},
    "telemetry": set(),
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_parts(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "dicomnode":
                names = [f"dicomnode.{alias.name}" for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("dicomnode.") and n.count(".") >= 1}
    return found - {"__version__"}


def test_every_part_is_in_the_table_of_imports() -> None:
    parts = {part_of(p) for p in modules()} - {"__init__"}
    assert parts == set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    allowed = ALLOWED[part]
    if allowed == EVERYTHING:
        return
    wrong = imported_parts(path) - allowed - EVERYONE - {part}
    assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_LINES
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} does not say what it is for"


def test_a_receiver_starts_without_the_heavy_libraries() -> None:
    import subprocess
    import sys

    code = (
        "import sys, dicomnode.serving, dicomnode.scp.receiver\n"
        "print([m for m in ('torch', 'highdicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_no_error_is_swallowed() -> None:
    swallowed = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(n, ast.Pass) for n in node.body)
    ]
    assert swallowed == []
