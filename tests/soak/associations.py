"""Many associations at once, more than the node takes: each study's images come over several of them.

What is turned away is tried again, as a modality does. Every acknowledged image is there, each study is answered once,
and the node goes on answering C-ECHO.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dicomnode.testing import RunningNode, Workstation, sample_study

from .campaign import ANSWER_S, Broken, Evidence, Rounds, new_pacs, send_until_taken

STUDIES = 12
SLICES = 8  # each over an association of its own: 96 at once, [dicom] max_associations is 64
QUIET_S = 15.0  # an image that was turned away comes again within it
SHARED_LOAD_S = 4 * ANSWER_S


class AssociationsCampaign:
    """Rounds on one node. ``run`` raises ``Broken`` where something is lost or answered twice."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        with new_pacs(self.folder / "pacs") as pacs:
            node = RunningNode(self.folder / "node", pacs, quiet_s=QUIET_S)
            evidence = Evidence(node, self.folder / "pacs")
            with node:
                for number in numbers:
                    if not self.rounds.has(number):
                        rng = random.Random(f"{self.rounds.seed}/{number}")
                        said = self._round(node, evidence, rng, number)
                        self.rounds.passed(number, said)
                        self.rounds.say(f"associations {number}: " + ", ".join(f"{k} {v}" for k, v in said.items()))
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, node: RunningNode, evidence: Evidence, rng: random.Random, number: int) -> dict[str, Any]:
        studies = [
            sample_study(SLICES, patient_id=f"MANY-{number}-{n}", seed=rng.randrange(100_000), matrix=64)
            for n in range(STUDIES)
        ]
        images = [ds for study in studies for ds in study]
        rng.shuffle(images)
        with ThreadPoolExecutor(len(images)) as pool:
            tries = list(pool.map(lambda ds: send_until_taken([ds], node, "DICOMNODE"), images))
        if lost := evidence.lost(images):
            raise Broken(f"{len(lost)} of {len(images)} acknowledged instances are lost")
        if Workstation().echo("127.0.0.1", node.dicom_port):
            raise Broken("no C-ECHO after many associations")
        settled = evidence.settle([str(s[0].StudyInstanceUID) for s in studies], SHARED_LOAD_S)
        return {
            "associations": sum(tries),
            "images sent more than once": sum(n > 1 for n in tries),
            "settled_s": round(settled, 1),
        }
