"""Fills the disk under a node, a small file system of its own, and gives room again: nothing acknowledged is lost.

Rounds take turns: the identified zone full while a study is received (A700, sent again later), and the archive full
while a study is processed, for less than the step's retries or for longer. Nothing goes to quarantine for it, and the
node comes to rest by itself. Mounts a tmpfs, so it needs root.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.testing import RunningNode, Workstation, sample_study

from .campaign import ANSWER_S, SUCCESS, Broken, Evidence, Rounds, new_pacs, send_until_taken, wait_until

OUT_OF_RESOURCES = 0xA700
KINDS = ("spool", "archive for a moment", "archive for long")
QUIET_S = 6.0
SLICES, MATRIX = 24, 512  # 0.5 MB an image
SPOOL_MB = 64 + 8  # the spool's reserve, and room for a dozen images
ARCHIVE_MB = 3
ROOMY_MB = 400
RETRIES_S = 31.0  # of a step: 1 + 2 + 4 + 8 + 16


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    return os.geteuid() == 0


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at ``folder``."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def give_room(folder: Path) -> None:
    """Make it large."""
    subprocess.run(["mount", "-o", f"remount,size={ROOMY_MB}m", str(folder)], check=True)


class FullDiskCampaign:
    """Rounds on a new node each. ``run`` raises ``Broken`` where something acknowledged is lost."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        if not can_mount():
            self.rounds.say("full disk: left out, mounting a file system needs root")
            return []
        for number in numbers:
            if not self.rounds.has(number):
                rng = random.Random(f"{self.rounds.seed}/{number}")
                kind = KINDS[number % len(KINDS)]
                said = self._round(kind, number, rng)
                self.rounds.passed(number, said)
                self.rounds.say(f"full disk {number}: {kind}: " + ", ".join(f"{k} {v}" for k, v in said.items()))
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, kind: str, number: int, rng: random.Random) -> dict[str, Any]:
        folder = self.folder / f"round-{number}-{time.time_ns()}"
        disk = folder / "node" / "var" / ("identified" if kind == "spool" else "archive")
        study = sample_study(SLICES, patient_id=f"DISK-{number}", seed=rng.randrange(100_000), matrix=MATRIX)
        with (
            new_pacs(folder / "pacs") as pacs,
            small_disk(disk, SPOOL_MB if kind == "spool" else ARCHIVE_MB),
            RunningNode(folder / "node", pacs, quiet_s=QUIET_S) as node,
        ):
            evidence = Evidence(node, folder / "pacs")
            if kind == "spool":
                said = _full_spool(node, evidence, disk, study)
            else:
                share = rng.uniform(0.1, 0.5) if kind == "archive for a moment" else rng.uniform(1.2, 1.8)
                said = _full_archive(node, evidence, disk, study, share * RETRIES_S)
            said["settled_s"] = round(evidence.settle([str(study[0].StudyInstanceUID)]), 1)
        return said


def _full_spool(node: RunningNode, evidence: Evidence, disk: Path, study: Sequence[Dataset]) -> dict[str, Any]:
    statuses = Workstation().send(study, "127.0.0.1", node.dicom_port)
    if set(statuses) != {SUCCESS, OUT_OF_RESOURCES}:
        raise Broken(f"a full spool answered {sorted(f'{s:04X}' for s in set(statuses) if s is not None)}")
    taken = [ds for ds, status in zip(study, statuses, strict=True) if status == SUCCESS]
    if lost := evidence.lost(taken):
        raise Broken(f"{len(lost)} of {len(taken)} acknowledged instances are lost")
    give_room(disk)
    refused = [ds for ds, status in zip(study, statuses, strict=True) if status != SUCCESS]
    send_until_taken(refused, node, "DICOMNODE")
    return {"acknowledged": len(taken), "refused with A700": len(refused)}


def _full_archive(
    node: RunningNode, evidence: Evidence, disk: Path, study: Sequence[Dataset], full_s: float
) -> dict[str, Any]:
    send_until_taken(study, node, "DICOMNODE")
    wait_until(lambda: b'"step_failed"' in node.log.read_bytes(), "the full archive to be met", ANSWER_S)
    time.sleep(full_s)
    if lost := evidence.lost(study):
        raise Broken(f"{len(lost)} of {len(study)} acknowledged instances are lost")
    give_room(disk)
    return {"acknowledged": len(study), "full_s": round(full_s, 1)}
