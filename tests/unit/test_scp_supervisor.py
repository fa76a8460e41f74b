"""The supervisor and a real receiver under it: restarts, orderly ends, and no child left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from dicomnode.config import Dicom
from dicomnode.errors import SettingsError
from dicomnode.scp.receiver import ReceiverOptions
from dicomnode.scp.server import bind_listener
from dicomnode.scp.supervisor import ChildSpec, Supervisor, python_module
from dicomnode.telemetry.heartbeat import read_beats

SLEEPER = [
    sys.executable,
    "-c",
    "import sys, time, dicomnode.scp.supervisor as s; s.watch_parent(int(sys.argv[-1]), grace_s=1); time.sleep(60)",
]


def wait_until(condition, seconds: float = 15.0):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
    return result


@pytest.fixture
def supervised():
    started = []

    def start(*specs: ChildSpec, grace_s: float = 5) -> Supervisor:
        supervisor = Supervisor(specs, grace_s=grace_s)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        started.append((supervisor, thread))
        return supervisor

    yield start
    for supervisor, thread in started:
        supervisor.request_stop()
        thread.join(20)
        assert not thread.is_alive()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_is_killed_is_started_again(supervised):
    supervisor = supervised(ChildSpec("sleeper", SLEEPER))
    first = wait_until(lambda: supervisor.pids().get("sleeper"))
    os.kill(first, signal.SIGKILL)
    second = wait_until(lambda: (pid := supervisor.pids().get("sleeper")) != first and pid)
    assert second != first


def test_a_child_that_cannot_live_is_tried_less_and_less_often(supervised, tmp_path):
    counter = tmp_path / "starts"
    supervised(
        ChildSpec(
            "broken", [sys.executable, "-S", "-c", f"open({str(counter)!r}, 'a').write('x'); raise SystemExit(3)"]
        )
    )
    time.sleep(2.5)
    assert 2 <= len(counter.read_text()) <= 4  # at 0, 0.5, 1.5, 3.5 s


def test_the_environment_is_added_to_ours(supervised, tmp_path):
    out = tmp_path / "out"
    code = f"import os, time; open({str(out)!r}, 'w').write(os.environ['EXTRA'] + os.environ['PATH']); time.sleep(60)"
    supervised(ChildSpec("env", [sys.executable, "-S", "-c", code], env={"EXTRA": "yes:"}))
    wait_until(lambda: out.exists() and out.read_text())
    assert out.read_text() == "yes:" + os.environ["PATH"]


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(supervised, tmp_path):
    ready = tmp_path / "ready"
    code = (
        f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(60)"
    )
    supervisor = supervised(ChildSpec("deaf", [sys.executable, "-S", "-c", code]), grace_s=0.5)
    pid = wait_until(lambda: ready.exists() and supervisor.pids().get("deaf"))
    supervisor.request_stop()
    wait_until(lambda: not alive(pid), 5)


def test_children_end_when_the_supervisor_is_killed():
    code = (
        "import sys; from dicomnode.scp.supervisor import ChildSpec, Supervisor;"
        f"s = Supervisor([ChildSpec(str(i), {SLEEPER!r}) for i in range(2)]);"
        "import threading; threading.Thread(target=s.run, daemon=True).start();"
        "import time\nwhile len(s.pids()) < 2: time.sleep(0.05)\n"
        "time.sleep(1.0); print('PIDS', *s.pids().values(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    line = next(line for line in parent.stdout if line.startswith("PIDS"))  # the supervisor logs there too
    pids = [int(p) for p in line.split()[1:]]
    assert len(pids) == 2
    assert all(alive(p) for p in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(alive(p) for p in pids), 10)


def options(tmp_path: Path, name: str = "receiver-0") -> ReceiverOptions:
    return ReceiverOptions(name, tmp_path / "identified", tmp_path / "runtime", Dicom(), ("2.25.1",), 0, 3.0)


def echo(port: int) -> bool:
    ae = AE(ae_title="PACS")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 10
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", port, ae_title="DICOMNODE")
    if not assoc.is_established:
        return False
    status = assoc.send_c_echo()
    assoc.release()
    return status.get("Status") == 0


def test_a_receiver_killed_under_the_supervisor_loses_no_waiting_connection(supervised, tmp_path):
    listener = bind_listener("127.0.0.1", 0)
    port, fd = listener.getsockname()[1], listener.fileno()
    argv = python_module("dicomnode.scp.receiver", "--fd", str(fd), "--options", options(tmp_path).to_json())
    supervisor = supervised(ChildSpec("receiver-0", argv, pass_fds=[fd]))
    beats = lambda: [b for b in read_beats(tmp_path / "runtime").values() if b.live_and_ready]  # noqa: E731
    (beat,) = wait_until(beats)
    assert (beat.name, beat.pid) == ("receiver-0", supervisor.pids()["receiver-0"])
    assert echo(port)
    os.kill(beat.pid, signal.SIGKILL)
    wait_until(lambda: not beats())
    assert echo(port)  # waits in the socket's queue until the next receiver takes it
    wait_until(lambda: beats() and beats()[0].pid != beat.pid)
    supervisor.request_stop()
    wait_until(lambda: read_beats(tmp_path / "runtime") == {})
    listener.close()


def test_a_receiver_ends_on_sigterm_with_exit_code_0_and_nothing_on_stderr_but_logs(tmp_path):
    listener = bind_listener("127.0.0.1", 0)
    argv = python_module(
        "dicomnode.scp.receiver", "--fd", str(listener.fileno()), "--options", options(tmp_path).to_json()
    )
    process = subprocess.Popen(argv, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(b.live_and_ready for b in read_beats(tmp_path / "runtime").values()))
    process.terminate()
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "Traceback" not in errors
    listener.close()


def test_a_receiver_loads_neither_torch_nor_highdicom():
    code = "import sys, dicomnode.scp.receiver; print([m for m in ('torch', 'highdicom', 'dbos') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_receiver_options_survive_their_journey(tmp_path):
    before = options(tmp_path)
    assert ReceiverOptions.from_json(before.to_json()) == before
    assert before.server().max_associations == 32  # 64 over 2 receivers
    with pytest.raises(SettingsError):
        ReceiverOptions.from_json("{}")
