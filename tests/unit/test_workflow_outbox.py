"""Delivery to real storage SCPs: until it is taken, or refused for good, and one dead peer delays no other."""

from __future__ import annotations

import threading
import time

import pytest
from archive_samples import an_answer
from pydicom import dcmread

from dicomnode.archive.answers import DELIVERED, FAILED, PENDING
from dicomnode.domain import PseudoUid, Role
from dicomnode.errors import PeerError
from dicomnode.testing import Pacs, free_port, sample_study, write_study
from dicomnode.workflow.outbox import MAX_BACKOFF_S, Outbox, backoff_s

WAIT_S = 20.0


class Delivery:
    """An outbox of a node, ticked by hand, with the connections that it made."""

    def __init__(self, node) -> None:
        self.node = node
        self.sent: list[str] = []
        self.settled = 0
        self.outbox = Outbox(
            node.answers, node.folders, node.destinations, self._send, node.metrics, lambda: self._after()
        )

    def _send(self, destination, file) -> None:
        self.sent.append(destination.name)
        self.node.send(destination, file)

    def _after(self) -> None:
        self.settled += 1

    def queue(self, destination: str, n: int = 1) -> list[int]:
        """Results with a real object each."""
        made = []
        for k in range(n):
            study = PseudoUid(f"2.25.{destination.encode().hex()[:6]}{k}".replace("a", "1"))
            answer = self.node.answers.add(study, [PseudoUid("2.25.1")], an_answer(), role=Role.QUERY)
            result = self.node.answers.add_result(answer.id, "sr", destination)
            folder = self.node.folders.outbox / f"made-{result}"
            (path,) = write_study(sample_study(1, matrix=32, seed=result), folder)
            path.rename(self.node.folders.sent(result))
            folder.rmdir()
            made.append(result)
        return made

    def round(self) -> None:
        """One tick, waited for."""
        self.outbox.tick()
        deadline = time.monotonic() + WAIT_S
        while any(not f.done() for f in self.outbox._busy.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for future in self.outbox._busy.values():
            future.result()

    def state(self, result: int) -> str:
        return self.node.answers.result(result).state

    def now_due(self, result: int) -> None:
        self.node.answers.mark_retry(result, next_try=0.0, error="")


@pytest.fixture
def pacs():
    with Pacs() as pacs:
        yield pacs


@pytest.fixture
def delivery(make_node, tmp_path, pacs):
    return Delivery(make_node(tmp_path, pacs))


def test_the_wait_doubles_up_to_five_minutes():
    assert [backoff_s(n) for n in range(4)] == [2.0, 4.0, 8.0, 16.0]
    assert backoff_s(8) == backoff_s(1000) == MAX_BACKOFF_S == 300.0


def test_a_result_is_delivered_byte_for_byte_and_once(delivery, pacs):
    (result,) = delivery.queue("pacs-1")
    delivery.round()
    delivery.round()
    (received,) = pacs.wait_for(1)
    sent = dcmread(delivery.node.folders.sent(result))
    assert dcmread(received) == sent
    assert delivery.state(result) == DELIVERED
    assert (delivery.sent, delivery.settled) == (["pacs-1"], 1)


def test_a_dead_peer_costs_one_connection_a_round_and_waits_longer_each_time(make_node, tmp_path):
    delivery = Delivery(make_node(tmp_path, Pacs(port=free_port())))
    results = delivery.queue("pacs-1", 3)
    delivery.round()
    assert delivery.sent == ["pacs-1"]
    rows = [delivery.node.answers.result(r) for r in results]
    assert {(r.state, r.attempts) for r in rows} == {(PENDING, 1)}
    assert all(0 < r.next_try - time.time() <= backoff_s(0) for r in rows)
    delivery.round()
    assert delivery.sent == ["pacs-1"]  # not due yet
    for result in results:
        delivery.now_due(result)  # counts as an attempt
    delivery.round()
    row = delivery.node.answers.result(results[0])
    assert row.attempts == 3
    assert backoff_s(1) < row.next_try - time.time() <= backoff_s(2)
    assert row.error


def test_a_peer_that_comes_back_gets_everything(make_node, tmp_path):
    port = free_port()
    delivery = Delivery(make_node(tmp_path, Pacs(port=port)))
    results = delivery.queue("pacs-1", 2)
    delivery.round()
    with Pacs(port=port) as pacs:
        for result in results:
            delivery.now_due(result)
        delivery.round()
        pacs.wait_for(2)
    assert [delivery.state(r) for r in results] == [DELIVERED] * 2


def test_a_dead_peer_does_not_delay_another(make_node, tmp_path, pacs):
    slow = threading.Event()
    delivery = Delivery(make_node(tmp_path, pacs, Pacs(port=free_port())))
    send = delivery._send

    def held(destination, file) -> None:
        if destination.name == "pacs-2":
            assert slow.wait(WAIT_S)
            raise PeerError("no connection")
        send(destination, file)

    delivery.outbox._send = held
    (stuck,), (quick,) = delivery.queue("pacs-2"), delivery.queue("pacs-1")
    delivery.outbox.tick()
    pacs.wait_for(1)
    slow.set()
    delivery.round()
    assert delivery.state(quick) == DELIVERED
    assert delivery.state(stuck) == PENDING


def test_a_peer_that_does_not_know_us_yet_gets_everything_once_it_does(delivery, pacs):
    pacs.refuse = True
    results = delivery.queue("pacs-1", 2)
    delivery.round()
    assert delivery.sent == ["pacs-1"]
    assert [delivery.state(r) for r in results] == [PENDING] * 2
    pacs.refuse = False
    for result in results:
        delivery.now_due(result)
    delivery.round()
    assert [delivery.state(r) for r in results] == [DELIVERED] * 2


def test_a_peer_that_takes_no_such_object_ends_the_tries_until_somebody_asks(make_node, tmp_path):
    port = free_port()
    delivery = Delivery(make_node(tmp_path, Pacs(port=port)))
    results = delivery.queue("pacs-1", 2)
    with Pacs(port=port, sop_classes=["1.2.840.10008.5.1.4.1.1.4"]):  # MR, and what is sent is CT
        delivery.round()
    assert [delivery.state(r) for r in results] == [FAILED] * 2
    delivery.node.answers.mark_resend(results[0])
    with Pacs(port=port) as pacs:
        delivery.round()
        pacs.wait_for(1)
    assert [delivery.state(r) for r in results] == [DELIVERED, FAILED]


def test_a_peer_that_is_out_of_resources_is_tried_again(delivery, pacs):
    pacs.status = 0xA700
    (result,) = delivery.queue("pacs-1")
    delivery.round()
    assert delivery.state(result) == PENDING
    pacs.status = 0x0000
    delivery.now_due(result)
    delivery.round()
    assert delivery.state(result) == DELIVERED


def test_a_peer_that_cannot_understand_the_object_refuses_it_for_good(delivery, pacs):
    pacs.status = 0xC000
    (result,) = delivery.queue("pacs-1")
    delivery.round()
    assert delivery.state(result) == FAILED
    assert "pacs-1" in (delivery.node.answers.result(result).error or "")


def test_an_object_that_is_no_longer_kept_fails_with_what_to_do(delivery, pacs):
    (result,) = delivery.queue("pacs-1")
    delivery.node.folders.sent(result).unlink()
    delivery.node.answers.mark_resend(result)
    delivery.round()
    assert delivery.state(result) == FAILED
    assert "send the study again" in (delivery.node.answers.result(result).error or "")
    assert pacs.received == []


def test_a_result_whose_object_is_yet_to_be_written_waits_for_it(delivery, pacs):
    (result,) = delivery.queue("pacs-1")
    file = delivery.node.folders.sent(result)
    file.rename(file.with_suffix(".part"))
    delivery.round()
    assert (delivery.state(result), delivery.node.answers.result(result).attempts) == (PENDING, 0)
    file.with_suffix(".part").rename(file)
    delivery.round()
    assert delivery.state(result) == DELIVERED


def test_an_outbox_at_rest_notices_the_next_result(delivery, pacs):
    delivery.round()
    delivery.round()
    (result,) = delivery.queue("pacs-1")
    delivery.round()
    assert delivery.state(result) == DELIVERED


def test_a_result_for_a_peer_that_left_the_settings_fails_with_its_name(delivery):
    (result,) = delivery.queue("gone")
    delivery.round()
    assert delivery.state(result) == FAILED
    assert "peer gone" in (delivery.node.answers.result(result).error or "")


def test_the_outbox_stops_when_it_is_told_to(delivery, pacs):
    stop = threading.Event()
    thread = threading.Thread(target=delivery.outbox.run, args=(stop,))
    thread.start()
    (result,) = delivery.queue("pacs-1")
    pacs.wait_for(1)
    stop.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    deadline = time.monotonic() + WAIT_S
    while delivery.state(result) != DELIVERED:  # what was under way is finished
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_fault_of_the_database_is_logged_and_delivery_goes_on(delivery, pacs):
    engine = delivery.node.answers.engine
    with engine.begin() as db:
        db.exec_driver_sql("ALTER TABLE results RENAME TO away")
    stop = threading.Event()
    thread = threading.Thread(target=delivery.outbox.run, args=(stop,))
    thread.start()
    time.sleep(1.0)  # a round or two that fail
    with engine.begin() as db:
        db.exec_driver_sql("ALTER TABLE away RENAME TO results")
    try:
        assert thread.is_alive()
        delivery.queue("pacs-1")
        pacs.wait_for(1)
    finally:
        stop.set()
        thread.join(WAIT_S)


def test_a_fault_in_a_delivery_is_not_lost(delivery):
    def broken(_destination, _file) -> None:
        raise RuntimeError("a fault")

    delivery.outbox._send = broken
    delivery.queue("pacs-1")
    with pytest.raises(RuntimeError):
        delivery.round()
    with pytest.raises(RuntimeError):  # told by the next round, which then goes on
        delivery.outbox.tick()
