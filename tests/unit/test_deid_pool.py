"""The pool: outcomes in order, errors as values, and a dying worker costs nobody else's file."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from planted import base_ct, plant
from pydicom import dcmread

from dicomnode.deid.interrupts import interrupts_held
from dicomnode.deid.pool import AHEAD, DeidPool, DeidTask
from dicomnode.deid.pseudonym import Subject
from dicomnode.deid.result import DeidResult
from dicomnode.domain import Pseudonym
from dicomnode.errors import DeidError, QuarantineError, SettingsError

KEY = b"k" * 32
SUBJECT = Subject(Pseudonym("DN-ABCDEFGH23"), -100)


def tasks(tmp_path: Path, count: int) -> list[DeidTask]:
    src = plant(tmp_path / "in.dcm", tags=[0x00100010, 0x00100020]).path
    return [DeidTask(src, tmp_path / "out" / f"{number}.dcm", SUBJECT) for number in range(count)]


def test_outcomes_come_in_order_and_files_exist_where_they_are_good(tmp_path: Path) -> None:
    work = tasks(tmp_path, 4)
    (tmp_path / "junk.dcm").write_bytes(b"junk")
    work[1] = DeidTask(tmp_path / "junk.dcm", tmp_path / "out" / "1.dcm", SUBJECT)
    work[2] = DeidTask(tmp_path / "absent.dcm", tmp_path / "out" / "2.dcm", SUBJECT)
    with DeidPool([], KEY, workers=2, fsync=False) as pool:
        outcomes = pool.run(work)
    assert isinstance(outcomes[0], DeidResult)
    assert isinstance(outcomes[3], DeidResult)
    assert isinstance(outcomes[1], QuarantineError)
    assert (outcomes[1].reason, outcomes[1].advice) == ("not-dicom", "nothing to de-identify")
    assert isinstance(outcomes[2], DeidError)
    assert "absent" not in str(outcomes[2])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.dcm", "3.dcm"]
    assert outcomes[0].dst == work[0].dst


def test_what_the_audit_refuses_leaves_no_file(tmp_path: Path) -> None:
    ds = base_ct()
    ds.PatientName = ds.SoftwareVersions = "Kowalski^Anna"
    ds.file_meta = dcmread(plant(tmp_path / "in.dcm", tags=[]).path).file_meta
    ds.save_as(tmp_path / "in.dcm", enforce_file_format=True)
    with DeidPool([], KEY, workers=1, fsync=False) as pool:
        (outcome,) = pool.run([DeidTask(tmp_path / "in.dcm", tmp_path / "out" / "0.dcm", SUBJECT)])
    assert isinstance(outcome, QuarantineError)
    assert outcome.reason == "audit"
    assert list((tmp_path / "out").iterdir()) == []


def test_workers_are_replaced_after_their_share(tmp_path: Path) -> None:
    with DeidPool([], KEY, workers=1, fsync=False, files_per_worker=2) as pool:
        assert all(isinstance(outcome, DeidResult) for outcome in pool.run(tasks(tmp_path, 5)))


def test_a_bad_option_is_refused_before_any_worker_starts() -> None:
    with pytest.raises(SettingsError):
        DeidPool(["clean-graphics"], KEY)


def _descendants() -> set[int]:
    """Processes below this one: the fork server and the workers it made."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, pending = set(), [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        found.update(below)
        pending.extend(below)
    return found


