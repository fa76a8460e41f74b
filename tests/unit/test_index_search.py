"""Search: filters and exclusions inside it, equal to brute force whatever is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import DIM, Clusters, catalogue, exclude, fill, open_index, slices, unit

from dicomnode.domain import Pseudonym, PseudoUid
from dicomnode.errors import DicomnodeError, InputError, ModelMismatch
from dicomnode.index import exact
from dicomnode.index.repository import VectorIndex


def brute_force(queries: np.ndarray, matrix: np.ndarray, k: int, mask: np.ndarray) -> np.ndarray:
    """Positions int64 [m, k] by sorting everything in float64."""
    scores = np.round(queries.astype(np.float64) @ matrix.astype(np.float64).T, 7)
    scores[:, ~mask] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.full((len(queries), k), -1, dtype=np.int64)
    n = min(k, int(mask.sum()))
    found[:, :n] = order[:, :n]
    return found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VectorIndex:
    index = open_index(tmp_path_factory.mktemp("search"))
    fill(index, Clusters.make(), 60, 5)
    return index


def queries(m: int, seed: int = 5) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((m, DIM)))


def test_search_in_an_empty_repository_finds_nothing(tmp_path: Path) -> None:
    ids, similarity = open_index(tmp_path).searcher.search(queries(2), 3)
    assert ids.tolist() == [[-1] * 3] * 2
    assert np.isneginf(similarity).all()


def test_similarity_is_the_cosine_and_ids_are_the_catalogue_s(index: VectorIndex) -> None:
    asked = queries(4)
    ids, similarity = index.searcher.search(asked, 7)
    now = index.searcher.refresh()
    np.testing.assert_array_equal(ids, now.ids[brute_force(asked, now.matrix, 7, np.ones(now.n, bool))])
    rows = now.matrix[np.searchsorted(now.ids, ids)]
    np.testing.assert_allclose(similarity, np.einsum("mkd,md->mk", rows, asked), atol=1e-6)
    assert similarity.dtype == np.float32


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.full((1, DIM), np.nan, np.float32), InputError),
        (np.zeros((1, DIM), np.float32), InputError),
        (np.ones((1, DIM + 1), np.float32), ModelMismatch),
    ],
    ids=["nan", "zero", "other dimension"],
)
def test_queries_that_mean_nothing_are_refused(
    index: VectorIndex, bad: np.ndarray, error: type[DicomnodeError]
) -> None:
    with pytest.raises(error):
        index.searcher.search(bad, 5)


def test_at_least_one_neighbour_must_be_asked_for(index: VectorIndex) -> None:
    with pytest.raises(InputError):
        index.searcher.search(queries(1), 0)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    m=st.integers(1, 6),
    k=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.001, 0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_filtered_search_equals_brute_force(n: int, m: int, k: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = unit(random.standard_normal((n, 8)))
    matrix[n // 2] = matrix[0]  # equal vectors: the older one first
    asked = unit(random.standard_normal((m, 8)))
    mask = random.random(n) < share
    positions, similarity = exact.top_k(asked, matrix, k, mask)
    np.testing.assert_array_equal(positions, brute_force(asked, matrix, k, mask))
    assert np.isneginf(similarity[positions < 0]).all()


def test_blocks_of_queries_give_what_one_product_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, asked = queries(500, 1), queries(9, 2)
    mask = np.ones(500, bool)
    whole = exact.top_k(asked, matrix, 10, mask)
    monkeypatch.setattr(exact, "BLOCK_VALUES", 1000)
    for a, b in zip(exact.top_k(asked, matrix, 10, mask), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_study_in_a_thousand_allowed_gives_all_it_has(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    random = np.random.default_rng(0)
    refs = [ref for i in range(1000) for ref in slices(f"p{i}", f"2.25.{i}", 3)]
    index.add(refs, unit(random.standard_normal((3000, DIM))))
    ids, _ = index.searcher.search(queries(3), 10, allow={PseudoUid("2.25.77")})
    expected = {77 * 3 + i + int(index.store.live_ids()[0]) for i in range(3)}
    for row in ids:
        assert set(row[:3].tolist()) == expected
        assert row[3:].tolist() == [-1] * 7


def test_excluded_studies_and_patients_are_never_returned(index: VectorIndex) -> None:
    now = index.searcher.refresh()
    asked = now.matrix[:10]
    ids, _ = index.searcher.search(
        asked, 300, exclude_patients={Pseudonym("p0000")}, exclude_studies={PseudoUid("2.25.1001")}
    )
    studies = {now.names.studies[s] for s in now.study[np.searchsorted(now.ids, ids[ids >= 0])]}
    assert len(studies) == 58
    assert not studies & {"2.25.1000", "2.25.1001"}


def test_a_patient_excluded_in_the_catalogue_disappears_at_once_and_comes_back(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    refs = slices("p1", "2.25.1", 2)
    catalogue(index, refs)
    index.add(refs, queries(2))
    asked = queries(1)
    assert index.searcher.search(asked, 1)[0][0, 0] >= 0
    exclude(index, "p1")
    assert index.searcher.search(asked, 1)[0][0, 0] == -1
    exclude(index, "p1", excluded=False)
    assert index.searcher.search(asked, 1)[0][0, 0] >= 0


def test_unknown_names_in_a_filter_change_nothing_or_allow_nothing(index: VectorIndex) -> None:
    asked = queries(2)
    everything = index.searcher.search(asked, 5)[0]
    ids, _ = index.searcher.search(asked, 5, exclude_patients={Pseudonym("nobody")})
    np.testing.assert_array_equal(ids, everything)
    assert (index.searcher.search(asked, 5, allow={PseudoUid("2.25.0")})[0] == -1).all()
