"""``make demo KEEP=1`` in the background: ``kill`` ends it as Ctrl-C does and leaves neither process nor folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration
SERVING_S, STOP_S = 900.0, 60.0


def test_sigterm_ends_the_demo_that_keeps_serving(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("dicomnode-demo-*"))
    environment = {**os.environ, "DICOMNODE_SHARED": str(tmp_path / "absent")}
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(
            [sys.executable, "-m", "dicomnode.cli.demo", "--keep"],
            stdout=said,
            stderr=said,
            cwd=tmp_path,
            env=environment,
        )
    try:
        until = time.monotonic() + SERVING_S
        while b"goes on serving" not in (tmp_path / "said").read_bytes():
            assert demo.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
            time.sleep(0.5)
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) > 3, "a supervisor, receivers, worker, web"
        demo.terminate()
        assert demo.wait(STOP_S) == 0
        assert psutil.wait_procs(children, timeout=5)[1] == []
    finally:
        for left in [*psutil.Process(demo.pid).children(recursive=True), demo] if demo.poll() is None else []:
            left.kill()
    assert set(Path(tempfile.gettempdir()).glob("dicomnode-demo-*")) <= before
