"""What every soak campaign shares: numbered rounds with a state file and a log, and the proofs that nothing was lost.

A campaign's folder holds ``state.json`` (rounds done) and ``soak.log``; run again, it goes on after the last round.
The proofs read the node's own folders beside it and the files that the PACS keeps; they never ask the node.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicomnode.config import load_settings
from dicomnode.domain import OriginalUid
from dicomnode.errors import PeerError
from dicomnode.node import Node
from dicomnode.testing import Pacs, RunningNode, Workstation

SUCCESS = 0x0000
ANSWER_S = 180.0  # a small study on a machine that also does something else
POLL_S = 0.1
LATE_COPIES_S = 1.0  # a second answer, if there were one, would follow at once


class Broken(AssertionError):
    """A promise of the node was not kept."""


@dataclass
class Rounds:
    """The rounds of a campaign that are done, kept in ``folder/state.json``."""

    folder: Path
    seed: int
    done: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def opened(cls, folder: Path, seed: int) -> Rounds:
        """Go on with a campaign of this seed, or begin one: another seed's folder is emptied."""
        state = folder / "state.json"
        if state.exists():
            held = json.loads(state.read_text())
            if held["seed"] == seed:
                return cls(folder, seed, held["done"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return cls(folder, seed)

    @property
    def life(self) -> int:
        """Which start of the campaign this is: a round that was broken off comes again with other patients."""
        return len(list((self.folder / "pacs").glob("run-*")))

    def has(self, number: int) -> bool:
        """Whether a round was passed."""
        return str(number) in self.done

    def passed(self, number: int, said: dict[str, Any]) -> None:
        """Record a round; on disk when this returns."""
        self.done[str(number)] = said
        part = self.folder / "state.part"
        part.write_text(json.dumps({"seed": self.seed, "done": self.done}, indent=1))
        part.replace(self.folder / "state.json")

    def say(self, line: str) -> None:
        """A line of the log, and of the terminal."""
        with (self.folder / "soak.log").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


@dataclass(frozen=True)
class Evidence:
    """What a node holds, read from its folders; and what the PACS holds, over every folder it wrote to."""

    node: RunningNode
    pacs_folder: Path
    _known: dict[Path, tuple[int, str, str, str]] = field(default_factory=dict)  # size, study, instance, digest

    def parts(self) -> Node:
        """The node's parts, opened beside it."""
        return Node(load_settings(self.node.settings))

    def lost(self, instances: Sequence[Dataset]) -> list[str]:
        """SOP Instance UIDs of acknowledged instances that are nowhere with the pixels that were sent.

        Looks into the spool first: an instance goes from there to the archive, never back. An instance sent to the
        AE role "query" is not archived; it has done its work once an answer counts it in.
        """
        parts = self.parts()
        spooled = self._spooled()
        missing = []
        for ds in instances:
            uid = str(ds.SOPInstanceUID)
            if _holds(spooled.get(uid), ds):
                continue
            pseudo = parts.vault.uid(OriginalUid(uid))
            relative = parts.catalogue.path_of(pseudo)
            if relative is not None and _holds(parts.objects.path(relative), ds):
                continue
            answer = parts.answers.latest(parts.vault.uid(OriginalUid(str(ds.StudyInstanceUID))))
            if answer is None or pseudo not in answer.instances:
                missing.append(uid)
        return missing

    def _spooled(self) -> dict[str, Path]:
        identified = self.node.var / "identified"
        if not (identified / "spool.sqlite3").exists():
            return {}
        with sqlite3.connect(identified / "spool.sqlite3", timeout=30) as db:
            rows = db.execute("select sop_uid, path from instances").fetchall()
        return {uid: identified / "spool" / path for uid, path in rows}

    def unfinished(self) -> str:
        """What is left to do or to delete, one line; empty when the node is at rest."""
        spool = [p for p in (self.node.var / "identified" / "spool").iterdir() if p.is_file()]
        with sqlite3.connect(self.node.var / "identified" / "spool.sqlite3", timeout=30) as db:
            rows = db.execute("select count(*) from instances").fetchone()[0]
            jobs = db.execute("select id, state from jobs where state not in ('done', 'discarded')").fetchall()
        work = [p.name for p in (self.node.var / "work").iterdir()]
        waiting = self.parts().answers.count_pending()
        left = {"spool files": len(spool), "spool rows": rows, "jobs": jobs, "work folders": work, "outbox": waiting}
        return ", ".join(f"{what}: {n}" for what, n in left.items() if n)

    def answers(self, study_uid: str) -> dict[str, set[str]]:
        """Of a study at the PACS: SOP Instance UID of each answer, and the digests of the bytes that came for it."""
        found: dict[str, set[str]] = {}
        for path in self.pacs_folder.rglob("*.dcm"):
            size = path.stat().st_size
            if path not in self._known or self._known[path][0] != size:
                try:
                    ds = dcmread(path, stop_before_pixels=True)
                    study, instance = str(ds.StudyInstanceUID), str(ds.SOPInstanceUID)
                except (InvalidDicomError, EOFError, AttributeError):  # the PACS is writing it
                    continue
                self._known[path] = (size, study, instance, hashlib.sha256(path.read_bytes()).hexdigest())
            _, study, instance, digest = self._known[path]
            if study == study_uid:
                found.setdefault(instance, set()).add(digest)
        return found

    def series(self, study_uid: str) -> set[tuple[str, int]]:
        """Of a study at the PACS: SOP Instance UID and SeriesNumber of each object."""
        read = [dcmread(path, stop_before_pixels=True) for path in self.files(study_uid)]
        return {(str(ds.SOPInstanceUID), int(ds.SeriesNumber)) for ds in read}

    def files(self, study_uid: str) -> list[Path]:
        """Of a study at the PACS: a file of each object."""
        self.answers(study_uid)  # reads what is new
        return list({known[2]: path for path, known in self._known.items() if known[1] == study_uid}.values())

    def one_answer(self, study_uid: str) -> int:
        """Check that the PACS ended with exactly one object for a study; how many times it was sent.

        Raises
        ------
        Broken
            There is none, more than one UID, or two objects of one UID with other bytes.
        """
        found = self.answers(study_uid)
        if len(found) != 1:
            raise Broken(f"the PACS holds {len(found)} answers of one study, not 1")
        (digests,) = found.values()
        if len(digests) != 1:
            raise Broken("the PACS was sent different bytes under one SOP Instance UID")
        return len(digests)

    def settle(self, studies: Sequence[str], timeout: float = ANSWER_S) -> float:
        """Wait until each study is answered and the node is at rest; seconds it took.

        Raises
        ------
        Broken
            It did not come to that in time, or a study has more than one answer.
        """
        began = time.monotonic()
        wait_until(lambda: all(self.answers(uid) for uid in studies), "an answer at the PACS", timeout, self.unfinished)
        wait_until(lambda: not self.unfinished(), "the spool to be empty", timeout, self.unfinished)
        seconds = time.monotonic() - began
        time.sleep(LATE_COPIES_S)
        for uid in studies:
            self.one_answer(uid)
        if held := self.node.json("quarantine", "list")["items"]:
            raise Broken(f"in quarantine: {', '.join(i['reason'] for i in held)}")
        return seconds


def _holds(path: Path | None, sent: Dataset) -> bool:
    """Whether a file has the pixels that were sent."""
    if path is None or not path.exists():
        return False
    try:
        return bytes(dcmread(path).PixelData) == sent.PixelData
    except (InvalidDicomError, EOFError, AttributeError, FileNotFoundError):
        return False


def wait_until(true: Callable[[], bool], what: str, timeout: float, why: Callable[[], str] = str) -> None:
    """Wait for a condition.

    Raises
    ------
    Broken
        It did not come true in time; ``why`` says what stands in the way.
    """
    until = time.monotonic() + timeout
    while not true():
        if time.monotonic() > until:
            raise Broken(f"waited {timeout:.0f} s for {what}; {why()}")
        time.sleep(POLL_S)


def send_until_taken(
    study: Sequence[Dataset], node: RunningNode, called: str, timeout: float = ANSWER_S, *, patience: float = 10.0
) -> int:
    """Send as a modality does: what was not acknowledged is sent again until it is. Returns the tries.

    ``patience`` is what the sender waits for an answer before it tries again.
    """
    left, tries, until = list(study), 0, time.monotonic() + timeout
    while left:
        if time.monotonic() > until:
            raise Broken(f"{len(left)} instances were not taken in {timeout:.0f} s")
        tries += 1
        try:
            statuses = Workstation(timeout=patience).send(left, "127.0.0.1", node.dicom_port, called)
        except PeerError:
            time.sleep(POLL_S)
            continue
        left = [ds for ds, status in zip(left, statuses, strict=True) if status != SUCCESS]
    return tries


def new_pacs(folder: Path) -> Pacs:
    """A PACS that writes into a new folder below, so that what an earlier run was sent stays."""
    number = len(list(folder.glob("run-*"))) if folder.exists() else 0
    return Pacs(folder=folder / f"run-{number:03d}")
