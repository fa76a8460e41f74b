"""Signs of life: fresh and alive is ready; stale, dead or damaged is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from dicomnode.telemetry.heartbeat import STALE_S, beat, clear_beat, read_beats


def test_a_process_that_beats_is_live_and_ready(tmp_path):
    beat(tmp_path / "runtime", "receiver-0", state="serving", ready=True, detail={"associations": 3})
    (found,) = read_beats(tmp_path / "runtime").values()
    assert found.live_and_ready
    assert (found.name, found.state, found.detail) == ("receiver-0", "serving", {"associations": 3})
    beat(tmp_path / "runtime", "receiver-0", state="stopping", ready=False)
    assert not read_beats(tmp_path / "runtime")["receiver-0"].live_and_ready


def test_a_dead_process_is_not_alive_even_before_its_parent_has_noticed(tmp_path):
    code = (
        "import sys, pathlib; from dicomnode.telemetry.heartbeat import beat;"
        "beat(pathlib.Path(sys.argv[1]), 'w', state='x', ready=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while child.poll() is None and not read_beats(tmp_path):
        pass
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # leaves it a zombie, as a busy supervisor does
    assert not read_beats(tmp_path)["w"].alive
    child.wait()
    assert not read_beats(tmp_path)["w"].alive


def test_a_beat_that_is_not_refreshed_goes_stale(tmp_path):
    beat(tmp_path, "worker", state="running", ready=True)
    path = tmp_path / "worker.json"
    for age in (STALE_S + 1, -1000):  # too old; or from before a reboot, when the clock began again
        record = json.loads(path.read_text())
        record["monotonic"] -= age
        path.write_text(json.dumps(record))
        assert not read_beats(tmp_path)["worker"].alive
        record["monotonic"] += age
        path.write_text(json.dumps(record))
    assert read_beats(tmp_path)["worker"].alive


def test_a_damaged_file_is_a_process_that_is_not_ready(tmp_path):
    for number, text in enumerate(("", "{", "[]", '{"pid": "x"}')):
        (tmp_path / f"bad-{number}.json").write_text(text)
    beats = read_beats(tmp_path)
    assert len(beats) == 4
    assert not any(b.live_and_ready for b in beats.values())


def test_an_orderly_end_takes_the_sign_away(tmp_path):
    beat(tmp_path, "web", state="serving", ready=True)
    clear_beat(tmp_path, "web")
    clear_beat(tmp_path, "web")
    assert read_beats(tmp_path) == {}
    assert read_beats(tmp_path / "never") == {}
