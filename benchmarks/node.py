"""Start, idle load and memory of a node: ``python benchmarks/node.py [--starts 3] [--idle 60]``.

Start: from the command to ``/readyz`` 200. Idle: processor time of all its processes, in percent of one core.
Prints a markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from dicomnode.testing import Pacs, RunningNode

SETTLE_S = 10.0


def processes(node: RunningNode) -> list[psutil.Process]:
    """The node's processes, children of children included."""
    root = psutil.Process(node.pids()[0])
    return [root, *root.children(recursive=True)]


def cpu_seconds(found: list[psutil.Process]) -> float:
    """Processor seconds used so far by processes that still run."""
    return sum(sum(p.cpu_times()[:2]) for p in found if p.is_running())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--idle", type=float, default=60.0)
    arguments = parser.parse_args()
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as tmp, Pacs() as pacs:
        for n in range(arguments.starts):
            node = RunningNode(Path(tmp) / f"node-{n}", pacs)
            began = time.monotonic()
            node.launch()
            try:
                node.wait_ready()
                starts.append(time.monotonic() - began)
                if n < arguments.starts - 1:
                    continue
                time.sleep(SETTLE_S)
                found = processes(node)
                before = cpu_seconds(found)
                time.sleep(arguments.idle)
                idle = (cpu_seconds(found) - before) / arguments.idle * 100
                rss = sum(p.memory_info().rss for p in found if p.is_running()) / 1e6
            finally:
                node.stop()
    print("| | |\n|---|---|")
    print(f"| start to /readyz, median of {len(starts)} | **{statistics.median(starts):.1f} s** |")
    print(f"| idle, all {len(found)} processes, over {arguments.idle:.0f} s | **{idle:.2f} % of one core** |")
    print(f"| memory, all processes | {rss:.0f} MB (shared pages counted in each) |")


if __name__ == "__main__":
    main()
