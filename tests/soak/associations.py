"""Many associations at once, more than the node takes: held open first, then each with an image of some study.

What is turned away is tried again, as a modality does, and nothing but "local limit exceeded" turns anybody away. Every
acknowledged image is there, each study is answered once, and the node goes on answering C-ECHO.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.errors import PeerRefused
from dicomnode.testing import RunningNode, Workstation, sample_study

from .campaign import ANSWER_S, POLL_S, SUCCESS, Broken, Evidence, Rounds, new_pacs, wait_until
from .resources import open_associations
from .wire import ACCEPTED, LOCAL_LIMIT_EXCEEDED, RELEASE_REQUEST, RELEASED, Client, association_request

SLICES = 8  # each over an association of its own
STUDIES = 25  # so 200 at once; [dicom] max_associations is 64
QUIET_S = 30.0  # an image that was turned away comes again within it
PATIENCE_S = 60.0  # of a sender: 200 of them share two cores with the node
AT_ONCE = 200
MAX_ASSOCIATIONS = 64  # [dicom] max_associations, which these nodes leave as it is
FREE_S = 15.0


class AssociationsCampaign:
    """Rounds on one node. ``run`` raises ``Broken`` where something is lost or answered twice."""

    def __init__(self, folder: Path, seed: int, *, studies: int = STUDIES, quiet_s: float = QUIET_S) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.studies, self.quiet_s = studies, quiet_s

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        with new_pacs(self.folder / "pacs") as pacs:
            node = RunningNode(self.folder / "node", pacs, quiet_s=self.quiet_s)
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
            sample_study(
                SLICES, patient_id=f"MANY-{number}-{n}-{self.rounds.life}", seed=rng.randrange(100_000), matrix=64
            )
            for n in range(self.studies)
        ]
        images = [ds for study in studies for ds in study]
        rng.shuffle(images)
        held = _hold(node)
        with ThreadPoolExecutor(max(1, len(images))) as pool:
            turned_away = list(pool.map(lambda ds: _send(ds, node), images))
        if lost := evidence.lost(images):
            raise Broken(f"{len(lost)} of {len(images)} acknowledged instances are lost")
        if Workstation().echo("127.0.0.1", node.dicom_port):
            raise Broken("no C-ECHO after many associations")
        reasons = _reasons(node)
        if set(reasons) - {"limit"}:
            raise Broken(f"associations were rejected for {dict(reasons)}")
        settled = evidence.settle([str(s[0].StudyInstanceUID) for s in studies], 3 * ANSWER_S)
        return {
            "held open": held,
            "rejected with local limit exceeded": AT_ONCE - held,
            "senders at once": len(images),
            "senders rejected": sum(turned_away),
            "settled_s": round(settled, 1),
        }


def _hold(node: RunningNode) -> int:
    """Ask for ``AT_ONCE`` associations and keep what is given; how many were. All slots are free when this returns."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(node.dicom_port, PATIENCE_S)) for _ in range(AT_ONCE)]
        for client in clients:
            client.send(association_request())
        given = [client for client in clients if client.receive() == ACCEPTED]
        refused = {client.body for client in clients if client not in given}
        if len(given) != MAX_ASSOCIATIONS or refused != {LOCAL_LIMIT_EXCEEDED}:
            raise Broken(f"of {AT_ONCE} associations {len(given)} were given; the others were told {refused}")
        for client in given:
            client.send(RELEASE_REQUEST)
        if any(client.receive() != RELEASED for client in given):
            raise Broken("a release was not answered")
    wait_until(lambda: not open_associations(node), "the slots to be free", FREE_S)
    return len(given)


def _send(ds: Dataset, node: RunningNode) -> int:
    """Send one image until it is taken; how often the association was rejected. Any other failure is not allowed."""
    until, rejected = time.monotonic() + ANSWER_S, 0
    while time.monotonic() < until:
        try:
            (status,) = Workstation(timeout=PATIENCE_S).send([ds], "127.0.0.1", node.dicom_port)
        except PeerRefused:
            rejected += 1
            time.sleep(POLL_S)
            continue
        if status != SUCCESS:
            raise Broken(f"an accepted association ended without 0000: {status}")
        return rejected
    raise Broken(f"an image was not taken in {ANSWER_S:.0f} s")


def _reasons(node: RunningNode) -> Counter[str]:
    """Why associations were rejected, by the node's log."""
    lines = [line for line in node.log.read_bytes().splitlines() if b'"association_rejected"' in line]
    return Counter(str(json.loads(line)["reason"]) for line in lines)
