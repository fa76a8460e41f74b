"""Which rows are open, what is relevant, and that a pack is ranked by the node's own index as by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import unit

from dicomnode.domain import ModelId
from dicomnode.errors import InputError
from dicomnode.evaluation.labels import Row
from dicomnode.evaluation.rank import cosine_ranker, distance_ranker, index_ranker
from dicomnode.evaluation.task import Rules, Task, agreement

MODEL = ModelId("sha256:test")


def row(name: str, label: str = "x", group: str = "", profile: tuple[float, ...] = ()) -> Row:
    return Row(Path(f"/images/{name}"), label, group, profile=profile)


def task(index: list[Row], queries: list[Row], rules: Rules | None = None, small=None) -> Task:
    random = np.random.default_rng(0)
    a, b = small or (unit(random.standard_normal((len(index), 64))), unit(random.standard_normal((len(queries), 64))))
    return Task(index, queries, a, b, rules or Rules())


class TestOpenRows:
    def test_self_and_own_patient_are_closed(self):
        t = task([row("a"), row("b", group="1"), row("c", group="2"), row("q")], [row("q", group="1")])
        assert t.open_rows(0).tolist() == [True, False, True, False]

    def test_images_without_a_patient_are_nobody_elses(self):
        t = task([row("a"), row("b")], [row("q")])
        assert t.open_rows(0).all()

    def test_near_copies_are_closed_and_counted_unless_the_protocol_leaves_them_open(self):
        small = unit(np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])), unit(np.array([[1.0, 0.0]]))
        index, queries = [row("a", group="1"), row("b", group="2"), row("c", group="3")], [row("q", group="1")]
        t = task(index, queries, small=small)
        assert t.open_rows(0).tolist() == [False, False, True]
        assert t.near_copies() == (1, 1)  # the one of the own patient is no leak between patients
        leaky = task(index, queries, Rules(close_group=False, close_near=False), small)
        assert leaky.open_rows(0).all()
        assert leaky.near_copies() == (1, 1)


class TestAgreement:
    def test_by_hand(self):
        profile, others = np.array([0.5, 0.0]), np.array([[0.5, 0.0], [0.0, 0.5], [0.25, 0.0], [0.0, 0.0]])
        e = 0.02
        assert agreement(profile, others) == pytest.approx([1.0, e / (1 + e), (0.25 + e) / (0.5 + e), e / (0.5 + e)])

    def test_two_clear_lungs_agree(self):
        assert agreement(np.zeros(6), np.zeros((1, 6)))[0] == 1.0

    @given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.lists(st.floats(0, 1), min_size=6, max_size=6))
    @settings(max_examples=80, deadline=None)
    def test_it_is_symmetric_and_between_0_and_1(self, a, b):
        one, other = agreement(np.array(a), np.array([b]))[0], agreement(np.array(b), np.array([a]))[0]
        assert one == pytest.approx(other)
        assert 0 < one <= 1
        mean_gap = np.mean(np.abs(np.subtract(a, b)))
        assert one == pytest.approx(1 - mean_gap / (np.mean(np.maximum(a, b)) + 0.01))


class TestRanking:
    @given(st.integers(0, 10_000), st.integers(2, 40))
    @settings(max_examples=10, deadline=None)
    def test_the_index_ranks_as_brute_force_with_closed_rows_left_out(self, seed, n):
        random = np.random.default_rng(seed)
        index, queries = unit(random.standard_normal((n, 8))), unit(random.standard_normal((2, 8)))
        index[n // 2] = index[0]  # a tie: the older row first
        mask = random.random(n) < 0.7
        cosines = np.round(queries[1].astype(np.float64) @ index.T.astype(np.float64), 7)
        expected = sorted(np.flatnonzero(mask).tolist(), key=lambda i: (-cosines[i], i))
        with index_ranker(MODEL, index, queries) as ranker:
            assert ranker(1, mask).tolist() == expected
            assert ranker(0, np.zeros(n, dtype=bool)).tolist() == []
        assert cosine_ranker(index, queries)(1, mask).tolist() == expected
        apart = np.round(np.linalg.norm(index.astype(float) - queries[1].astype(float), axis=1), 7)
        nearest = sorted(np.flatnonzero(mask).tolist(), key=lambda i: (apart[i], i))
        assert distance_ranker(index.astype(float), queries.astype(float))(1, mask).tolist() == nearest

    def test_what_is_no_unit_vector_is_refused_as_by_a_node(self):
        index = np.ones((3, 8), dtype=np.float32)
        with pytest.raises(InputError, match="not of length 1"), index_ranker(MODEL, index, index):
            pass

    def test_measure_by_hand(self):
        index = [row("a", "x", "1"), row("b", "y", "2"), row("c", "x", "3"), row("d", "x", "9")]
        t = task(index, [row("q", "x", "9")])
        table = t.measure(lambda _query, mask: np.array([1, 0, 2])[mask[[1, 0, 2]]])
        assert table.precision[0, :3].tolist() == [0, 1 / 2, 2 / 3]
        assert table.ap[0] == pytest.approx((1 / 2 + 2 / 3) / 2)

    def test_shuffled_relevance_is_of_the_other_rows(self):
        t = task([row("a", "x", "1"), row("b", "y", "2")], [row("q", "x", "9")])
        order = np.array([0, 1])
        assert t.measure(lambda *_: order).precision[0, 0] == 1
        assert t.measure(lambda *_: order, np.array([1, 0])).precision[0, 0] == 0

    def test_graded_relevance(self):
        index = [row("a", "x", "1", (0.5, 0.0)), row("b", "x", "2", (0.0, 0.0))]
        gains, relevant = task(index, [row("q", "x", "3", (0.5, 0.0))], Rules(graded=True)).relevance(0)
        assert gains[0] == 1.0
        assert relevant.tolist() == [True, False]
