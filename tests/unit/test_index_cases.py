"""From slices to cases: who is in an answer, in which order, and who never is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_samples import DIM, MODEL, Clusters, add_series, catalogue, exclude, fill, open_index, slices, unit

from dicomnode.domain import Answer, Finding, FindingStatus, ModelId, Pseudonym, PseudoUid, Shows, VerdictKind
from dicomnode.errors import InputError, ModelMismatch
from dicomnode.index import ranking
from dicomnode.index.cases import QueryStudy
from dicomnode.index.ranking import Probe
from dicomnode.index.repository import VectorIndex

COVID = Finding("SCT", "840539006", "COVID-19")


@pytest.fixture
def index(tmp_path: Path) -> VectorIndex:
    return open_index(tmp_path)


def put(index: VectorIndex, patient: str, study: str, vectors: np.ndarray, **known: object) -> None:
    refs = slices(patient, study, len(vectors))
    catalogue(index, refs, **known)  # type: ignore[arg-type]
    index.add(refs, vectors)


def ask(
    index: VectorIndex,
    vectors: np.ndarray,
    k: int = 10,
    patient: str | None = None,
    study: str | None = None,
    **options,
) -> Answer:
    query = QueryStudy(
        slices=slices("q", "2.25.7", len(vectors)),
        vectors=vectors,
        patient=None if patient is None else Pseudonym(patient),
        study=None if study is None else PseudoUid(study),
        shows=Shows("CT"),
    )
    return index.retriever.retrieve(query, k, **options)


def around(centre: np.ndarray, n: int, seed: int, spread: float = 0.3) -> np.ndarray:
    return unit(centre + spread * unit(np.random.default_rng(seed).standard_normal((n, DIM))))


def axis(i: int) -> np.ndarray:
    return np.eye(DIM, dtype=np.float32)[i]


def test_an_empty_repository_gives_no_cases_and_says_it_is_too_small(index: VectorIndex) -> None:
    answer = ask(index, around(axis(0), 4, 0))
    assert (answer.cases, answer.searched, answer.verdict.kind) == ((), 0, VerdictKind.REPOSITORY_TOO_SMALL)
    assert answer.verdict.p is None


def test_the_nearest_patient_comes_first_with_what_the_catalogue_knows(index: VectorIndex) -> None:
    put(index, "far", "2.25.1", around(axis(1), 6, 1), modality="MR", status="none")
    put(index, "near", "2.25.2", around(axis(0), 6, 2), status="present", coded=[COVID])
    answer = ask(index, around(axis(0), 6, 3))
    first, second = answer.cases
    assert (first.rank, first.subject, first.study_uid, first.series_uid) == (1, "near", "2.25.2", "2.25.2.1")
    assert (first.status, first.findings) == (FindingStatus.PRESENT, (Finding(*COVID.as_json().values(), "test"),))
    assert (second.rank, second.subject, second.modality, second.status) == (2, "far", "MR", FindingStatus.NONE)
    assert 1 >= first.similarity > second.similarity >= 0
    assert answer.searched == 2
    assert answer.model_id == MODEL
    assert Answer.from_json(answer.as_json()).as_json() == answer.as_json()


def test_matches_pair_each_slice_once_best_first_with_their_cosine(index: VectorIndex) -> None:
    vectors = unit(np.eye(DIM)[:5] + 0.02)
    put(index, "p", "2.25.1", vectors[::-1].copy())
    matches = ask(index, vectors).cases[0].matches
    assert {(m.query_instance.rpartition(".")[2], m.instance.rpartition(".")[2]) for m in matches} == {
        (str(i + 1), str(5 - i)) for i in range(5)
    }
    assert [m.similarity for m in matches] == pytest.approx([1.0] * 5, abs=1e-5)
    assert [m.similarity for m in matches] == sorted((m.similarity for m in matches), reverse=True)


def test_the_query_s_own_study_and_patient_are_never_an_answer(index: VectorIndex) -> None:
    own = around(axis(0), 5, 1)
    put(index, "me", "2.25.1", own)
    put(index, "me", "2.25.2", around(axis(0), 5, 2))
    put(index, "other", "2.25.3", around(axis(3), 5, 3))
    assert [c.subject for c in ask(index, own, patient="me", study="2.25.1").cases] == ["other"]
    assert [c.study_uid for c in ask(index, own, study="2.25.1").cases] == ["2.25.2", "2.25.3"]


def test_a_patient_is_one_answer_with_the_best_study(index: VectorIndex) -> None:
    put(index, "p", "2.25.1", around(axis(0), 5, 1, spread=1.0))
    put(index, "p", "2.25.2", around(axis(0), 5, 2, spread=0.1))
    put(index, "q", "2.25.3", around(axis(1), 5, 3))
    answer = ask(index, around(axis(0), 5, 4, spread=0.1))
    assert [c.study_uid for c in answer.cases] == ["2.25.2", "2.25.3"]
    assert answer.searched == 3


def test_an_excluded_patient_is_no_answer_and_does_not_count(index: VectorIndex) -> None:
    put(index, "p", "2.25.1", around(axis(0), 5, 1))
    put(index, "q", "2.25.2", around(axis(1), 5, 2))
    exclude(index, "p")
    answer = ask(index, around(axis(0), 5, 3))
    assert ([c.subject for c in answer.cases], answer.searched) == (["q"], 1)


def test_a_study_the_catalogue_does_not_know_is_no_answer(index: VectorIndex) -> None:
    index.add(slices("ghost", "2.25.1", 3), around(axis(0), 3, 1))
    put(index, "p", "2.25.2", around(axis(1), 3, 2))
    assert [c.subject for c in ask(index, around(axis(0), 3, 3)).cases] == ["p"]
    assert any("2.25.1" in line and "not in the catalogue" in line for line in index.verify())


def test_a_filter_gives_the_best_among_what_it_allows(index: VectorIndex) -> None:
    fill(index, Clusters.make(), 40)
    allowed = {PseudoUid(f"2.25.{1000 + i}") for i in (5, 17, 30)}
    answer = ask(index, Clusters.make().study(0, 4), allow=allowed)
    assert {c.study_uid for c in answer.cases} == allowed
    assert answer.searched == 3
    assert answer.verdict == ask(index, Clusters.make().study(0, 4)).verdict


def test_k_cases_come_back_where_one_long_study_holds_all_the_nearest_slices(index: VectorIndex) -> None:
    put(index, "long", "2.25.999", around(axis(0), 300, 1, spread=0.05))
    fill(index, Clusters.make(), 30)
    answer = ask(index, around(axis(0), 1, 2, spread=0.05), k=15)
    assert len(answer.cases) == 15
    assert answer.cases[0].subject == "long"
    assert len({c.subject for c in answer.cases}) == 15


def test_a_long_series_does_not_win_by_its_length(index: VectorIndex) -> None:
    put(index, "long", "2.25.1", around(axis(0), 200, 1, spread=1.2))
    put(index, "short", "2.25.2", around(axis(0), 8, 2, spread=0.2))
    assert ask(index, around(axis(0), 8, 3, spread=0.2)).cases[0].subject == "short"


def test_one_image_asked_about_finds_the_study_that_holds_it(index: VectorIndex) -> None:
    clusters = Clusters.make()
    fill(index, clusters, 30, 16)
    mine = clusters.study(0, 16, slice_spread=1.5)
    put(index, "holder", "2.25.5", mine)
    answer = ask(index, mine[7:8])
    assert answer.cases[0].subject == "holder"
    assert answer.cases[0].matches[0].instance == "2.25.5.1.8"


def test_the_same_images_under_two_pseudonyms_are_one_case_unless_k_needs_both(index: VectorIndex) -> None:
    same = around(axis(0), 4, 1)
    put(index, "a", "2.25.1", same)
    put(index, "b", "2.25.2", same)
    put(index, "c", "2.25.3", around(axis(1), 4, 2))
    query = around(axis(0), 4, 3)
    assert [c.subject for c in ask(index, query, k=2).cases] == ["a", "c"]
    assert [c.subject for c in ask(index, query, k=3).cases] == ["a", "b", "c"]


def test_equal_cases_are_ordered_by_their_study_uid_whatever_came_first(tmp_path: Path) -> None:
    vectors = around(axis(0), 4, 1)
    orders = []
    for name, arrival in (("one", (1, 2, 3)), ("two", (3, 1, 2))):
        index = open_index(tmp_path / name)
        for i in arrival:
            put(index, f"p{i}", f"2.25.{i}", vectors)
        orders.append([c.study_uid for c in ask(index, around(axis(0), 4, 2)).cases])
    assert orders[0] == orders[1] == ["2.25.1", "2.25.2", "2.25.3"]


def test_the_same_question_gets_the_same_answer_from_another_process_s_view(index: VectorIndex, tmp_path: Path) -> None:
    fill(index, Clusters.make(), 50)
    query = Clusters.make(7).study(1, 6)
    assert ask(index, query).as_json() == ask(open_index(tmp_path), query).as_json()


def test_slices_at_another_height_match_less(index: VectorIndex) -> None:
    put(index, "p", "2.25.1", around(axis(0), 1, 1))
    now = index.searcher.refresh()
    vectors = now.matrix[[0]]
    study = np.array([0])
    scores = [
        float(ranking.rerank(now, Probe(vectors, np.array([z], np.float32)), study)[0])
        for z in (0.0, 0.05, 0.5, np.nan)
    ]
    assert scores[0] == scores[1] == pytest.approx(scores[3])
    assert scores[2] < scores[0]


def test_similarity_falls_with_rank_and_never_leaves_its_bounds(index: VectorIndex) -> None:
    fill(index, Clusters.make(), 60)
    for seed in range(5):
        similarity = [c.similarity for c in ask(index, around(-axis(seed), 3, seed), k=50).cases]
        assert similarity == sorted(similarity, reverse=True)
        assert all(0 <= s <= 1 for s in similarity)
        assert len(similarity) == 50


@pytest.mark.parametrize("bad", [np.full((2, DIM), np.nan, np.float32), np.zeros((2, DIM), np.float32)])
def test_a_query_without_meaning_is_refused(index: VectorIndex, bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        ask(index, bad)


def test_a_query_of_another_model_or_without_slices_is_refused(index: VectorIndex) -> None:
    vectors = around(axis(0), 2, 1)
    with pytest.raises(ModelMismatch):
        index.retriever.retrieve(QueryStudy(slices("q", "2.25.7", 2), vectors, model_id=ModelId("model-b")))
    with pytest.raises(InputError):
        ask(index, vectors[:0])
    with pytest.raises(InputError):
        ask(index, vectors, k=0)


class TestAnotherModality:
    """A CT is not compared with an MR as with another CT: no network was taught to."""

    def test_its_studies_count_half_and_come_after_those_of_the_same(self, index: VectorIndex) -> None:
        put(index, "mr", "2.25.1", around(axis(0), 6, 2), modality="MR")
        put(index, "ct", "2.25.2", around(axis(0) + 0.8 * axis(1), 6, 1))
        as_ct, as_mr = (ask_as(index, around(axis(0), 6, 3), modality) for modality in ("CT", "MR"))
        assert [c.subject for c in as_ct.cases] == ["ct", "mr"]
        assert [c.subject for c in as_mr.cases] == ["mr", "ct"]
        assert as_ct.cases[1].similarity == pytest.approx(as_mr.cases[0].similarity / 2, abs=1e-5)
        assert as_mr.cases[1].similarity == pytest.approx(as_ct.cases[0].similarity / 2, abs=1e-5)

    @pytest.mark.parametrize(
        ("asked", "found"), [("", "MR"), ("OT", "MR"), ("CT", "OT"), ("CT", "SC"), ("CT/MR", "MR")]
    )
    def test_where_it_is_not_told_nothing_is_held_against_it(self, index: VectorIndex, asked: str, found: str) -> None:
        put(index, "p", "2.25.1", around(axis(0), 6, 1), modality=found)
        vectors = around(axis(0), 6, 2)
        assert ask_as(index, vectors, asked).cases[0].similarity == ask_as(index, vectors, found).cases[0].similarity

    def test_few_of_the_same_are_found_among_many_others(self, index: VectorIndex) -> None:
        for i in range(3):
            put(index, f"mr{i}", f"2.25.{i}", around(axis(0) + 0.5 * axis(5), 3, i), modality="MR")
        fill(index, Clusters.make(), 300, prefix="ct")
        cases = ask_as(index, unit(around(axis(0), 3, 9)), "MR", k=8).cases
        assert {c.subject for c in cases[:3]} == {"mr0", "mr1", "mr2"}
        assert [c.modality for c in cases] == ["MR"] * 3 + ["CT"] * 5
        assert [c.similarity for c in cases] == sorted((c.similarity for c in cases), reverse=True)

    def test_a_repository_of_another_modality_has_no_similar_case(self, index: VectorIndex) -> None:
        clusters = Clusters.make()
        fill(index, clusters, 60)
        query = clusters.study(0, 4)
        assert ask_as(index, query, "CT").verdict.kind is VerdictKind.SIMILAR
        found = ask_as(index, query, "MR")
        assert (found.verdict.kind, len(found.cases)) == (VerdictKind.NONE, 10)

    def test_a_study_of_two_modalities_is_a_study_of_each(self, index: VectorIndex) -> None:
        refs = slices("p", "2.25.1", 4)
        catalogue(index, refs)
        more = [replace(r, series=PseudoUid("2.25.1.2"), instance=PseudoUid(f"{r.instance}.2")) for r in refs]
        add_series(index, more, "MR")
        vectors = around(axis(0), 4, 1)
        index.add(refs, vectors)
        index.add(more, vectors)
        one, other = (ask_as(index, vectors, modality).cases[0] for modality in ("CT", "MR"))
        assert one.similarity == other.similarity
        assert one.modality == "CT/MR"


class TestAnotherRegion:
    """A head is not compared with a chest as with another head, where descriptions tell them apart."""

    def test_its_studies_count_half_and_come_after_those_of_the_same(self, index: VectorIndex) -> None:
        put(index, "head", "2.25.1", around(axis(0), 6, 2), described="AX Brain 5mm")
        put(index, "chest", "2.25.2", around(axis(0) + 0.8 * axis(1), 6, 1), described="TÓRAX 1.25")
        vectors = around(axis(0), 6, 3)
        as_chest, as_head = (ask_as(index, vectors, "CT", region=region) for region in ("CHEST", "HEAD"))
        assert [c.subject for c in as_chest.cases] == ["chest", "head"]
        assert [c.subject for c in as_head.cases] == ["head", "chest"]
        assert as_chest.cases[1].similarity == pytest.approx(as_head.cases[0].similarity / 2, abs=1e-5)

    @pytest.mark.parametrize(
        ("asked", "described"),
        [("", "AX Brain"), ("HEAD", "5.0 B31f"), ("HEAD", None), ("ABDOMEN/CHEST", "Thorax"), ("CHEST", "chest abd")],
    )
    def test_where_it_is_not_told_or_shared_nothing_is_held_against_it(self, index, asked, described) -> None:
        put(index, "p", "2.25.1", around(axis(0), 6, 1), described=described)
        vectors = around(axis(0), 6, 2)
        alike = ask_as(index, vectors, "CT", region=asked).cases[0].similarity
        assert alike == ask_as(index, vectors, "CT").cases[0].similarity > 0.8

    def test_another_modality_and_another_region_are_no_worse_than_one_of_them(self, index: VectorIndex) -> None:
        put(index, "p", "2.25.1", around(axis(0), 6, 1), modality="MR", described="brain")
        vectors = around(axis(0), 6, 2)
        both, one = ask_as(index, vectors, "CT", region="CHEST"), ask_as(index, vectors, "CT")
        assert both.cases[0].similarity == one.cases[0].similarity

    def test_the_answer_says_what_was_asked(self, index: VectorIndex) -> None:
        put(index, "p", "2.25.1", around(axis(0), 6, 1))
        found = ask_as(index, around(axis(0), 6, 2), "CT", region="CHEST")
        assert found.shows == Shows("CT", "CHEST")


def ask_as(index: VectorIndex, vectors: np.ndarray, modality: str, k: int = 10, region: str = "") -> Answer:
    query = QueryStudy(slices("q", "2.25.7", len(vectors)), vectors, shows=Shows(modality, region))
    return index.retriever.retrieve(query, k)
