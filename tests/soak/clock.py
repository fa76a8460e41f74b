"""The wall clock is set back, and forward, while studies are on their way: timers, retries and new answers go on.

Each round sets the clock by another step at three moments: between the images of a study, while a result waits for its
next try, and before late images of an answered study. Needs a C compiler for the small library that sets the clock.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.testing import Pacs, RunningNode, sample_study

from .campaign import ANSWER_S, Broken, Evidence, Rounds, new_pacs, send_until_taken, wait_until

SOURCE = Path(__file__).with_name("clock.c")
STEPS_S = (-300, -7200, +86_400, -86_400, -400 * 86_400, +7200)  # each from where the last one left the clock
QUIET_S = 2.0
PROMPT_S = 30.0  # quiet time, computing and delivery, on a machine that also does something else
TRIES = 3  # in vain before the clock is set: the next is 8 s off
WAIT_S = 8.0
SLICES = 4


def can_set_clock() -> bool:
    """Whether there is a compiler for the library."""
    return shutil.which("cc") is not None


class Clock:
    """The clock of the processes that ``environment`` is given to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        library, self._file = folder / "clock.so", folder / "shift"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(SOURCE)], check=True)
        self.shift_s = 0
        self._file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._file)}

    def set_by(self, seconds: int) -> None:
        """Set it forward, or back; in every process at once."""
        self.shift_s += seconds
        with self._file.open("r+b", buffering=0) as f:
            os.pwrite(f.fileno(), struct.pack("q", self.shift_s), 0)


class ClockCampaign:
    """Rounds on one node. ``run`` raises ``Broken`` where something waits for the clock."""

    def __init__(self, folder: Path, seed: int, *, tries: int = TRIES) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.tries = tries

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        if not can_set_clock():
            self.rounds.say("clock: left out, there is no C compiler")
            return []
        clock = Clock(self.folder / "clock")
        with new_pacs(self.folder / "pacs") as pacs:
            node = RunningNode(self.folder / "node", pacs, quiet_s=QUIET_S, environment=clock.environment)
            evidence = Evidence(node, self.folder / "pacs")
            with node:
                for number in numbers:
                    if not self.rounds.has(number):
                        said = self._round(node, pacs, evidence, clock, number)
                        self.rounds.passed(number, said)
                        self.rounds.say(f"clock {number}: " + ", ".join(f"{k} {v}" for k, v in said.items()))
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, node: RunningNode, pacs: Pacs, evidence: Evidence, clock: Clock, number: int) -> dict[str, Any]:
        step = STEPS_S[number % len(STEPS_S)]
        first, waiting = (
            sample_study(SLICES, patient_id=f"CLOCK-{number}-{n}-{self.rounds.life}", seed=1000 * number + n, matrix=64)
            for n in range(2)
        )
        send_until_taken(first[:2], node, "DICOMNODE")
        clock.set_by(step)
        send_until_taken(first[2:3], node, "DICOMNODE")
        answered = _answered(evidence, first, 1)

        tries = _in_vain(node)
        pacs.refuse = True
        send_until_taken(waiting, node, "DICOMNODE")
        wait_until(lambda: _in_vain(node) >= tries + self.tries, "tries in vain", ANSWER_S)
        clock.set_by(step)
        pacs.refuse = False
        delivered = _answered(evidence, waiting, 1, WAIT_S)

        clock.set_by(step)
        send_until_taken(first[3:], node, "DICOMNODE")
        again = _answered(evidence, first, 2)
        _follows(evidence, first)
        wait_until(lambda: not evidence.unfinished(), "the node at rest", ANSWER_S, evidence.unfinished)
        return {
            "set by_s": step,
            "answered after_s": answered,
            "delivered after_s": delivered,
            "answered again after_s": again,
        }


def _in_vain(node: RunningNode) -> int:
    return node.log.read_bytes().count(b'"result_waits"')


def _answered(evidence: Evidence, study: Sequence[Dataset], count: int, more: float = 0.0) -> float:
    """Wait for the study's answers at the PACS; seconds it took. It must not take longer than without a change."""
    began = time.monotonic()
    uid = str(study[0].StudyInstanceUID)
    wait_until(lambda: len(evidence.answers(uid)) >= count, "an answer after the clock was set", PROMPT_S + more)
    return round(time.monotonic() - began, 1)


def _follows(evidence: Evidence, study: Sequence[Dataset]) -> None:
    """The second answer is the next instance of the series and names the first."""
    files = evidence.files(str(study[0].StudyInstanceUID))
    early, late = sorted((dcmread(f) for f in files), key=lambda ds: int(ds.InstanceNumber))
    named = [
        instance.ReferencedSOPInstanceUID
        for one in late.get("PredecessorDocumentsSequence", [])
        for series in one.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
    if (int(early.InstanceNumber), int(late.InstanceNumber), named) != (1, 2, [early.SOPInstanceUID]):
        raise Broken("the new answer does not follow the first")
