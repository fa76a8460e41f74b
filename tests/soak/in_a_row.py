"""Thousands of associations one after another: memory, threads and open files of the node stay flat, none is refused.

Most are a C-ECHO written by hand, every twentieth a pynetdicom client that stores an image. A round is all of them on
one node: growth shows only within a life of its processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicomnode.testing import RunningNode, Workstation, sample_study

from .campaign import SUCCESS, Broken, Rounds, wait_until
from .resources import Sample, open_associations, processes, sample, slope
from .wire import HOST, RELEASED, echo_once

STORE_EVERY = 20
SAMPLES = 40
# An association that is not let go of costs a receiver 50 kB and more; the allocator's drift stays far below.
LEAK_BYTES = 1024
SAME_THREADS = 2  # a timer or a pool may be at work in one sample and not in the other
SAME_FILES = 3
AT_REST_S = 15.0
ENDING_S = 0.5  # the threads of the last association
UNENDING_S = 3600.0  # the image that is stored again and again does not become a study meanwhile


class InARowCampaign:
    """``count`` associations a round. ``run`` raises ``Broken`` where one is refused or something grows."""

    def __init__(self, folder: Path, seed: int, *, count: int = 10_000) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.count = count

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        for number in numbers:
            if not self.rounds.has(number):
                with RunningNode(self.folder / f"node-{number}", quiet_s=UNENDING_S) as node:
                    said = self._round(node)
                self.rounds.passed(number, said)
                self.rounds.say(f"in a row {number}: {said}")
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, node: RunningNode) -> dict[str, Any]:
        image = sample_study(1, patient_id="IN-A-ROW", matrix=64)
        of = processes(node)
        at: list[int] = []
        samples: list[Sample] = []
        began = time.monotonic()
        for number in range(1, self.count + 1):
            if number % STORE_EVERY == 0:
                if Workstation().send(image, HOST, node.dicom_port) != [SUCCESS]:
                    raise Broken(f"association {number}: the image was not taken")
            elif (end := echo_once(node.dicom_port)) != RELEASED:
                raise Broken(f"association {number} ended with a PDU of type {end}")
            if number % max(1, self.count // SAMPLES) == 0:
                wait_until(lambda: not open_associations(node), "the slots to be free", AT_REST_S)
                time.sleep(ENDING_S)
                at.append(number)
                samples.append(sample(of))
                self.rounds.say(f"in a row: {number} associations, {_short(samples[-1])}")
        seconds = time.monotonic() - began
        if b'"association_rejected"' in node.log.read_bytes():
            raise Broken("an association was rejected")
        if set(processes(node).values()) != set(of.values()):
            raise Broken("a process was restarted")
        growth = {name: _growth(at, samples, name) for name in of}
        return {"associations": self.count, "seconds": round(seconds, 1), "growth": growth}


def _short(taken: Sample) -> str:
    return "; ".join(f"{n} {s['rss'] >> 20} MB {s['threads']} threads {s['files']} files" for n, s in taken.items())


def _growth(at: Sequence[int], samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """What a process used at first and at last, and the slope of its memory in bytes an association."""
    half = len(samples) // 2
    for what, same in (("threads", SAME_THREADS), ("files", SAME_FILES)):
        early, late = (max(s[name][what] for s in part) for part in (samples[:half], samples[half:]))
        if late > early + same:
            raise Broken(f"{name}: {what} grew from {early} to {late}")
    bytes_each = slope(at, samples, name, "rss")
    if bytes_each > LEAK_BYTES and at[-1] >= 1000:  # of fewer, one page more is a slope
        raise Broken(f"{name}: memory grows by {bytes_each:.0f} bytes an association")
    first, last = samples[0][name], samples[-1][name]
    return {
        "rss_mb": [round(first["rss"] / 2**20, 1), round(last["rss"] / 2**20, 1)],
        "bytes_an_association": round(bytes_each, 1),
        "threads": [first["threads"], last["threads"]],
        "files": [first["files"], last["files"]],
    }
