"""A process that keeps what it frees asks the kernel for it once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
from dicomnode.models.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
import torch
def touch():
    for _ in range(20):
        torch.zeros(8 << 20).add_(1)  # 32 MB
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(json.dumps({"kept": kept, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}))
"""


def run(way: str, **environment: str) -> dict[str, int]:
    plain = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way], env=plain | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_blocks_that_were_freed_are_not_cleared_anew() -> None:
    assert run("as it comes")["faults"] > 5_000
    kept = run("kept")
    assert kept["kept"] is True
    assert kept["faults"] < 500


def test_what_the_operator_chose_stays() -> None:
    assert run("kept", GLIBC_TUNABLES="glibc.malloc.arena_max=2")["kept"] is False
