"""Three PACSs that are down for long at the same time: one port closed, one refusing associations, one answering A700.

Studies come while they are down; then all are back. Each must end with exactly one of each object of each study, with
the same bytes whatever was sent twice, and the node is at rest.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dicomnode.testing import Pacs, RunningNode, sample_study
from dicomnode.workflow.outbox import MAX_BACKOFF_S

from .campaign import ANSWER_S, SUCCESS, Broken, Evidence, Rounds, new_pacs, send_until_taken, wait_until

OUT_OF_RESOURCES = 0xA700
MOODS = ("port closed", "refuses associations", "out of resources")
OBJECTS = ("sr", "contact-sheet")
SERIES = {"sr": 9901, "contact-sheet": 9910}
STUDIES = 3
DOWN_S = 600.0


class PacsDownCampaign:
    """Rounds on a node each. ``run`` raises ``Broken`` where an object is missing, or there twice.

    Parameters
    ----------
    down_s : float
        How long the PACSs are down.
    """

    def __init__(self, folder: Path, seed: int, *, down_s: float = DOWN_S, studies: int = STUDIES) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.down_s, self.studies = down_s, studies

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        for number in numbers:
            if not self.rounds.has(number):
                said = self._round(number)
                self.rounds.passed(number, said)
                self.rounds.say(f"PACS down {number}: {said}")
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, number: int) -> dict[str, Any]:
        rng = random.Random(f"{self.rounds.seed}/{number}")
        folder = self.folder / f"round-{number}-{time.time_ns()}"
        with ExitStack() as stack:
            hospital = {mood: stack.enter_context(new_pacs(folder / mood.replace(" ", "-"))) for mood in MOODS}
            node = RunningNode(folder / "node", quiet_s=1.0)
            with node.settings.open("a", encoding="utf-8") as settings:
                settings.write("".join(_peer(mood, pacs) for mood, pacs in hospital.items()))
            stack.enter_context(node)
            _down(hospital)
            began = time.monotonic()
            studies = []
            for n in range(self.studies):
                study = sample_study(4, patient_id=f"DOWN-{number}-{n}", seed=rng.randrange(100_000), matrix=64)
                send_until_taken(study, node, "DICOMNODE")
                studies.append(str(study[0].StudyInstanceUID))
            wait_until(lambda: len(_in_vain(node)) == len(MOODS), "a try in vain at each PACS", ANSWER_S)
            time.sleep(max(0.0, self.down_s - (time.monotonic() - began)))
            if any(pacs.received for pacs in hospital.values()):
                raise Broken("a PACS that is down received something")
            _up(hospital)
            back = time.monotonic()
            wait_until(
                lambda: all(len(pacs.received) >= self.studies * len(OBJECTS) for pacs in hospital.values()),
                "each object at each PACS",
                MAX_BACKOFF_S + ANSWER_S,
            )
            delivered = time.monotonic() - back
            evidence = [Evidence(node, folder / mood.replace(" ", "-")) for mood in MOODS]
            wait_until(lambda: not evidence[0].unfinished(), "the node at rest", ANSWER_S, evidence[0].unfinished)
            for one, mood in zip(evidence, MOODS, strict=True):
                for study_uid in studies:
                    _one_of_each(one, study_uid, mood)
            waited = sum(_in_vain(node).values())
        return {
            "down_s": self.down_s,
            "studies": self.studies,
            "objects at each PACS": self.studies * len(OBJECTS),
            "tries in vain": waited,
            "all there after_s": round(delivered, 1),
        }


def _in_vain(node: RunningNode) -> Counter[str]:
    """Tries that failed, by peer."""
    lines = [line for line in node.log.read_bytes().splitlines() if b'"result_waits"' in line]
    return Counter(str(json.loads(line)["peer"]) for line in lines)


def _peer(mood: str, pacs: Pacs) -> str:
    name = mood.replace(" ", "-")
    objects = ", ".join(f'"{o}"' for o in OBJECTS)
    return (
        f'[[dicom.peers]]\nname = "{name}"\nae_title = "{name.upper()[:16]}"\nport = {pacs.port}\n'
        f"results = true\nobjects = [{objects}]\n"
    )


def _down(hospital: dict[str, Pacs]) -> None:
    hospital["port closed"].stop()
    hospital["refuses associations"].refuse = True
    hospital["out of resources"].status = OUT_OF_RESOURCES


def _up(hospital: dict[str, Pacs]) -> None:
    hospital["port closed"].start()
    hospital["refuses associations"].refuse = False
    hospital["out of resources"].status = SUCCESS


def _one_of_each(evidence: Evidence, study_uid: str, mood: str) -> None:
    """Exactly one UID in each series of the node, and one kind of bytes for each UID."""
    found = evidence.answers(study_uid)
    series = sorted(number for _, number in evidence.series(study_uid))
    if series != sorted(SERIES[o] for o in OBJECTS):
        raise Broken(f"{mood}: a study ended with objects in the series {series}")
    if any(len(digests) != 1 for digests in found.values()):
        raise Broken(f"{mood}: different bytes came under one SOP Instance UID")
