"""Kills a receiver, the worker or all of a node with SIGKILL at seeded moments of a study's way, under load.

Each round sends one new study, and small ones beside it all the time. Where the kill strikes: while it is received,
de-identified, embedded, reported or delivered, at a random moment of that phase as long as it usually takes; in some
rounds once more during the recovery. After each round: every acknowledged instance is there, the PACS holds exactly one
answer a study, nothing is left in the spool, and no process that was to end lives on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydicom.dataset import Dataset

from dicomnode.errors import PeerError
from dicomnode.testing import Pacs, RunningNode, Workstation, sample_study

from .campaign import ANSWER_S, SUCCESS, Broken, Evidence, Rounds, new_pacs, send_until_taken, wait_until
from .resources import processes

Phase = Literal["receive", "deid", "embed", "report", "deliver"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Victim = Literal["receiver", "worker", "all"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
# The line of the node's log with which a phase begins: event, and the step that it names.
BEGINS: dict[Phase, tuple[str, str | None]] = {
    "deid": ("study_complete", None),
    "embed": ("step_done", "archive"),
    "report": ("step_done", "retrieve"),
    "deliver": ("step_done", "report"),
}
FIRST_GUESS_S = {"embed": 1.0, "report": 0.1, "deliver": 1.5}
PACS_DELAY_S = 0.6  # of each C-STORE response, so that a kill can strike between the PACS's taking and our marking
QUIET_S = 6.0  # what was not acknowledged is sent again within it: one set of images, so one answer
PATIENCE_S = 3.0  # of a sender whose receiver was killed, well within it
SECOND_KILL_SHARE = 0.3
RECOVERY_S = 10.0
ORPHANS_S = 15.0
QUERY_ONLY_SHARE = 0.2
LOAD_EVERY_S = 2.0
LOAD_SLICES, LOAD_MATRIX = 4, 64


@dataclass(frozen=True)
class Plan:
    """What one round does; drawn from the campaign's seed and the round's number alone."""

    number: int
    phase: Phase
    called: str
    moment: float  # share of the phase ("receive", "deid": of the files) after which the kill strikes
    second_kill_s: float | None  # seconds after the restart
    study_seed: int
    victim: Victim

    @classmethod
    def draw(cls, seed: int, number: int) -> Plan:
        """The plan of a round. Phases take turns, so that any five rounds strike each."""
        rng = random.Random(f"{seed}/{number}")
        return cls(
            number=number,
            phase=PHASES[number % len(PHASES)],
            called="QUERYONLY" if rng.random() < QUERY_ONLY_SHARE else "DICOMNODE",
            moment=rng.random(),
            second_kill_s=rng.uniform(0.0, RECOVERY_S) if rng.random() < SECOND_KILL_SHARE else None,
            study_seed=rng.randrange(100_000),
            victim=rng.choice(VICTIMS),
        )


class Log:
    """The node's log from a moment on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from = path.stat().st_size if path.exists() else 0

    def events(self) -> list[dict[str, Any]]:
        """Events since then; lines that are not events, or not written to the end, are left out."""
        with self._path.open("rb") as f:
            f.seek(self._from)
            lines = f.read().splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [event for event in found if isinstance(event, dict)]

    def has(self, event: str, step: str | None) -> bool:
        """Whether an event was logged."""
        return any(e.get("event") == event and e.get("step") == step for e in self.events())

    def wait_for(self, event: str, step: str | None, timeout: float) -> None:
        """Return within milliseconds of an event."""
        until = time.monotonic() + timeout
        while not self.has(event, step):
            if time.monotonic() > until:
                raise Broken(f"waited {timeout:.0f} s for {event} {step or ''} in the node's log")
            time.sleep(0.005)


