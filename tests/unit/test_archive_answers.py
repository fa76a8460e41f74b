"""Answers are computed once for a study, its images and a model; results live until they are delivered or refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from archive_samples import MODEL, OTHER, STUDY, an_answer

from dicomnode.archive.answers import DELIVERED, FAILED, PENDING, Answers, QuerySlice, set_hash
from dicomnode.domain import ModelId, PseudoUid, Role, VerdictKind
from dicomnode.errors import NotFound

A, B = PseudoUid("2.25.10.1.1"), PseudoUid("2.25.10.1.2")
WAITS = (10.0, 100.0, 300.0)  # after the first, the second, any later failed try


@pytest.fixture
def answers(engine):
    return Answers(engine)


def add(answers: Answers, instances=(A,), study=STUDY, **changes):
    return answers.add(study, instances, an_answer(**changes), role=Role.INDEX_QUERY)


def test_an_answer_comes_back_as_it_was_stored(answers):
    stored = add(answers)
    assert stored.answer == an_answer()
    assert answers.by_id(stored.id) == answers.by_token(stored.token) == answers.latest(STUDY) == stored
    assert len(stored.token) == 32  # 128 random bits
    assert (stored.instance_number, stored.predecessor_id) == (1, None)


def test_an_answer_is_computed_once_for_a_study_its_images_and_a_model(answers):
    first = add(answers, (A, B))
    again = add(answers, (B, A, A), kind=VerdictKind.NONE)  # the stored one wins, whatever was computed since
    assert again == first
    assert answers.find(STUDY, [B, A], MODEL) == first
    assert answers.find(STUDY, [A], MODEL) is None
    assert answers.find(STUDY, [A, B], ModelId("sha256:two")) is None
    assert answers.find(OTHER, [A, B], MODEL) is None


def test_late_images_and_a_new_model_make_a_next_answer_that_names_the_one_before(answers):
    first = add(answers)
    late = add(answers, (A, B))
    other_model = add(answers, (A, B), model="sha256:two")
    assert [late.instance_number, other_model.instance_number] == [2, 3]
    assert [late.predecessor_id, other_model.predecessor_id] == [first.id, late.id]
    assert answers.latest(STUDY) == other_model
    assert answers.first_created(STUDY) == first.created
    assert len({first.token, late.token, other_model.token}) == 3


def test_two_workers_that_answer_at_once_make_one_answer(answers):
    made = []
    threads = [threading.Thread(target=lambda: made.append(add(answers).id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 6
    assert len(set(made)) == 1


def test_the_set_of_images_does_not_depend_on_order_or_repetition():
    assert set_hash([A, B]) == set_hash([B, A, B]) != set_hash([A])


def test_an_answer_that_is_not_there_is_not_found(answers):
    for look in (lambda: answers.by_id(1), lambda: answers.by_token("00"), lambda: answers.result(1)):
        with pytest.raises(NotFound):
            look()
    assert answers.latest(STUDY) is None


def test_key_slices_come_back_and_are_forgotten_after_their_time(answers):
    vector = np.arange(4, dtype=np.float32)
    slices = [QuerySlice(A, 0, "s/a.dcm", vector), QuerySlice(B, 1, "s/b.dcm", vector + 1)]
    stored = answers.add(STUDY, [A, B], an_answer(), role=Role.QUERY, slices=slices)
    kept = answers.slices(stored.id)
    assert [(k.instance_uid, k.frame, k.path) for k in kept] == [(A, 0, "s/a.dcm"), (B, 1, "s/b.dcm")]
    assert np.array_equal(kept[1].vector, vector + 1)
    assert answers.slice_path(B) == "s/b.dcm"
    assert answers.drop_slices(stored.created) == []
    assert answers.drop_slices(stored.created + 1) == ["s/a.dcm", "s/b.dcm"]
    assert (answers.slices(stored.id), answers.slice_path(B)) == ([], None)
    assert answers.by_id(stored.id) == stored


def test_a_key_slice_that_a_later_answer_still_shows_keeps_its_file(answers):
    """Two answers of a study share the file of a slice; it goes with the last of them."""
    vector = np.zeros(2, np.float32)
    early = answers.add(STUDY, [A], an_answer(), role=Role.QUERY, slices=[QuerySlice(A, 0, "s/a.dcm", vector)])
    late = answers.add(STUDY, [A, B], an_answer(), role=Role.QUERY, slices=[QuerySlice(A, 0, "s/a.dcm", vector)])
    between = (early.created + late.created) / 2
    assert answers.drop_slices(between) == []
    assert answers.drop_slices(late.created + 1) == ["s/a.dcm"]


def test_a_result_is_made_once_for_an_answer_a_kind_and_a_destination(answers):
    stored = add(answers)
    one = answers.add_result(stored.id, "sr", "pacs")
    assert answers.add_result(stored.id, "sr", "pacs") == one
    assert answers.add_result(stored.id, "sr", "other") != one
    assert answers.add_result(stored.id, "contact-sheet", "pacs") != one
    assert answers.count_pending() == 3


def test_a_result_lives_from_pending_over_retries_to_delivered_and_again(answers):
    result = answers.add_result(add(answers).id, "sr", "pacs")
    answers.mark_retry(result, next_try=50.0, error="no connection")
    row = answers.result(result)
    assert (row.state, row.attempts, row.next_try, row.error) == (PENDING, 1, 50.0, "no connection")
    answers.mark_delivered(result)
    row = answers.result(result)
    assert (row.state, row.attempts, row.error) == (DELIVERED, 2, None), "the try that succeeds counts too"
    assert row.delivered is not None
    assert answers.count_pending() == 0
    answers.mark_resend(result)
    row = answers.result(result)
    assert (row.state, row.attempts, row.resends, row.next_try) == (PENDING, 0, 1, 0.0)
    answers.mark_retry(result, next_try=50.0, error="no connection")
    answers.mark_resend(result)
    assert answers.result(result).attempts == 1, "it waits anyway: the backoff goes on"
    answers.mark_failed(result, "x" * 300)
    row = answers.result(result)
    assert (row.state, len(row.error)) == (FAILED, 255)


def test_results_are_due_when_their_time_has_come(answers):
    result = answers.add_result(add(answers).id, "sr", "pacs")
    assert [r.id for r in answers.due(1000.0, WAITS)] == [result]
    answers.mark_retry(result, next_try=1010.0, error="")
    assert answers.due(1009.0, WAITS) == []
    assert [r.id for r in answers.due(1010.0, WAITS)] == [result]
    answers.mark_delivered(result)
    assert answers.due(2000.0, WAITS) == []


def test_a_clock_that_was_set_back_does_not_hold_a_result_for_years(answers):
    result = answers.add_result(add(answers).id, "sr", "pacs")
    answers.mark_retry(result, next_try=2_000_000_000.0, error="")
    assert [r.id for r in answers.due(1_700_000_000.0, WAITS)] == [result]


def test_a_clock_that_was_set_back_by_minutes_delays_a_try_by_no_more_than_its_own_wait(answers):
    result = answers.add_result(add(answers).id, "sr", "pacs")
    answers.mark_retry(result, next_try=1010.0, error="")  # it waits 10 s from 1000
    assert answers.due(1001.0, WAITS) == []
    assert [r.id for r in answers.due(700.0, WAITS)] == [result], "five minutes back"
    for _ in range(5):
        answers.mark_retry(result, next_try=1300.0, error="")  # it waits 300 s, the longest
    assert answers.due(1001.0, WAITS) == []
    assert [r.id for r in answers.due(900.0, WAITS)] == [result]


def test_results_are_listed_by_answer_and_by_keyed_accession_number(answers):
    one, other = add(answers), add(answers, study=OTHER)
    mine = answers.add_result(one.id, "sr", "pacs")
    answers.add_result(other.id, "sr", "pacs")
    answers.set_accession(one.id, "keyed-hash")
    assert [r.id for r in answers.results(answer_id=one.id)] == [mine]
    assert [(r.id, r.study_uid) for r in answers.results(accession="keyed-hash")] == [(mine, STUDY)]
    assert answers.results(accession="another") == []
    assert len(answers.results()) == 2
