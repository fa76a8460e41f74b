"""Whether the viewer's bundle is built anew is told by its sources' contents, and its lock file names no host."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def built(hook, tmp_path) -> Path:
    """A checkout whose bundle was made from its sources."""
    source, bundle = tmp_path / "viewer", tmp_path / "dicomnode" / "web" / "viewer"
    (source / "src").mkdir(parents=True)
    (source / "test").mkdir()
    bundle.mkdir(parents=True)
    (source / "package.json").write_text("{}")
    (source / "src" / "main.ts").write_text("start();\n")
    (bundle / "index.html").write_text("<!doctype html>")
    (bundle / ".stamp").write_text(hook.sources_hash(source) + "\n")
    return tmp_path


def test_a_bundle_of_these_sources_is_current(hook, built):
    assert hook.is_current(built)


@pytest.mark.parametrize("change", ["edit", "add", "rename", "remove"])
def test_a_change_of_the_sources_makes_it_stale(hook, built, change):
    main = built / "viewer" / "src" / "main.ts"
    if change == "edit":
        main.write_text("stop();\n")
    elif change == "add":
        main.with_name("more.ts").write_text("")
    elif change == "rename":
        main.rename(main.with_name("begin.ts"))
    else:
        main.unlink()
    assert not hook.is_current(built)


def test_tests_installed_packages_and_line_endings_leave_it_current(hook, built):
    (built / "viewer" / "test" / "main.test.ts").write_text("test();")
    (built / "viewer" / "node_modules" / "vite").mkdir(parents=True)
    (built / "viewer" / "node_modules" / "vite" / "index.js").write_text("")
    (built / "viewer" / "src" / "main.ts").write_bytes(b"start();\r\n")
    assert hook.is_current(built)


@pytest.mark.parametrize("lost", ["index.html", ".stamp"])
def test_a_bundle_that_is_not_whole_is_built_anew(hook, built, lost):
    (built / "dicomnode" / "web" / "viewer" / lost).unlink()
    assert not hook.is_current(built)


def test_without_sources_the_bundle_that_is_there_is_taken(hook, built):
    (built / "viewer" / "package.json").unlink()
    (built / "dicomnode" / "web" / "viewer" / ".stamp").unlink()
    assert hook.is_current(built)


def test_nothing_is_built_when_the_environment_says_so(hook, built, monkeypatch):
    (built / "dicomnode" / "web" / "viewer" / "index.html").unlink()
    assert hook.wanted(built)
    monkeypatch.setenv("DICOMNODE_SKIP_VIEWER", "1")
    assert not hook.wanted(built)


def test_the_lock_file_names_no_host_and_has_a_hash_for_each_package():
    text = (ROOT / "viewer" / "package-lock.json").read_text("utf-8")
    packages = json.loads(text)["packages"]
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []
    hosts = set(re.findall(r"https?://([^/\"]+)", text))
    assert hosts <= {"github.com", "opencollective.com", "tidelift.com"}  # where packages ask for donations


def test_the_page_loads_at_most_150_kb_of_javascript():
    assets = sorted((ROOT / "dicomnode" / "web" / "viewer" / "assets").glob("*.js"))
    if not assets:
        pytest.skip("the viewer is not built (make viewer)")
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in assets) <= 150_000
