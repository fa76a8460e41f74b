"""The quarantine: an item says why, where and what to do, once for a job and a reason, until a person decides."""

from __future__ import annotations

import pytest

from dicomnode.archive import schema as t
from dicomnode.archive.quarantine import DISCARDED, HELD, RELEASED, Quarantine
from dicomnode.errors import NotFound


@pytest.fixture
def quarantine(engine):
    return Quarantine(engine)


def test_an_item_keeps_its_reason_line_place_and_advice(quarantine):
    item = quarantine.item(quarantine.hold("truncated", "ends early", place="(7FE0,0010)", advice="send it", job_id=4))
    assert (item.reason, item.line, item.place, item.advice) == ("truncated", "ends early", "(7FE0,0010)", "send it")
    assert (item.state, item.job_id) == (HELD, 4)
    assert set(item.as_json()) >= {"id", "reason", "state"}


def test_a_step_that_runs_again_does_not_hold_the_same_thing_twice(quarantine):
    one = quarantine.hold("audit", "found", job_id=1)
    assert quarantine.hold("audit", "found", job_id=1) == one
    assert quarantine.hold("burned-in", "text", job_id=1) != one
    assert quarantine.hold("audit", "found", job_id=2) != one
    assert len(quarantine.items()) == 3


def test_without_a_job_the_same_thing_at_the_same_place_is_held_once(quarantine):
    one = quarantine.hold("audit", "found", place="2.25.1")
    assert quarantine.hold("audit", "found", place="2.25.1") == one
    assert quarantine.hold("audit", "found", place="2.25.2") != one
    assert quarantine.hold("audit", "found") != quarantine.hold("audit", "found")


def test_what_was_released_and_fails_again_is_a_new_item(quarantine):
    one = quarantine.hold("audit", "found", job_id=1)
    quarantine.set_state(one, RELEASED)
    assert quarantine.hold("audit", "found", job_id=1) != one


def test_no_item_gets_the_number_of_one_that_was_withdrawn(quarantine):
    first, second = quarantine.hold("audit", "one", job_id=1), quarantine.hold("audit", "two", job_id=2)
    with quarantine.engine.begin() as db:
        db.execute(t.quarantine.delete())
    assert quarantine.hold("audit", "three", job_id=3) == second + 1 == first + 2


def test_items_are_listed_by_state(quarantine):
    held, gone = quarantine.hold("audit", "a", job_id=1), quarantine.hold("audit", "b", job_id=2)
    quarantine.set_state(gone, DISCARDED)
    assert [i.id for i in quarantine.items(state=HELD)] == [held]
    assert [i.id for i in quarantine.items()] == [held, gone]


def test_long_texts_are_cut_to_their_columns(quarantine):
    item = quarantine.item(quarantine.hold("r" * 99, "l" * 999, place="p" * 99, advice="a" * 999))
    assert [len(item.reason), len(item.line), len(item.place), len(item.advice)] == [32, 255, 64, 255]


def test_an_item_that_is_not_there_is_not_found(quarantine):
    with pytest.raises(NotFound, match="quarantine list"):
        quarantine.item(7)
