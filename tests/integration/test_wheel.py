"""The wheel alone, in an empty environment and an empty folder, is a node: everything it needs is inside."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.testing import Workstation, free_port, sample_study, write_study

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
READY_S = 120.0
STOP_S = 30.0
INSIDE = (
    "dicomnode/_config/dicomnode.toml",
    "dicomnode/_config/deid/e1-1.csv",
    "dicomnode/_config/deid/iod-types.json",
    "dicomnode/_config/deid/vocabulary.txt",
    "dicomnode/_config/deid/everyday-es.txt",
    "dicomnode/_config/packs/cenet-xception/manifest.json",
    "dicomnode/_config/packs/cenet-xception/weights.safetensors",
    "dicomnode/_config/packs/cenet-xception/golden.safetensors",
    "dicomnode/_config/packs/cenet-xception/card.md",
    "dicomnode/_config/packs/cenet-xception/fast.onnx",
    "dicomnode/models/gate.safetensors",
    "dicomnode/archive/migrations/env.py",
    "dicomnode/archive/migrations/versions/0001_first_tables.py",
    "dicomnode/web/templates/answer.html",
    "dicomnode/web/static/page.css",
    "dicomnode/web/viewer/index.html",
)
MAX_BYTES = 30_000_000  # the pack may have 27 MB
JAVASCRIPT_BYTES = 150_000  # gzip


def environment(**more: str) -> dict[str, str]:
    """Ours, without anything that points at the checkout or at settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DICOMNODE", "PYTHON", "VIRTUAL_ENV"))}
    return {**kept, **more}


def call(*arguments: str | Path, cwd: Path, **more: str) -> str:
    done = subprocess.run(
        [str(a) for a in arguments], cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Scripts of a new environment with the wheel; libraries are lent by the one that runs the tests."""
    folder = tmp_path_factory.mktemp("venv")
    call(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    own = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "lent.pth").write_text("\n".join(sorted(libraries)) + "\n")  # .pth files there are not followed
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-installed", wheel]
    call(*install, cwd=folder)
    where = call(python, "-c", "import dicomnode; print(dicomnode.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(own), "the checkout was imported, not the wheel"
    return folder / "bin"


@pytest.fixture
def empty(tmp_path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_wheel_holds_pack_recipe_templates_migrations_and_settings(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert [name for name in INSIDE if name not in names] == []
    assert [name for name in names if name.startswith(("tests", "benchmarks", "docs"))] == []
    assert wheel.stat().st_size < MAX_BYTES


def test_the_wheel_holds_the_viewer_and_each_file_its_page_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        page = archive.read("dicomnode/web/viewer/index.html").decode()
    asked = re.findall(r'(?:src|href)="/v/([^"]+)"', page)
    assert [name for name in asked if f"dicomnode/web/viewer/{name}" not in names] == []
    assert {Path(name).suffix for name in asked} >= {".js", ".css"}
    assert [n for n in names if n.startswith("dicomnode/web/viewer/assets/worker-")] != []
    assert "<style" not in page
    assert re.findall(r"<script(?![^>]*src=)", page) == []


def test_the_viewers_javascript_in_the_wheel_is_small(wheel):
    with zipfile.ZipFile(wheel) as archive:
        scripts = [n for n in archive.namelist() if n.startswith("dicomnode/web/viewer/") and n.endswith(".js")]
        size = sum(len(gzip.compress(archive.read(n), 9)) for n in scripts)
    assert scripts
    assert size <= JAVASCRIPT_BYTES


@pytest.fixture
def served(installed, empty) -> Iterator[tuple[int, int, subprocess.Popen[bytes]]]:
    """(DICOM port, web port, process) of ``dicomnode serve`` without any configuration."""
    dicom, web = free_port(), free_port()
    ports = {"DICOMNODE__DICOM__PORT": str(dicom), "DICOMNODE__WEB__PORT": str(web)}
    log = empty.parent / "node.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [installed / "dicomnode", "serve"], cwd=empty, env=environment(**ports), stdout=out, stderr=out
        )
    try:
        began = time.monotonic()
        while not ready(web):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - began < READY_S, log.read_text()
            time.sleep(0.2)
        yield dicom, web, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.HTTPError, OSError):
        return False


def test_served_without_configuration_in_an_empty_folder_it_is_ready_and_stops_when_told(served, empty):
    dicom, web, process = served
    assert Workstation("PACS").echo("127.0.0.1", dicom) == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{web}/metrics", timeout=5) as answer:
        assert b"dicomnode_index_vectors" in answer.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_S) == 0
    assert [p.name for p in empty.iterdir()] == ["var"]


def test_its_commands_find_what_is_inside(installed, empty):
    command = installed / "dicomnode"
    (file,) = write_study(sample_study(1, matrix=64), empty.parent / "study")
    assert "defaults" in call(command, "config", "check", cwd=empty)
    assert "cenet-xception" in call(command, "models", "verify", cwd=empty)
    assert "Patient's Name" in call(command, "deid", "--explain", file, cwd=empty)
    call(command, "index", "add", file, cwd=empty)
    assert '"vectors": 1' in call(command, "index", "status", "--json", cwd=empty)
