"""``dicomnode deid`` stopped at any moment by a real SIGKILL or Ctrl-C: nothing half done is seen, and it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dicomnode.testing import sample_study, write_study

pytestmark = pytest.mark.integration

FILES = 160
WAIT_S = 240.0
FOLDER = ".dicomnode-deid"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings, inputs (folders, an archive, a copy, files that cannot pass) and what an undisturbed run makes."""
    place = tmp_path_factory.mktemp("kill")
    (place / "node.toml").write_text(f'[node]\ndata_dir = "{place / "var"}"\n[deid]\nworkers = 2\n')
    for n in range(8):
        write_study(sample_study(FILES // 10, seed=n, matrix=64, patient_id=f"P{n}"), place / "in" / f"s{n}")
    packed = write_study(sample_study(FILES // 5, seed=9, matrix=64, patient_id="P9"), place / "packed")
    with zipfile.ZipFile(place / "in" / "more.zip", "w") as archive:
        for file in packed:
            archive.write(file, f"study/{file.name}")
    (place / "in" / "s1" / "zz-copy.dcm").write_bytes(sorted((place / "in" / "s1").glob("*.dcm"))[0].read_bytes())
    (place / "in" / "s2" / "zz-note.txt").write_text("no DICOM")
    assert start(place, "whole").wait(WAIT_S) == 1  # the note is quarantined
    return place


def start(place: Path, out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dicomnode.cli", "deid", str(place / "in"), "--out", str(place / out)]
    command += ["--report", str(place / f"{out}.json"), "--config", str(place / "node.toml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def files_of(out: Path) -> dict[str, bytes]:
    """What a user sees: everything but the journal's folder."""
    seen = (p for p in out.rglob("*") if p.is_file() and FOLDER not in p.parts) if out.is_dir() else ()
    return {str(p.relative_to(out)): p.read_bytes() for p in seen}


def wait_until(run: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not there() and run.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


def report_of(place: Path, out: str) -> dict[str, object]:
    text = (place / f"{out}.json").read_text().replace(f"{place / out}/", "")
    return {**json.loads(text), "created": ""}


def assert_whole(place: Path, out: str) -> None:
    assert files_of(place / out) == files_of(place / "whole")
    assert report_of(place, out) == report_of(place, "whole")
    assert {p.name for p in (place / out / FOLDER).iterdir()} == {"journal.sqlite3", "lock"}
    assert [p for p in (place / "var" / "identified" / "unpacked").iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("written", [0, 1, 30, 100, FILES - 20])
def test_a_killed_run_leaves_whole_files_and_goes_on(place: Path, written: int) -> None:
    out = f"killed-{written}"
    run = start(place, out)
    begun = place / out / FOLDER / "staged"
    wait_until(run, lambda: begun.is_dir() if not written else len(list((place / out).glob("DN-*/*/*/*"))) >= written)
    run.kill()
    run.communicate()
    whole = files_of(place / "whole")
    left = files_of(place / out)
    assert left.items() <= whole.items()
    assert len(left) >= written
    assert not (place / f"{out}.json").exists()
    times = {name: (place / out / name).stat().st_mtime_ns for name in left}
    assert start(place, out).wait(WAIT_S) == 1
    assert_whole(place, out)
    assert {name: (place / out / name).stat().st_mtime_ns for name in left} == times


def test_killed_again_and_again_it_comes_to_its_end(place: Path) -> None:
    kills = 0
    while not (place / "often.json").exists():
        run = start(place, "often")
        before = len(files_of(place / "often"))
        wait_until(run, lambda before=before: len(files_of(place / "often")) >= before + 50)  # type: ignore[misc]
        if run.poll() is None:
            run.kill()
            kills += 1
        run.communicate()
        assert files_of(place / "often").items() <= files_of(place / "whole").items()
    assert kills >= 2
    assert_whole(place, "often")


def test_ctrl_c_says_how_far_it_came_and_the_same_command_goes_on(place: Path) -> None:
    run = start(place, "stopped")
    wait_until(run, lambda: len(files_of(place / "stopped")) >= 20)
    os.kill(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=WAIT_S)
    assert run.returncode == 130
    assert f"of {FILES + 2} files are done; no report was written; the same command goes on" in told
    assert "Traceback" not in told
    assert files_of(place / "stopped").items() <= files_of(place / "whole").items()
    assert start(place, "stopped").wait(WAIT_S) == 1
    assert_whole(place, "stopped")
