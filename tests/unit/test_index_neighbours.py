"""How cases lie to one another: angles that follow likeness, edges to the nearest, the best slice of each."""

from __future__ import annotations

import numpy as np
import pytest
from index_samples import Clusters, fill, open_index, unit

from dicomnode.index.neighbours import angles, best_rows, edges
from dicomnode.index.ranking import Probe, best_pairs


def blobs(n: int = 30, dim: int = 16, seed: int = 0):
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((3, dim)))
    return unit(centres[np.arange(n) % 3] + 0.05 * random.standard_normal((n, dim)))


def apart(a, b):
    return np.abs((a - b + np.pi) % (2 * np.pi) - np.pi)


def test_cases_alike_point_the_same_way_and_others_elsewhere():
    vectors = blobs()
    found = angles(vectors)
    for group in range(3):
        assert apart(found[group::3], found[group]).max() < 0.6
    assert apart(found[0], found[1]) > 0.8


def test_the_same_vectors_give_the_same_angles_and_one_more_case_turns_nothing_round():
    vectors = blobs()
    assert np.array_equal(angles(vectors), angles(vectors.copy()))
    assert apart(angles(vectors)[:29], angles(vectors[:29])).max() < 0.3


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_cases_without_spread_are_spread_evenly(n):
    same = np.repeat(unit(np.ones((1, 8))), n, axis=0)
    found = angles(same)
    assert len(found) == n
    assert len(set(np.round(found, 6))) == n
    assert np.isfinite(found).all()


def test_more_cases_than_dimensions_is_the_same_picture():
    vectors = blobs(60, dim=8)
    found = angles(vectors)
    assert apart(found[0::3], found[0]).max() < 0.6


def test_each_case_has_an_edge_to_its_nearest_and_each_pair_only_one():
    vectors = blobs(20)
    found = edges(vectors)
    assert len({(i, j) for i, j, _ in found}) == len(found)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    for i in range(20):
        for j in np.argsort(-cosines[i])[:3]:
            pair = (min(i, int(j)), max(i, int(j)))
            assert any((a, b) == pair and d == pytest.approx(1 - cosines[i, j], abs=1e-5) for a, b, d in found)
    assert all(i < j and d >= 0 for i, j, d in found)


@pytest.mark.parametrize(("n", "count"), [(0, 0), (1, 0), (2, 1), (3, 3)])
def test_few_cases_have_few_edges(n, count):
    assert len(edges(blobs(30)[:n])) == count


def test_a_thousand_cases_have_the_edges_that_a_whole_sort_finds():
    vectors = blobs(1000, dim=256)
    distance = np.clip(1.0 - (vectors @ vectors.T).astype(np.float64), 0.0, 2.0).round(6)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :3]
    expected = {(min(i, int(j)), max(i, int(j))) for i in range(1000) for j in nearest[i]}
    assert {(i, j) for i, j, _ in edges(vectors)} == expected


def test_the_best_slice_is_that_of_the_best_pair(tmp_path):
    index = open_index(tmp_path)
    clusters = Clusters.make()
    fill(index, clusters, 12)
    now = index.searcher.refresh()
    probe = Probe(clusters.study(1, 5), np.linspace(0, 1, 5, dtype=np.float32))
    numbers = list(range(12))
    expected = [best_pairs(now, probe, n, 1)[0][1] for n in numbers]
    assert best_rows(now, probe, numbers).tolist() == expected
    middle = best_rows(now, None, numbers)
    assert [now.study[row] for row in middle] == numbers
    assert index.store.places([int(now.ids[r]) for r in middle])[int(now.ids[middle[0]])][1] == 0
    index.close()
