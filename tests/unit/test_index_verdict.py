"""The verdict: "none" for what does not belong here, one false alarm in twenty for what does, silence below 20."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_samples import DIM, Clusters, catalogue, exclude, fill, open_index, slices, unit
from structlog.testing import capture_logs

from dicomnode.domain import Pseudonym, PseudoUid, Verdict, VerdictKind
from dicomnode.index import verdict
from dicomnode.index.cases import QueryStudy
from dicomnode.index.repository import VectorIndex


def ask(index: VectorIndex, vectors: np.ndarray, patient: str | None = None) -> Verdict:
    own = None if patient is None else Pseudonym(patient)
    query = QueryStudy(slices("q", "2.25.7", len(vectors)), vectors, patient=own)
    return index.retriever.retrieve(query).verdict


def cache(index: VectorIndex) -> Path:
    return verdict.cache_path(index.store.folder, index.store.model_id)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VectorIndex:
    index = open_index(tmp_path_factory.mktemp("verdict"))
    fill(index, Clusters.make(), 80)
    return index


def outlier(n: int = 4) -> np.ndarray:
    centres = Clusters.make().centres
    direction = np.random.default_rng(3).standard_normal(DIM)
    direction -= np.linalg.lstsq(centres.T, direction, rcond=None)[0] @ centres
    return unit(direction + 0.1 * np.random.default_rng(4).standard_normal((n, DIM)))


def test_what_belongs_to_the_repository_is_similar(index: VectorIndex) -> None:
    given_back = ask(index, Clusters.make().study(0, 4))
    assert given_back.kind is VerdictKind.SIMILAR
    assert given_back.p is not None
    assert 0.05 <= given_back.p <= 1


@pytest.mark.parametrize("n", [1, 4, 32])
def test_what_does_not_belong_has_no_similar_case_whatever_its_number_of_slices(index: VectorIndex, n: int) -> None:
    given_back = ask(index, outlier(n))
    assert given_back.kind is VerdictKind.NONE
    assert given_back.p == pytest.approx(1 / 81)
    assert given_back.no_similar_case


@pytest.mark.parametrize("n", [1, 4])
def test_one_study_in_twenty_that_belongs_is_flagged(index: VectorIndex, n: int) -> None:
    clusters = Clusters.make()
    clusters.random = np.random.default_rng(11)
    alarms = np.mean([ask(index, clusters.study(i % 4, n)).no_similar_case for i in range(200)])
    assert 0.005 <= alarms <= 0.11


@pytest.mark.parametrize(("patients", "kind"), [(19, VerdictKind.REPOSITORY_TOO_SMALL), (20, VerdictKind.NONE)])
def test_below_twenty_other_patients_nothing_is_said(tmp_path: Path, patients: int, kind: VerdictKind) -> None:
    index = open_index(tmp_path)
    fill(index, Clusters.make(clusters=1), patients)
    given_back = ask(index, outlier())
    assert given_back.kind is kind
    assert (given_back.p is None) == (kind is VerdictKind.REPOSITORY_TOO_SMALL)
    assert (given_back.reason == "19 patients in the repository; a statement needs 20") == (given_back.p is None)


def test_the_query_s_own_patient_does_not_count_as_a_neighbour_or_as_reference(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    fill(index, Clusters.make(clusters=1), 25)
    own = outlier()
    refs = slices("me", "2.25.7", 4)
    catalogue(index, refs)
    index.add(refs, own)
    given_back = ask(index, own, patient="me")
    assert given_back.kind is VerdictKind.NONE
    assert given_back.p == pytest.approx(1 / 26)


def test_excluded_patients_are_no_reference(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    fill(index, Clusters.make(clusters=1), 21)
    exclude(index, "p0000")
    exclude(index, "p0001")
    assert ask(index, outlier()).kind is VerdictKind.REPOSITORY_TOO_SMALL


@given(st.lists(st.floats(0, 2), min_size=20, max_size=60), st.floats(0, 2))
def test_p_is_the_share_of_patients_at_least_as_far_out(reference: list[float], query: float) -> None:
    given_back = verdict.decide(query, np.asarray(reference), len(reference))
    expected = (1 + sum(r >= query for r in reference)) / (len(reference) + 1)
    assert given_back.p == pytest.approx(expected)
    assert given_back.kind is (VerdictKind.NONE if expected < 0.05 else VerdictKind.SIMILAR)


def test_the_reference_is_kept_for_the_next_process_and_made_again_when_it_no_longer_fits(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    fill(index, Clusters.make(), 30)
    ask(index, Clusters.make().study(0, 4))
    path = cache(index)
    first = path.read_bytes()
    ask(open_index(tmp_path), Clusters.make().study(1, 4))
    assert path.read_bytes() == first
    index.add(slices("new", "2.25.9", 4), Clusters.make().study(2, 4))
    ask(open_index(tmp_path), Clusters.make().study(1, 4))
    assert len(json.loads(path.read_bytes())["4"]["patients"]) == 31


def test_a_damaged_reference_is_computed_again(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    fill(index, Clusters.make(), 30)
    before = ask(index, outlier())
    for rubbish in (b"", b"{", b"[]", b'{"4": {"stamp": {}}}', b"\xff"):
        cache(index).write_bytes(rubbish)
        assert ask(open_index(tmp_path), outlier()) == before


def test_a_removed_patient_is_not_named_by_the_reference_any_more(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    fill(index, Clusters.make(), 30)
    ask(index, outlier())
    assert "p0003" in cache(index).read_text()
    index.remove_patient(Pseudonym("p0003"))
    assert not cache(index).exists()
    ask(index, outlier())
    assert "p0003" not in cache(index).read_text()


def test_a_large_reference_serves_while_few_patients_came_since() -> None:
    def stamp(*values: object) -> verdict._Stamp:
        return verdict._Stamp("m", *values[:-1], patients=values[-1], scoring=verdict.SCORING)  # type: ignore[arg-type]

    made = stamp(0, "e", 10, 100)
    assert made.fits(stamp(0, "e", 15, 105))
    assert not made.fits(stamp(0, "e", 16, 106))
    assert not made.fits(stamp(1, "e", 15, 100))
    assert not made.fits(stamp(0, "f", 10, 100))
    assert not stamp(0, "e", 10, 30).fits(stamp(0, "e", 11, 31))
    assert not replace(made, scoring=verdict.SCORING - 1).fits(made)


def test_a_large_repository_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "SAMPLE", 25)
    index = open_index(tmp_path)
    fill(index, Clusters.make(), 40)
    assert ask(index, outlier()).p == pytest.approx(1 / 26)
    chosen = index.retriever._references.reference(index.searcher.refresh(), 4).patients
    index.remove_study(PseudoUid("2.25.1000"))
    again = index.retriever._references.reference(index.searcher.refresh(), 4).patients
    assert len(set(chosen) & set(again)) >= 24


def test_what_was_warmed_is_not_computed_while_a_query_waits(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.warm(4)
    assert not cache(index).exists()
    fill(index, Clusters.make(), 30)
    index.warm(4)
    with capture_logs() as logs:
        ask(index, outlier())
    assert "reference_computed" not in [entry["event"] for entry in logs]
