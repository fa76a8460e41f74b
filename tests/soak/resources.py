"""What the processes of a node use: memory, threads, open files; and whether that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import psutil

from dicomnode.telemetry.heartbeat import read_beats
from dicomnode.testing import RunningNode

Sample = dict[str, dict[str, int]]  # process -> "rss", "threads", "files" -> figure
WARM_SHARE = 0.3  # of the samples: pools fill, caches warm up


def processes(node: RunningNode) -> dict[str, psutil.Process]:
    """The node's processes by name: supervisor, worker, receivers, web. Children of the worker are left out."""
    supervisor = psutil.Process(node.pids()[0])
    found = {"supervisor": supervisor}
    for child in supervisor.children():
        try:
            arguments = child.cmdline()
        except psutil.Error:  # it has ended
            continue
        if "dicomnode.serving" not in arguments:
            continue
        role = arguments[arguments.index("dicomnode.serving") + 1]
        found[arguments[arguments.index("--name") + 1] if role == "receiver" else role] = child
    return found


def sample(of: Mapping[str, psutil.Process]) -> Sample:
    """Figures of each process now."""
    found = {}
    for name, process in of.items():
        with process.oneshot():
            memory, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
        found[name] = {"rss": memory, "threads": threads, "files": files}
    return found


def open_associations(node: RunningNode) -> int:
    """Slots in use, as the receivers tell in their signs of life."""
    beats = read_beats(node.var / "runtime")
    return sum(int(b.detail.get("associations") or 0) for name, b in beats.items() if name.startswith("receiver-"))


def slope(at: Sequence[int], samples: Sequence[Sample], process: str, what: str) -> float:
    """Least-squares growth of a figure for each unit of ``at``, without the warm-up."""
    warm = int(len(at) * WARM_SHARE)
    values = [s[process][what] for s in samples]
    return float(np.polyfit(at[warm:], values[warm:], 1)[0])
