"""A PACS that comes and goes while studies are answered: refused associations, A700, a closed port, slow answers.

A round sends a few studies and changes the PACS's mood at seeded moments; then the PACS recovers. Every study must
end with exactly one answer there, whatever was sent twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicomnode.testing import Pacs, RunningNode, sample_study

from .campaign import ANSWER_S, SUCCESS, Evidence, Rounds, new_pacs, send_until_taken

MOODS = ("refuses associations", "out of resources", "port closed", "slow", "well")
OUT_OF_RESOURCES = 0xA700
STUDIES = 4
CHANGES = 8
MOOD_S = (0.5, 4.0)


class FlappingCampaign:
    """Rounds on one node. ``run`` raises ``Broken`` where a study ends without its one answer."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        with new_pacs(self.folder / "pacs") as pacs:
            node = RunningNode(self.folder / "node", pacs, quiet_s=1.0)
            evidence = Evidence(node, self.folder / "pacs")
            with node:
                for number in numbers:
                    if not self.rounds.has(number):
                        rng = random.Random(f"{self.rounds.seed}/{number}")
                        said = self._round(node, pacs, evidence, rng, number)
                        self.rounds.passed(number, said)
                        self.rounds.say(f"flapping {number}: " + ", ".join(f"{k} {v}" for k, v in said.items()))
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(
        self, node: RunningNode, pacs: Pacs, evidence: Evidence, rng: random.Random, number: int
    ) -> dict[str, Any]:
        studies = [
            sample_study(4, patient_id=f"FLAP-{number}-{n}-{self.rounds.life}", seed=rng.randrange(100_000), matrix=64)
            for n in range(STUDIES)
        ]
        moods: list[str] = []
        for change in range(CHANGES):
            moods.append(rng.choice(MOODS))
            stand_in = _set(pacs, moods[-1])
            if change < STUDIES:
                send_until_taken(studies[change], node, "DICOMNODE")
            time.sleep(rng.uniform(*MOOD_S))
            if stand_in:
                pacs.start()
        _set(pacs, "well")
        settled = evidence.settle([str(s[0].StudyInstanceUID) for s in studies], 2 * ANSWER_S)
        tries = node.log.read_text("utf-8").count('"result_waits"')
        return {"moods": "; ".join(moods), "answers that had to wait so far": tries, "settled_s": round(settled, 1)}


def _set(pacs: Pacs, mood: str) -> bool:
    """Put the PACS into a mood; whether it must be started again afterwards."""
    pacs.refuse = mood == "refuses associations"
    pacs.status = OUT_OF_RESOURCES if mood == "out of resources" else SUCCESS
    pacs.delay_s = 2.0 if mood == "slow" else 0.0
    if mood == "port closed":
        pacs.stop()
    return mood == "port closed"