class Load:
    """Small studies, one every ``LOAD_EVERY_S`` seconds until told to stop, each sent until all of it is taken."""

    def __init__(self, node: RunningNode, plan: Plan, life: int) -> None:
        self.studies: list[list[Dataset]] = []
        self._node, self._plan, self._life = node, plan, life
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(self._send)

    def _send(self) -> None:
        while not self._stop.is_set():
            who = f"LOAD-{self._plan.number}-{len(self.studies)}-{self._life}"
            study = sample_study(LOAD_SLICES, patient_id=who, seed=self._plan.study_seed, matrix=LOAD_MATRIX)
            send_until_taken(study, self._node, "DICOMNODE", patience=PATIENCE_S)
            self.studies.append(study)
            self._stop.wait(LOAD_EVERY_S)

    def end(self) -> None:
        """Let the last study be taken; a study that was not is raised here."""
        self._stop.set()
        self._running.result(2 * ANSWER_S)
        self._pool.shutdown()


class KillCampaign:
    """A node, a PACS and a workstation; ``run`` plays rounds.

    Parameters
    ----------
    folder : Path
        Holds the node, what the PACS got, the state and the log.
    seed : int
        Draws everything.
    slices, matrix : int
        Size of each study.
    quiet_s : float
        Study-quiet time; what was not acknowledged must be sent again within it.
    """

    def __init__(
        self, folder: Path, seed: int, *, slices: int = 32, matrix: int = 128, quiet_s: float = QUIET_S
    ) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.slices, self.matrix, self.quiet_s = slices, matrix, quiet_s
        self._usual: dict[str, float] = dict(FIRST_GUESS_S)

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each of ``numbers``.

        Raises
        ------
        Broken
            The node lost something, answered twice, or did not come to rest.
        """
        with new_pacs(self.folder / "pacs") as pacs:
            pacs.delay_s = PACS_DELAY_S
            node = RunningNode(self.folder / "node", pacs, quiet_s=self.quiet_s)
            evidence = Evidence(node, self.folder / "pacs")
            with node:
                for number in numbers:
                    if not self.rounds.has(number):
                        plan = Plan.draw(self.rounds.seed, number)
                        said = self._round(node, pacs, evidence, plan)
                        self.rounds.passed(number, said)
                        self.rounds.say(_line(plan, said))
                for said in self.rounds.done.values():  # an answer of an early round must not come again later
                    for study in (said["study"], *said["load"]):
                        evidence.one_answer(study)
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, node: RunningNode, pacs: Pacs, evidence: Evidence, plan: Plan) -> dict[str, Any]:
        life = self.rounds.life
        who = f"KILL-{plan.number}-{life}"
        study = sample_study(self.slices, patient_id=who, seed=plan.study_seed, matrix=self.matrix, name="Kill^Round")
        log, sent_before = Log(node.log), len(pacs.received)
        load = Load(node, plan, life)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(_send, study, node, plan.called)
            after = self._strike(node, log, sending, plan)
            killed = _kill(node, plan)
            statuses = sending.result()
        acknowledged = [ds for ds, status in zip(study, statuses, strict=True) if status == SUCCESS]
        refused = [ds for ds, status in zip(study, statuses, strict=True) if status != SUCCESS]
        reached = _reached(log, len(acknowledged))
        _revive(node, plan)
        restarted = time.monotonic()
        tries = send_until_taken(refused, node, plan.called, patience=PATIENCE_S)
        if plan.second_kill_s is not None:
            time.sleep(max(0.0, plan.second_kill_s - (time.monotonic() - restarted)))
            killed += _kill(node, plan)
            _revive(node, plan)
            restarted = time.monotonic()
        load.end()
        sent = [ds for one in (study, *load.studies) for ds in one]
        if lost := evidence.lost(sent):  # by now all of it is acknowledged
            raise Broken(f"round {plan.number}: {len(lost)} of {len(sent)} acknowledged instances are lost")
        node.wait_ready()
        ready = time.monotonic() - restarted
        wait_until(lambda: not _alive(killed), "the killed processes to end", ORPHANS_S)
        self._learn(log)
        beside = [str(one[0].StudyInstanceUID) for one in load.studies]
        settled = evidence.settle([str(study[0].StudyInstanceUID), *beside])
        return {
            "victim": plan.victim,
            "phase": plan.phase,
            "after_s": round(after, 3),
            "reached": reached,
            "second_kill_s": plan.second_kill_s and round(plan.second_kill_s, 2),
            "called": plan.called,
            "acknowledged": len(acknowledged),
            "sent_again": tries and len(refused),
            "ready_s": round(ready, 1),
            "settled_s": round(settled, 1),
            "deliveries": len(pacs.received) - sent_before,
            "study": str(study[0].StudyInstanceUID),
            "load": beside,
        }

    def _strike(self, node: RunningNode, log: Log, sending: Future[list[int | None]], plan: Plan) -> float:
        """Wait for the moment of the kill; seconds since the phase began."""
        files = int(plan.moment * self.slices)
        if plan.phase == "receive":
            return _until(lambda: _files(node.var / "identified" / "spool") >= files or sending.done())
        sending.result()
        log.wait_for(*BEGINS[plan.phase], timeout=60)
        if plan.phase == "deid":
            return _until(lambda: _files(node.var / "work") >= files or log.has("step_done", "deid"))
        after = plan.moment * self._usual[plan.phase]
        time.sleep(after)
        return after

    def _learn(self, log: Log) -> None:
        """How long the steps take on this machine, for the next kill."""
        for event in log.events():
            if event.get("event") == "step_done" and event["step"] in self._usual:
                self._usual[event["step"]] = event["seconds"]


def _kill(node: RunningNode, plan: Plan) -> list[int]:
    """SIGKILL to the round's victim; the processes that are to end by it. Deaths are certain when this returns."""
    if plan.victim == "all":
        pids = node.pids()
        node.kill()
        return pids
    running = processes(node)
    names = sorted(name for name in running if name.startswith(plan.victim))
    if not names:  # the last kill's victim is not back yet
        return []
    victim = running[random.Random(plan.study_seed).choice(names)]
    pids = [victim.pid, *(child.pid for child in victim.children(recursive=True))]
    victim.send_signal(signal.SIGKILL)
    wait_until(lambda: not _alive([victim.pid]), "the victim to die", ORPHANS_S)
    return pids


