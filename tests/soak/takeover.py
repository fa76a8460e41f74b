"""Another model takes over on a running node, and the first one comes back, while all kinds of queries go on.

Three askers ask in a loop: a workstation (C-STORE to the role "query"), a browser (an upload) and a C-FIND for similar
images. Each always asks the same question, so that every answer must be, case by case, the one that the old model gives
or the one that the new model gives: none may fail, none may be of both.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND

from dicomnode.config import load_settings
from dicomnode.domain import OriginalUid
from dicomnode.index.takeover import lacking
from dicomnode.node import Node, packs_folder
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_repository, sample_study, write_study

from .campaign import SUCCESS, Broken, Rounds, new_pacs, wait_until

HOST = "127.0.0.1"
OLD = packs_folder() / "cenet-xception"
NEW = "efficientnet-lite0"
K = 10
SAME = 1e-3  # of a similarity: the same slice in another batch
ANSWER_S = 240.0
LATE = 2  # studies that arrive while a model takes over
TOO_MANY = 429
PACE_S = 5.0
AGREED = 3  # answers of each asker that are waited for after a switch

Ranking = tuple[tuple[str, float], ...]


@dataclass
class Loop:
    """What one asker was answered, until it is told to stop."""

    name: str
    ask: Callable[[int], tuple[str, Ranking]]
    stop: threading.Event
    answers: list[tuple[str, Ranking]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                self.answers.append(self.ask(number))
            except Exception as exc:  # noqa: BLE001 - whatever it is, an answer is missing
                self.failures.append(f"{self.name} {number}: {type(exc).__name__}: {exc}")


class TakeoverCampaign:
    """A round is one node that goes to the new model, back, and forth again; ``run`` raises ``Broken`` on any fault."""

    def __init__(self, folder: Path, seed: int, *, studies: int = 125, slices: int = 16, matrix: int = 128) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder, self.seed = folder, seed
        self.studies, self.slices, self.matrix = studies, slices, matrix

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        for number in numbers:
            if self.rounds.has(number):
                continue
            base = self.folder / f"round-{number}-{self.rounds.life}"
            with new_pacs(self.folder / "pacs") as pacs, RunningNode(base / "node", pacs, quiet_s=0.3) as node:
                said = _Round(self, node, pacs, base).play()
            self.rounds.passed(number, said)
            self.rounds.say(f"takeover {number}: {said}")
        return [self.rounds.done[str(number)] for number in numbers]


class _Round:
    def __init__(self, campaign: TakeoverCampaign, node: RunningNode, pacs: Pacs, base: Path) -> None:
        self.campaign, self.node, self.pacs, self.base = campaign, node, pacs, base
        self.parts = Node(load_settings(node.settings))
        self.sent = 0
        self.question = self._study("ASKED", self.campaign.seed + 9000)
        self.asked_folder = base / "asked"
        write_study(self.question, self.asked_folder)
        self.known = ""  # an image of the repository, for C-FIND

    def play(self) -> dict[str, Any]:
        c = self.campaign
        findings = sample_repository(self.base / "repository", c.studies, c.seed, slices=c.slices, matrix=c.matrix)
        self._command("index", "add", self.base / "repository", "--findings", findings)
        first = sorted((self.base / "repository").rglob("*.dcm"))[0]
        self.known = str(_uid_of(first))
        self._command("models", "imagenet")
        old = self._reference()
        began = time.monotonic()
        there = self._under_load(lambda: self._command("models", "activate", NEW))
        seconds = time.monotonic() - began
        new = self._reference()
        if old["model"] == new["model"] or _same(old["study"], new["study"]) or _same(old["find"], new["find"]):
            raise Broken("the model in force is still the old one, or cannot be told from it")
        began = time.monotonic()
        back = self._under_load(lambda: self._command("models", "activate", OLD.name))
        back_s = time.monotonic() - began
        again = self._reference()
        if again["model"] != old["model"] or not (
            _same(again["study"], old["study"]) and _same(again["find"], old["find"])
        ):
            raise Broken("after going back the answers are not what they were")
        counted = Counter({"old": 0, "new": 0})
        for loop in (*there, *back):
            counted.update(self._judged(loop, old, new))
        self._arrive_during_a_takeover()
        self._at_rest()
        return {
            "slices": c.studies * c.slices,
            "asked": sum(counted.values()),
            "by the old": counted["old"],
            "by the new": counted["new"],
            "failed": 0,
            "mixed": 0,
            "takeover_s": round(seconds, 1),
            "back_s": round(back_s, 1),
        }

    def _command(self, *arguments: str | Path) -> None:
        done = self.node.run(*arguments)
        if done.returncode != 0:
            raise Broken(f"dicomnode {arguments[0]} {arguments[1]}: {done.stderr.strip()[-500:]}")

    def _study(self, patient: str, seed: int) -> list[Dataset]:
        # of one image: the second of two may come after the quiet time, and the first alone has another answer
        return sample_study(1, patient_id=patient, seed=seed, matrix=64)

    def _reference(self) -> dict[str, Any]:
        """What the model in force gives to each asker, by itself."""
        with httpx.Client(base_url=self.node.url, timeout=ANSWER_S) as http:
            model, study = self._web(http, 0)
        return {"model": model, "study": study, "find": self._find(0)[1]}

    def _under_load(self, command: Callable[[], None]) -> list[Loop]:
        stop = threading.Event()
        with httpx.Client(base_url=self.node.url, timeout=ANSWER_S) as http:
            askers = {"workstation": self._workstation, "find": self._find, "web": lambda n: self._web(http, n)}
            loops = [Loop(name, ask, stop) for name, ask in askers.items()]
            threads = [threading.Thread(target=loop.run) for loop in loops]
            for thread in threads:
                thread.start()
            try:
                wait_until(lambda: all(loop.answers or loop.failures for loop in loops), "a first answer", ANSWER_S)
                command()
                after = [len(loop.answers) for loop in loops]
                wait_until(
                    lambda: all(
                        len(loop.answers) >= n + AGREED or loop.failures for n, loop in zip(after, loops, strict=True)
                    ),
                    "answers after the switch",
                    ANSWER_S,
                )
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
        return loops

    def _workstation(self, _number: int) -> tuple[str, Ranking]:
        """The question as a study of its own, sent to the role "query"; the answer that the node sent to the PACS."""
        self.sent += 1
        study = self._study(f"ASKS-{self.sent}", self.campaign.seed + 9000)
        uid = self.parts.vault.uid(OriginalUid(str(study[0].StudyInstanceUID)))
        before = len(list(self.pacs.folder.glob("*.dcm")))
        if set(Workstation().send(study, HOST, self.node.dicom_port, "QUERYONLY")) != {SUCCESS}:
            raise Broken("the study was not taken")
        wait_until(lambda: self.parts.answers.latest(uid) is not None, "an answer", ANSWER_S)
        wait_until(lambda: len(list(self.pacs.folder.glob("*.dcm"))) > before, "its report", ANSWER_S)
        stored = self.parts.answers.latest(uid)
        assert stored is not None
        return stored.model_id, _ranking(stored.answer.as_json()["cases"])

    def _web(self, http: httpx.Client, _number: int) -> tuple[str, Ranking]:
        csrf = http.get("/api/v1/session").json()["csrf"]
        files = [("file", (p.name, p.read_bytes())) for p in sorted(self.asked_folder.iterdir())]
        until = time.monotonic() + ANSWER_S
        while True:
            posted = http.post("/api/v1/queries", files=files, data={"k": str(K)}, headers={"X-Dicomnode-CSRF": csrf})
            if posted.status_code != TOO_MANY or time.monotonic() > until:
                break
            time.sleep(float(posted.headers.get("retry-after", PACE_S)))  # as many as one person may ask
        if posted.status_code != 202:
            raise Broken(f"HTTP status {posted.status_code}")
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            state = http.get(posted.headers["location"]).json()
            if state["state"] == "failed":
                raise Broken(str(state["error"]))
            if state["state"] == "done":
                self._looked_at(http, state["id"])
                return state["model_id"], _ranking(state["cases"])
            time.sleep(0.1)
        raise Broken("not answered in time")

    @staticmethod
    def _looked_at(http: httpx.Client, result: str) -> None:
        """The page of the answer works too, and asks again by the model that answered."""
        for path in ("", "/graph", f"/graph?k={K - 1}"):
            shown = http.get(f"/api/v1/results/{result}{path}")
            if shown.status_code != 200:
                raise Broken(f"the result's {path or 'page'}: {shown.status_code} {shown.text[:200]}")

    def _find(self, _number: int) -> tuple[str, Ranking]:
        ds = Dataset()
        ds.QueryRetrieveLevel, ds.SOPInstanceUID, ds.StudyInstanceUID = "IMAGE", "", ""
        block = ds.private_block(0x0099, "DICOMNODE 1.0", create=True)
        for element, vr, value in ((1, "UI", self.known), (2, "IS", str(K)), (3, "FD", None), (4, "IS", None)):
            block.add_new(element, vr, value)
        ae = AE(ae_title="WORKSTATION")
        ae.add_requested_context(FIND, ImplicitVRLittleEndian)
        assoc = ae.associate(HOST, self.node.dicom_port, ae_title="DICOMNODE")
        if not assoc.is_established:
            raise Broken("the association was not taken")
        try:
            found: list[tuple[str, float]] = []
            for status, answer in assoc.send_c_find(ds, FIND):
                if status is None or status.Status not in (0x0000, 0xFF00, 0xFF01):
                    raise Broken(f"C-FIND ended with {status}")
                if answer is not None:
                    (similarity,) = struct.unpack("<d", answer[0x0099, 0x1003].value)  # of an unknown private element
                    found.append((str(answer.StudyInstanceUID), similarity))
        finally:
            assoc.release()
        if not found:
            raise Broken("C-FIND found nothing")
        return "", tuple(found)

    @staticmethod
    def _judged(loop: Loop, old: dict[str, Any], new: dict[str, Any]) -> Counter[str]:
        if loop.failures:
            raise Broken(f"{len(loop.failures)} of {len(loop.answers)} failed: {loop.failures[0]}")
        counted: Counter[str] = Counter()
        what = "find" if loop.name == "find" else "study"
        for model, ranking in loop.answers:
            by = [n for n, ref in (("old", old), ("new", new)) if model in ("", ref["model"])]
            of = [n for n in by if _same(ranking, (old if n == "old" else new)[what])]
            if len(of) != 1:
                raise Broken(f"an answer to {loop.name} is neither the old model's nor the new one's: {ranking[:3]}")
            counted[of[0]] += 1
        return counted

    def _arrive_during_a_takeover(self) -> None:
        """Studies that come in while a model takes over are in its index too, whenever they came."""
        late = [self._study(f"LATE-{n}", self.campaign.seed + 100 + n) for n in range(LATE)]
        taking = threading.Thread(target=self._command, args=("models", "activate", NEW))
        taking.start()
        for study in late:
            if set(Workstation().send(study, HOST, self.node.dicom_port, "INDEXONLY")) != {SUCCESS}:
                raise Broken("the study was not taken")
        taking.join()
        wait_until(lambda: len(self.parts.catalogue.study_sources()) == self.campaign.studies + LATE, "them", ANSWER_S)
        self._at_rest()
        index = self.parts.index
        uids = [self.parts.vault.uid(OriginalUid(str(study[0].StudyInstanceUID))) for study in late]
        if self.parts.models.active().manifest.name != NEW or lacking(index.store):
            raise Broken("the model that took over lacks studies")
        if not all(index.has_study(uid) for uid in uids):
            raise Broken("a study that came during the takeover has no vectors of the model in force")

    def _at_rest(self) -> None:
        wait_until(
            lambda: not self.parts.spool.pending() and not list((self.node.var / "work").glob("[0-9]*")),
            "the node to be at rest",
            ANSWER_S,
        )
        if held := self.parts.quarantine.items(state="held"):
            raise Broken(f"in quarantine: {', '.join(i.reason for i in held)}")


def _uid_of(path: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def _ranking(cases: Sequence[dict[str, Any]]) -> Ranking:
    return tuple((str(c["study_uid"]), float(c["similarity"])) for c in cases)


def _same(one: Ranking, other: Ranking) -> bool:
    """The same cases; equal but for rounding, so cases that tie may change places."""
    if len(one) != len(other):
        return False
    scores = dict(other)
    return all(uid in scores and abs(scores[uid] - s) < SAME for uid, s in one)