def test_a_killed_worker_costs_no_file(tmp_path: Path) -> None:
    work = tasks(tmp_path, 120)
    with DeidPool([], KEY, workers=1, fsync=False) as pool:
        before = _descendants()
        pool.run(work[:1])
        workers = _descendants() - before
        server = multiprocessing.forkserver._forkserver._forkserver_pid
        victims = [pid for pid in workers if pid != server and _is_worker(pid, server)]
        assert len(victims) == 1

        def kill() -> None:
            time.sleep(0.1)
            os.kill(victims[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        outcomes = pool.run(work)
        thread.join()
    assert all(isinstance(outcome, DeidResult) for outcome in outcomes)


class TestStream:
    """Tasks in as workers become free, outcomes out in order."""

    def test_outcomes_come_in_order_with_details_and_tasks_are_taken_as_needed(self, tmp_path: Path) -> None:
        taken = []

        def source() -> Iterator[DeidTask]:
            for number, task in enumerate(tasks(tmp_path, 60)):
                taken.append(number)
                yield replace(task, detailed=True)

        with DeidPool([], KEY, workers=1, fsync=False) as pool, contextlib.closing(pool.stream(source())) as stream:
            for number, (task, outcome) in enumerate(stream):
                assert task.dst.name == f"{number}.dcm"
                assert isinstance(outcome, DeidResult)
                assert outcome.sha256 == hashlib.sha256(task.dst.read_bytes()).hexdigest()
                assert set(outcome.changes["PatientName"]) == {"replaced"}
                assert len(taken) <= number + 1 + AHEAD
        assert len(taken) == 60

    def test_workers_are_replaced_after_their_share(self, tmp_path: Path) -> None:
        seen = set()
        with DeidPool([], KEY, workers=1, fsync=False, files_per_worker=3) as pool:
            for _, outcome in pool.stream(tasks(tmp_path, 7)):
                assert isinstance(outcome, DeidResult)
                seen.add(pool._executor)  # itself: the address of one that is gone is given again
        assert len(seen) >= 2

    def test_a_worker_that_is_killed_costs_no_file(self, tmp_path: Path) -> None:
        outcomes = []
        with DeidPool([], KEY, workers=1, fsync=False) as pool:
            for number, (task, outcome) in enumerate(pool.stream(tasks(tmp_path, 40))):
                outcomes.append((task.dst.name, isinstance(outcome, DeidResult)))
                if number == 5:
                    assert pool._executor is not None
                    for pid in pool._executor._processes:
                        os.kill(pid, signal.SIGKILL)
        assert outcomes == [(f"{number}.dcm", True) for number in range(40)]

    def test_a_file_that_kills_every_worker_is_given_up_and_the_others_go_on(self, tmp_path: Path) -> None:
        work = tasks(tmp_path, 5)
        work[2] = DeidTask(_Deadly(tmp_path / "in.dcm"), tmp_path / "out" / "x.dcm", SUBJECT)  # type: ignore[arg-type]
        with DeidPool([], KEY, workers=1, fsync=False) as pool:
            outcomes = [outcome for _, outcome in pool.stream(work)]
        assert [isinstance(outcome, DeidResult) for outcome in outcomes] == [True, True, False, True, True]
        assert "twice" in str(outcomes[2])

    def test_what_is_closed_early_leaves_a_pool_that_works(self, tmp_path: Path) -> None:
        work = tasks(tmp_path, 20)
        with DeidPool([], KEY, workers=1, fsync=False) as pool:
            with contextlib.closing(pool.stream(work)) as stream:
                next(stream)
            assert all(isinstance(outcome, DeidResult) for _, outcome in pool.stream(work[:2]))


def _is_worker(pid: int, server: int) -> bool:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) == server


def test_a_file_that_kills_every_worker_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    deadly = DeidTask(_Deadly(tmp_path / "in.dcm"), tmp_path / "out" / "x.dcm", SUBJECT)  # type: ignore[arg-type]
    work = tasks(tmp_path, 3)
    with DeidPool([], KEY, workers=1, fsync=False) as pool:
        outcomes = pool.run([work[0], deadly, work[1], work[2]])
    assert isinstance(outcomes[1], DeidError)
    assert "twice" in str(outcomes[1])
    assert [isinstance(outcomes[number], DeidResult) for number in (0, 2, 3)] == [True, True, True]


class _Deadly:
    """A path that ends the process with a segmentation fault when it is opened, as a broken decoder would."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, mode: str) -> object:
        ctypes.string_at(0)
        return self._path.open(mode)


OWNER = """
import os, sys, time
from pathlib import Path
from dicomnode.deid.pool import DeidPool, DeidTask
from dicomnode.deid.pseudonym import Subject
from dicomnode.domain import Pseudonym

if __name__ == "__main__":
    src, dst = map(Path, sys.argv[1:])
    pool = DeidPool([], bytes(32), workers=2, fsync=False)
    pool.run([DeidTask(src, dst, Subject(Pseudonym("DN-ABCDEFGH23"), -100))])
    print(*[process.pid for process in pool._executor._processes.values()], flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_pool_whose_owner_was_killed(tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    (task,) = tasks(tmp_path, 1)
    command = [sys.executable, str(tmp_path / "owner.py"), str(task.src), str(task.dst)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdout is not None
        workers = [int(pid) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert workers
    until = time.monotonic() + 10
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


INTERRUPTED = """
import signal, sys
from pathlib import Path
from dicomnode.deid.pool import DeidPool, DeidTask
from dicomnode.deid.pseudonym import Subject
from dicomnode.domain import Pseudonym

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    src, folder = map(Path, sys.argv[1:])
    subject = Subject(Pseudonym("DN-ABCDEFGH23"), -100)
    with DeidPool([], bytes(32), workers=2, fsync=False) as pool:
        pool.run([DeidTask(src, folder / "first.dcm", subject)])
        try:
            print("begun", flush=True)
            pool.run([DeidTask(src, folder / f"{n}.dcm", subject) for n in range(5000)])
        except KeyboardInterrupt:
            sys.exit(130)
"""

FORGOTTEN = """
import os, signal
from dicomnode.deid.interrupts import interrupts_held

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts_held() as check:
    Finalized()  # CPython calls __del__ here, and forgets what it raises
    print("goes on", flush=True)
    check()
    print("never", flush=True)
"""


def test_ctrl_c_within_a_finalizer_is_not_forgotten() -> None:
    done = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "goes on\n")
    assert "KeyboardInterrupt" in done.stderr


def test_ctrl_c_that_nobody_asked_for_is_raised_at_the_end() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def ended(tmp_path: Path, after: float, stop: Callable[[int], None]) -> None:
    """A run of many files that ``stop`` ends: exit code 130 soon, no word, no half-written file."""
    (tmp_path / "owner.py").write_text(INTERRUPTED)
    (task,) = tasks(tmp_path, 1)
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(tmp_path / "owner.py"), str(task.src), str(tmp_path / "out")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as owner:
        assert owner.stdout is not None and owner.stderr is not None
        assert owner.stdout.readline() == "begun\n"
        time.sleep(after)
        stop(owner.pid)
        assert owner.wait(20) == 130
        assert owner.stderr.read() == ""
    assert not list((tmp_path / "out").glob("*.part*"))


def test_a_polite_kill_ends_a_run_like_ctrl_c(tmp_path: Path) -> None:
    ended(tmp_path, 0.3, lambda pid: os.kill(pid, signal.SIGTERM))


@pytest.mark.parametrize("after", [0.0, 0.02, 0.3])  # while a worker is being started too
def test_ctrl_c_ends_a_run_soon_and_without_a_word_from_its_workers(tmp_path: Path, after: float) -> None:
    ended(tmp_path, after, lambda pid: os.killpg(pid, signal.SIGINT))  # as a terminal: every process of the group
