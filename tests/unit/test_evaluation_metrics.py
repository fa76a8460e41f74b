"""Figures of retrieval against their definitions, computed by hand and by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomnode.evaluation import metrics
from dicomnode.evaluation.metrics import PerQuery
from dicomnode.models.training import figures

rankings = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=80)


def judged(
    hits: list[int], gains: list[float] | None = None, total: int | None = None, n_open: int | None = None
) -> dict:
    relevant = np.array(hits, dtype=bool)
    return metrics.judge(np.array(gains if gains is not None else hits, dtype=np.float64), relevant, total, n_open)


def table(rows: list[list[int]], classes: list[str], clusters: list[str]) -> PerQuery:
    return metrics.collect([judged(r) for r in rows], np.array(classes), np.array(clusters))


class TestOneRanking:
    def test_by_hand(self):
        found = judged([1, 0, 1, 0])
        assert found["precision"][:4].tolist() == [1, 1 / 2, 2 / 3, 1 / 2]
        assert found["recall"][:4].tolist() == [1 / 2, 1 / 2, 1, 1]
        assert found["ceiling"][:4].tolist() == [1 / 2, 1, 1, 1]
        assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)
        ideal = 1 + 1 / math.log2(3)
        assert found["ndcg"][3] == pytest.approx((1 + 1 / math.log2(4)) / ideal)

    def test_beyond_the_end_of_the_list_precision_is_of_what_there_was(self):
        assert judged([1, 0, 1, 0])["precision"][9] == 1 / 2

    def test_graded_gains_by_hand(self):
        found = judged([0, 1], gains=[0.5, 1.0])
        assert found["ndcg"][0] == pytest.approx(0.5)
        assert found["ndcg"][1] == pytest.approx((0.5 + 1 / math.log2(3)) / (1 + 0.5 / math.log2(3)))

    def test_nothing_relevant_has_no_figures(self):
        found = judged([0, 0, 0])
        assert math.isnan(found["ap"])
        assert np.isnan(found["precision"]).all()
        assert math.isnan(judged([])["ap"])

    def test_a_list_that_does_not_hold_all_relevant_rows_cannot_reach_recall_1(self):
        assert judged([1, 1], total=4)["recall"][1] == 1 / 2

    def test_the_ideal_order_holds_the_relevant_rows_that_the_list_misses(self):
        dcg = np.cumsum([1 / math.log2(i + 2) for i in range(10)])
        for hits in ([1, 1], [1, 1, *[0] * 48]):
            found = judged(hits, total=60)
            assert found["ndcg"][1] == 1.0
            assert found["ndcg"][9] == pytest.approx(dcg[1] / dcg[9])
        assert judged([0, 1], total=2)["ndcg"][1] == pytest.approx((dcg[1] - dcg[0]) / dcg[1])

    def test_places_that_more_rows_could_have_filled_have_no_precision(self):
        found = judged([1, 0, 1], total=9, n_open=40)
        assert found["precision"][2] == pytest.approx(2 / 3)
        assert np.isnan(found["precision"][3:]).all()
        assert np.isnan(found["ndcg"][3:]).all()
        assert found["recall"][9] == pytest.approx(2 / 9)
        assert judged([1, 0, 1], n_open=3)["precision"][9] == pytest.approx(2 / 3)

    @given(rankings)
    @settings(max_examples=150, deadline=None)
    def test_against_the_definitions(self, ranking):
        relevant = [r for r, _ in ranking]
        gains = [g for _, g in ranking]
        found = judged([int(r) for r in relevant], gains)
        if not any(relevant):
            assert math.isnan(found["ap"])
            return
        for k in (1, 2, 5, 10, 50):
            shown = relevant[:k]
            assert found["precision"][k - 1] == pytest.approx(sum(shown) / min(k, len(relevant)))
            assert found["recall"][k - 1] == pytest.approx(sum(shown) / sum(relevant))
            assert found["ceiling"][k - 1] == pytest.approx(min(k, sum(relevant)) / sum(relevant))
            assert found["recall"][k - 1] <= found["ceiling"][k - 1] + 1e-12
            dcg = sum(g / math.log2(i + 2) for i, g in enumerate(gains[:k]))
            best = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(gains, reverse=True)[:k]))
            assert found["ndcg"][k - 1] == pytest.approx(dcg / best if best else 0.0)
        at_hits = [sum(relevant[: i + 1]) / (i + 1) for i, r in enumerate(relevant) if r]
        assert found["ap"] == pytest.approx(sum(at_hits) / sum(relevant))


class TestMeansAndIntervals:
    def test_macro_counts_each_class_once(self):
        values = np.array([1.0, 1.0, 1.0, 0.0])
        assert metrics.macro(values, np.array(["a", "a", "a", "b"])) == 0.5

    def test_queries_without_figures_are_left_out_and_counted(self):
        t = table([[1, 0], [0, 0], [0, 1]], ["a", "a", "b"], ["1", "2", "3"])
        row = metrics.row_of("x", t)
        assert (row["queries"], row["patients"]) == (2, 2)
        assert row["precision"]["1"]["mean"] == 0.5
        assert row["by_class"]["a"]["map"]["mean"] == 1.0

    def test_a_figure_that_one_query_lacks_takes_no_other_figure_from_it(self):
        judgements = [judged([1, 1], total=9, n_open=40), judged([0, *[1] * 49])]
        t = metrics.collect(judgements, np.array(["a", "b"]), np.array(["1", "2"]))
        row = metrics.row_of("x", t)
        assert row["queries"] == 2
        assert row["precision"]["1"]["mean"] == 0.5
        assert row["precision"]["10"] == {"mean": 0.9, "ci": [0.9, 0.9]}
        assert row["by_class"]["a"]["precision"]["10"] == {"mean": None, "ci": [None, None]}
        assert row["by_class"]["a"]["precision"]["1"]["mean"] == 1.0

    def test_no_figures_at_all_are_none_and_no_fault(self):
        row = metrics.row_of("x", table([[0, 0]], ["a"], ["1"]))
        assert row["map"] == {"mean": None, "ci": [None, None]}

    def test_the_same_draws_as_on_model_cards(self):
        random = np.random.default_rng(1)
        values = random.random((40, 5))
        labels = random.integers(0, 2, 40)
        groups = random.integers(0, 9, 40).astype(str)
        card = figures.with_interval(values, labels, groups)
        ours = metrics.figures_of(values, labels.astype(str), groups)
        assert [card["precision"][str(k)] for k in figures.KS] + [card["map"]] == ours

    def test_slices_of_one_patient_are_no_independent_evidence(self):
        values = np.repeat([0.0, 1.0, 0.0, 1.0], 50)[:, None]
        one_class = np.full(200, "a")
        by_patient = metrics.figures_of(values, one_class, np.repeat(["1", "2", "3", "4"], 50))[0]["ci"]
        by_slice = metrics.figures_of(values, one_class, np.arange(200).astype(str))[0]["ci"]
        assert by_patient[1] - by_patient[0] > 3 * (by_slice[1] - by_slice[0])

    def test_a_difference_is_paired(self):
        random = np.random.default_rng(2)
        rows = random.integers(0, 2, (30, 12))
        rows[:, 0] = 1
        better = rows.copy()
        better[:, 1:3] = 1
        classes, clusters = ["a", "b"] * 15, [str(i // 2) for i in range(30)]
        one, other = table(better.tolist(), classes, clusters), table(rows.tolist(), classes, clusters)
        apart = metrics.difference(one, other)
        assert apart["ci"][0] > 0
        alone = metrics.row_of("x", one)["precision"]["10"]["ci"]
        assert apart["ci"][1] - apart["ci"][0] < alone[1] - alone[0]
        assert metrics.difference(one, one) == {"mean": 0.0, "ci": [0.0, 0.0]}

    def test_a_difference_needs_the_same_queries(self):
        one, other = table([[1]], ["a"], ["1"]), table([[1]], ["a"], ["2"])
        with pytest.raises(ValueError, match="same queries"):
            metrics.difference(one, other)

    def test_columns_by_name(self):
        t = table([[1, 0, 1]], ["a"], ["1"])
        assert t.column("precision@2").tolist() == [0.5]
        for wrong in ("precision@0", "precision@51", "precision", "f1@3"):
            with pytest.raises(KeyError):
                t.column(wrong)

    def test_curves_have_all_and_each_class(self):
        curves = metrics.curves_of(table([[1, 0], [0, 1]], ["a", "b"], ["1", "2"]))
        assert set(curves) == {"all", "a", "b"}
        assert curves["all"]["precision"][:2] == [0.5, 0.5]
        assert curves["b"]["recall"][:2] == [0.0, 1.0]
        assert len(curves["a"]["recall"]) == metrics.MAX_K


class TestChance:
    @pytest.mark.parametrize("hits", [[1, 0], [1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1]])
    def test_all_orders_of_a_small_list(self, hits):
        every = [judged(list(order))["ap"] for order in itertools.permutations(hits)]
        places = np.ones(len(hits))
        assert metrics.random_ap(np.array(hits, dtype=float), places) == pytest.approx(np.mean(every))

    def test_a_list_that_is_cut(self):
        every = [np.array(order) for order in itertools.permutations([1, 1, 0, 0, 0, 0])]
        shown = [sum(o[: i + 1].mean() * o[i] for i in range(3)) / 2 for o in every]
        assert metrics.random_ap(np.array([1.0, 1, 0, 0, 0, 0]), np.ones(3)) == pytest.approx(np.mean(shown))

    def test_rows_that_are_relevant_by_chance(self):
        worlds = [judged(list(o))["ap"] for hits in ([1, 1, 0], [1, 0, 0]) for o in itertools.permutations(hits)]
        # a row that may be relevant counts among the two that could be found, in either world
        halved = [ap if i < 6 else ap / 2 for i, ap in enumerate(worlds)]
        assert metrics.random_ap(np.array([1.0, 0.5, 0.0]), np.ones(3)) == pytest.approx(np.mean(halved))

    def test_places_by_counting(self):
        every = [sum(w) for w in itertools.combinations([1, 1, 1, 0, 0], 3)]
        found = metrics.drawn_at_least(3, 5, 3)
        assert found == pytest.approx([np.mean([n >= i for n in every]) for i in (1, 2, 3)])
        assert metrics.drawn_at_least(4, 4, 50).tolist() == [1, 1, 1, 1, *[0] * 46]


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 100, 0.0018, 0.0545)],
    )
    def test_known_values(self, successes, n, low, high):
        assert metrics.wilson(successes, n) == pytest.approx((low, high), abs=1e-4)

    @pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
    def test_what_is_no_proportion(self, successes, n):
        with pytest.raises(ValueError, match="proportion"):
            metrics.wilson(successes, n)
