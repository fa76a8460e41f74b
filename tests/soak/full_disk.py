"""Fills the disk under a node, a small file system of its own, and gives room again: nothing acknowledged is lost.

Rounds take turns: the identified zone full while a study is received (A700, sent again later); the archive full while a
study is processed, for less than the step's retries or for longer; and the whole data folder full to the last byte at a
drawn moment of the study's way. Sizes are drawn too, so each round fills at another point. Nothing goes to quarantine
for it, and the node comes to rest by itself. Mounts a tmpfs, so it needs root.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.errors import PeerError
from dicomnode.testing import RunningNode, Workstation, sample_study

from .campaign import ANSWER_S, SUCCESS, Broken, Evidence, Rounds, new_pacs, send_until_taken, wait_until
from .kill import Log

OUT_OF_RESOURCES = 0xA700
KINDS = ("spool", "archive for a moment", "everything", "archive for long", "everything")
QUIET_S = 12.0  # what was refused comes again within it: one set of images, so one answer
PATIENCE_S = 4.0  # of a sender, well within it
SLICES, MATRIX = 24, 512  # 0.5 MB an image
RESERVE_MB = 64  # of the spool
FITS_MB = (2, 10)  # of the 12.6 MB of a study
ROOMY_MB = 400
# Where everything is full from: an image of the study being received, or a line of the log.
MOMENTS = ("receive", "study_complete", "deid", "archive", "embed", "index", "retrieve")
FULL_S = (2.0, 40.0)
BLOCK = 64 * 1024
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


def fill(folder: Path) -> Path:
    """Write a file until not one byte more goes in."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (BLOCK, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    continue
            except OSError:
                continue
    return ballast


class FullDiskCampaign:
    """Rounds on a new node each. ``run`` raises ``Broken`` where something acknowledged is lost."""

    def __init__(self, folder: Path, seed: int, *, full_s: tuple[float, float] = FULL_S) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.full_s = full_s

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
        disk = folder / "node" / "var"
        size = ROOMY_MB
        if kind != "everything":
            disk /= "identified" if kind == "spool" else "archive"
            size = rng.randint(*FITS_MB) + (RESERVE_MB if kind == "spool" else 0)
        study = sample_study(SLICES, patient_id=f"DISK-{number}", seed=rng.randrange(100_000), matrix=MATRIX)
        with (
            new_pacs(folder / "pacs") as pacs,
            small_disk(disk, size),
            RunningNode(folder / "node", pacs, quiet_s=QUIET_S) as node,
        ):
            evidence = Evidence(node, folder / "pacs")
            if kind == "spool":
                said = _full_spool(node, evidence, disk, study)
            elif kind == "everything":
                said = _full_everything(node, evidence, disk, study, rng, self.full_s)
            else:
                share = rng.uniform(0.1, 0.5) if kind == "archive for a moment" else rng.uniform(1.2, 1.8)
                said = _full_archive(node, evidence, disk, study, share * RETRIES_S)
            said = {"megabytes": size, **said}
            said["settled_s"] = round(evidence.settle([str(study[0].StudyInstanceUID)]), 1)
        return said


def _full_spool(node: RunningNode, evidence: Evidence, disk: Path, study: Sequence[Dataset]) -> dict[str, Any]:
    statuses = Workstation(timeout=PATIENCE_S).send(study, "127.0.0.1", node.dicom_port)
    told = {s for s in statuses if s is not None}  # None: the sender got no answer in time, and will send it again
    if told != {SUCCESS, OUT_OF_RESOURCES}:
        raise Broken(f"a full spool answered {sorted(f'{s:04X}' for s in told)}")
    taken = [ds for ds, status in zip(study, statuses, strict=True) if status == SUCCESS]
    if lost := evidence.lost(taken):
        raise Broken(f"{len(lost)} of {len(taken)} acknowledged instances are lost")
    give_room(disk)
    refused = [ds for ds, status in zip(study, statuses, strict=True) if status != SUCCESS]
    send_until_taken(refused, node, "DICOMNODE", patience=PATIENCE_S)
    return {"acknowledged": len(taken), "refused with A700": statuses.count(OUT_OF_RESOURCES)}


def _full_archive(
    node: RunningNode, evidence: Evidence, disk: Path, study: Sequence[Dataset], full_s: float
) -> dict[str, Any]:
    send_until_taken(study, node, "DICOMNODE", patience=PATIENCE_S)
    wait_until(lambda: b'"step_failed"' in node.log.read_bytes(), "the full archive to be met", ANSWER_S)
    time.sleep(full_s)
    if lost := evidence.lost(study):
        raise Broken(f"{len(lost)} of {len(study)} acknowledged instances are lost")
    give_room(disk)
    return {"acknowledged": len(study), "full_s": round(full_s, 1)}


def _full_everything(
    node: RunningNode,
    evidence: Evidence,
    disk: Path,
    study: Sequence[Dataset],
    rng: random.Random,
    range_s: tuple[float, float],
) -> dict[str, Any]:
    moment, files, full_s = rng.choice(MOMENTS), rng.randrange(SLICES), rng.uniform(*range_s)
    log, after = Log(node.log), rng.uniform(0.0, 0.3)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(_send, study, node)
        if moment == "receive":
            spool = node.var / "identified" / "spool"
            wait_until(lambda: len(list(spool.iterdir())) >= files or sending.done(), "images in the spool", ANSWER_S)
        else:
            event, step = (moment, None) if moment == "study_complete" else ("step_done", moment)
            log.wait_for(event, step, ANSWER_S)
            time.sleep(after)
        ballast = fill(disk)
        time.sleep(full_s)
        taken, refused = _sorted_out(study, sending)
    ballast.unlink()
    if lost := evidence.lost(taken):
        raise Broken(f"{len(lost)} of {len(taken)} acknowledged instances are lost")
    send_until_taken(refused, node, "DICOMNODE", patience=PATIENCE_S)
    failures = sum(e.get("event") in ("step_failed", "store_refused", "outbox_failed") for e in log.events())
    return {
        "from": moment,
        "full_s": round(full_s, 1),
        "acknowledged": len(taken),
        "refused": len(refused),
        "failures told": failures,
    }


def _send(study: Sequence[Dataset], node: RunningNode) -> list[int | None]:
    try:
        return Workstation(timeout=PATIENCE_S).send(study, "127.0.0.1", node.dicom_port)
    except PeerError:
        return [None] * len(study)


def _sorted_out(study: Sequence[Dataset], sending: Future[list[int | None]]) -> tuple[list[Dataset], list[Dataset]]:
    """What was acknowledged, and what was refused with A700 or not answered. Any other answer is not allowed."""
    statuses = sending.result()
    if strange := {s for s in statuses if s not in (SUCCESS, OUT_OF_RESOURCES, None)}:
        raise Broken(f"a full disk was answered with {strange}")
    pairs = list(zip(study, statuses, strict=True))
    return [ds for ds, s in pairs if s == SUCCESS], [ds for ds, s in pairs if s != SUCCESS]