def _revive(node: RunningNode, plan: Plan) -> None:
    """A supervisor that was killed is started again by whoever started it; it starts everything else itself."""
    if plan.victim == "all":
        node.launch()


def _until(reached: Callable[[], bool]) -> float:
    """Seconds until a moment, looked for every millisecond."""
    began = time.monotonic()
    while not reached():
        time.sleep(0.001)
    return time.monotonic() - began


def _files(folder: Path) -> int:
    """Files below a folder, also those being written."""
    return sum(len(files) for _, _, files in os.walk(folder))


def _send(study: Sequence[Dataset], node: RunningNode, called: str) -> list[int | None]:
    """Statuses of a sending that the kill may break at any point; None where no answer came."""
    try:
        return Workstation(timeout=PATIENCE_S).send(study, "127.0.0.1", node.dicom_port, called)
    except (PeerError, OSError):
        return [None] * len(study)


def _reached(log: Log, acknowledged: int) -> str:
    """How far the study had come when the kill struck, by the log."""
    said = [e["event"] if e["event"] != "step_done" else e["step"] for e in log.events() if "event" in e]
    known = ("deid", "archive", "embed", "index", "retrieve", "report", "result_delivered", "job_done")
    done = [name for name in said if name in known]
    if done:
        return f"after {done[-1]}"
    return "claimed" if "study_complete" in said else f"{acknowledged} acknowledged"


def _alive(pids: Sequence[int]) -> list[int]:
    """Which of these processes still run; a zombie has ended."""
    found = []
    for pid in pids:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            continue
        if state != "Z":
            found.append(pid)
    return found


def _line(plan: Plan, said: dict[str, Any]) -> str:
    second = f", again {said['second_kill_s']} s after the restart" if said["second_kill_s"] is not None else ""
    return (
        f"kill {plan.number}: {plan.victim}, {plan.phase} + {said['after_s']} s ({said['reached']}){second}; "
        f"{said['called']}: {said['acknowledged']} acknowledged, all there, {len(said['load'])} studies beside; "
        f"ready after {said['ready_s']} s, at rest after {said['settled_s']} s; one answer a study, "
        f"{said['deliveries']} sent"
    )
