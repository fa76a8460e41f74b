"""A full data folder: what every process writes besides data, its signs of life and its figures, must not end it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from soak.full_disk import can_mount, fill, small_disk

from dicomnode.telemetry.heartbeat import beat, read_beats

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root"),
]
# Uses every kind of figure before the disk is full, after it is, and after there is room again.
COUNTING = """
import sys
from pathlib import Path
from dicomnode.telemetry.logging import configure_logging
from dicomnode.telemetry.metrics import Metrics
configure_logging()
metrics = Metrics(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    for step in range(20):
        metrics.received("stored", 1000)
        metrics.step("embed", 0.1 * step)
        metrics.outbox_pending(step)
    print(line.strip(), flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4):
        yield tmp_path / "disk"


def test_a_process_that_cannot_write_its_sign_of_life_goes_on_and_is_ready_again_later(disk: Path):
    assert beat(disk, "receiver-0", state="serving", ready=True)
    ballast = fill(disk)
    assert not beat(disk, "receiver-0", state="serving", ready=True, detail={"text": "x" * 5000})
    assert list(disk.glob(".*")) == [], "nothing half written is left"
    assert read_beats(disk)["receiver-0"].ready, "the last one stands until it is stale"
    ballast.unlink()
    assert beat(disk, "receiver-0", state="stopping", ready=False)
    assert read_beats(disk)["receiver-0"].state == "stopping"


def counting(disk: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COUNTING, str(disk)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def count(process: subprocess.Popen[str], word: str) -> bool:
    """Whether the process counted and lives."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip() == word


def test_a_process_goes_on_counting_on_a_full_disk(disk: Path):
    """Its figures are a mapped file: a page of it that has no room on the disk would end the process by SIGBUS."""
    with counting(disk) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        fill(disk)
        assert count(process, "full")
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_process_that_starts_on_a_full_disk_serves_without_figures(disk: Path):
    fill(disk)
    with counting(disk) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert count(process, "full")
        process.stdin.close()
        assert process.wait(20) == 0
