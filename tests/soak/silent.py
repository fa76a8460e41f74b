"""Clients that stop in the middle: of nothing, of a request, of a PDU, of a data set. Nobody else is to notice.

While they are silent a C-ECHO and a C-STORE go on beside them, timed. Then the node drops them by itself, their slots,
threads and files are free again, and nothing of a half data set is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dicomnode.scp.server import FIRST_PDU_S, IDLE_S
from dicomnode.testing import RunningNode, Workstation, sample_study

from .campaign import SUCCESS, Broken, Rounds, wait_until
from .resources import open_associations, processes, sample
from .wire import ACCEPTED, HOST, STORE_ID, Client, association_request, data_pdu, store_request

DELAY_S = 1.0  # what a silent client may cost anybody else
MANY = 40  # and what so many may cost anybody else; below [dicom] max_associations
LISTEN_S = 12.0  # past the time in which a client must have asked for an association
MARGIN_S = 15.0
UNENDING_S = 3600.0  # the image that is stored again and again does not become a study meanwhile


def _nothing(client: Client) -> None:
    """Connects and says nothing."""


def _half_request(client: Client) -> None:
    request = association_request()
    client.send(request[: len(request) // 2])


def _association(client: Client) -> None:
    if client.associate() != ACCEPTED:
        raise Broken("a client beside others was not given an association")


def _half_pdu(client: Client) -> None:
    _association(client)
    client.send(store_request()[:20])


def _half_data_set(client: Client) -> None:
    _association(client)
    client.send(store_request() + data_pdu(STORE_ID, bytes(4096), command=False, last=False))


KINDS: dict[str, tuple[Callable[[Client], None], float]] = {  # and when the node drops them
    "says nothing": (_nothing, FIRST_PDU_S),
    "half a request": (_half_request, FIRST_PDU_S),
    "associates, then nothing": (_association, IDLE_S),
    "half a PDU": (_half_pdu, IDLE_S),
    "half a data set": (_half_data_set, IDLE_S),
}


class SilentCampaign:
    """Rounds take turns: each kind alone, then many of each. ``run`` raises ``Broken``.

    Parameters
    ----------
    patient : bool
        Wait until the node drops the clients by itself, two minutes for some; else they go away without a word.
    listen_s : float
        Seconds of C-ECHO beside them.
    """

    def __init__(self, folder: Path, seed: int, *, patient: bool = True, listen_s: float = LISTEN_S) -> None:
        self.rounds = Rounds.opened(folder, seed)
        self.folder = folder
        self.patient, self.listen_s = patient, listen_s

    def run(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Play the rounds that were not passed yet; what was seen in each."""
        left = [n for n in numbers if not self.rounds.has(n)]
        if left:
            life = len(list(self.folder.glob("node-*")))
            with RunningNode(self.folder / f"node-{life}", quiet_s=UNENDING_S) as node:
                usual = _worst_of(node, min(3.0, 3 * self.listen_s))
                for number in left:
                    kind = list(KINDS)[number % len(KINDS)]
                    clients = 1 if number // len(KINDS) % 2 == 0 else MANY
                    said = {"kind": kind, "clients": clients, **self._round(node, kind, clients, usual)}
                    self.rounds.passed(number, said)
                    self.rounds.say(f"silent {number}: {said}")
        return [self.rounds.done[str(number)] for number in numbers]

    def _round(self, node: RunningNode, kind: str, clients: int, usual: float) -> dict[str, Any]:
        begin, dropped_after = KINDS[kind]
        of = processes(node)
        before = sample(of)
        with ExitStack() as stack:
            silent = [stack.enter_context(Client(node.dicom_port)) for _ in range(clients)]
            for client in silent:
                begin(client)
            began = time.monotonic()
            worst = _worst_of(node, self.listen_s)
            if worst > usual + DELAY_S:
                raise Broken(f"{clients} x {kind}: somebody else waited {worst:.2f} s, usually {usual:.2f} s")
            if self.patient:
                for client in silent:
                    left = dropped_after + MARGIN_S - (time.monotonic() - began)
                    if not client.wait_closed(max(left, 0.1)):
                        raise Broken(f"{kind}: not dropped after {dropped_after:.0f} s")
            held = time.monotonic() - began
        wait_until(lambda: not open_associations(node), "the slots to be free", MARGIN_S)
        wait_until(lambda: _back(before, sample(of)), f"threads and files to be free after {kind}", MARGIN_S)
        spool = node.var / "identified" / "spool"
        wait_until(lambda: len(list(spool.iterdir())) <= 1, "the half data sets to be gone", MARGIN_S)
        return {"usual_s": round(usual, 3), "worst_s": round(worst, 3), "held_s": round(held, 1)}


def _back(before: dict[str, dict[str, int]], now: dict[str, dict[str, int]]) -> bool:
    return all(now[n][what] <= before[n][what] + 2 for n in before for what in ("threads", "files"))


def _worst_of(node: RunningNode, seconds: float) -> float:
    """The longest that a C-ECHO, or the C-STORE of one small image, took in so many seconds; association included."""
    image = sample_study(1, patient_id="BESIDE", matrix=64)
    worst, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        for ask in (
            lambda: Workstation().echo(HOST, node.dicom_port),
            lambda: Workstation().send(image, HOST, node.dicom_port)[0],
        ):
            began = time.monotonic()
            if ask() != SUCCESS:
                raise Broken("C-ECHO or C-STORE beside silent clients failed")
            worst = max(worst, time.monotonic() - began)
        time.sleep(0.05)
    return worst
