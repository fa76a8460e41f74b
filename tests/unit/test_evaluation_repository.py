"""Leave one patient out over a repository: the very ranking of ``dicomnode query``, judged by findings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from index_samples import Clusters, catalogue, exclude, open_index, slices

from dicomnode import __version__
from dicomnode.domain import Case, Finding, FindingStatus, Match, Pseudonym, PseudoUid
from dicomnode.errors import InputError
from dicomnode.evaluation.files import write_repository
from dicomnode.evaluation.labels import TRAINED_ON
from dicomnode.evaluation.report import render
from dicomnode.evaluation.repository import (
    Judged,
    KnownStudy,
    Pool,
    evaluate_repository,
    judge_cases,
    stored_query,
    study_points,
)
from dicomnode.node import Node
from dicomnode.testing import sample_repository
from dicomnode.workflow.asking import ask
from dicomnode.workflow.ingest import add_paths

CASES = 6
LUNG = Finding("SCT", "1", "Pneumonia")
HEART = Finding("I10C", "2", "Heart failure")


def known(n: int, status: str = "present", *findings: Finding, patient: str = "") -> KnownStudy:
    return KnownStudy(PseudoUid(f"2.25.{n}"), Pseudonym(patient or f"p{n}"), FindingStatus(status), findings)


def case(study: KnownStudy, rank: int) -> Case:
    match = (Match(PseudoUid("q"), PseudoUid("i"), 0.5),)
    return Case(rank, 0.5, study.patient, study.uid, PseudoUid("s"), "CT", study.status, study.findings, match)


@pytest.fixture(scope="module")
def filled(make_node, tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    node: Node = make_node(folder)
    findings = sample_repository(folder / "studies", CASES, slices=3, matrix=64)
    add_paths(node.context, [folder / "studies"], findings)
    return node, folder / "studies"


class TestAsQueryRanks:
    def test_the_ranking_of_each_case_is_what_query_returns(self, filled):
        node, folder = filled
        studies = {s.uid: s for s in (KnownStudy(*row) for row in node.catalogue.known_findings())}
        assert len(studies) == CASES
        compared = 0
        for study_folder in sorted({p.parent for p in folder.rglob("*.dcm")}):
            answer = ask(node.context, study_folder, 50)
            shown = {c.study_uid for c in answer.cases}
            (own,) = set(studies) - shown  # its own patient is left out by query
            query = stored_query(node.index, studies[own])
            ours = node.index.retriever.nearest(query, 50)
            assert [(c.rank, c.study_uid, c.subject) for c in ours] == [
                (c.rank, c.study_uid, c.subject) for c in answer.cases
            ]
            assert [c.similarity for c in ours] == pytest.approx([c.similarity for c in answer.cases], abs=1e-4)
            compared += 1
        assert compared == CASES

    def test_the_figures_are_those_of_these_rankings(self, filled):
        node, _ = filled
        studies = [KnownStudy(*row) for row in node.catalogue.known_findings()]
        codes = {s.uid: s.codes for s in studies}
        hits = []
        for study in (s for s in studies if s.codes):
            cases = node.index.retriever.nearest(stored_query(node.index, study), 50)
            first = next(c for c in cases if codes[c.study_uid])
            if any(study.codes & other.codes for other in studies if other.patient != study.patient):
                hits.append((study.label, bool(codes[first.study_uid] & study.codes)))
        found = evaluate_repository(node.index, studies)
        labels = {label for label, _ in hits}
        macro = np.mean([np.mean([h for label, h in hits if label == name]) for name in labels]) if hits else None
        assert found["n_queries_counted"] == len(hits)
        assert found["packs"][0]["precision"]["1"]["mean"] == (
            None if macro is None else pytest.approx(macro, abs=1e-4)
        )

    def test_the_page_names_the_model_and_shows_the_cases_as_a_map(self, filled, tmp_path):
        node, _ = filled
        studies = [KnownStudy(*row) for row in node.catalogue.known_findings()]
        result = evaluate_repository(node.index, studies, name="cenet-xception")
        assert result["packs"][0]["name"] == "cenet-xception"
        write_repository(tmp_path / "out", result, node.index, studies)
        assert {p.name for p in (tmp_path / "out").iterdir()} == {
            "map.png",
            "map.svg",
            "report.html",
            "evaluation.json",
        }
        page = (tmp_path / "out" / "report.html").read_text("utf-8")
        assert page.count("<img") == 1 and node.index.store.model_id in page and "cenet-xception is" in page
        assert f"by dicomnode {__version__}" in page
        vectors, labels = study_points(node.index, studies)
        assert len(vectors) == len(labels) == CASES
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


class TestGenerated:
    @pytest.fixture
    def index(self, tmp_path):
        index = open_index(tmp_path)
        yield index
        index.close()
        index.store.engine.dispose()

    def fill(self, index, spread: float = 0.6) -> list[KnownStudy]:
        clusters = Clusters.make(clusters=2)
        made = []
        for i in range(24):
            finding = (LUNG, HEART)[i % 2]
            refs = slices(f"p{i}", f"2.25.{i}", 3)
            catalogue(index, refs, status="present", coded=[finding])
            index.add(refs, clusters.study(i % 2, 3, spread))
            made.append(known(i, "present", finding))
        return made

    def test_clear_clusters_are_found_and_chance_is_beside_them(self, index):
        found = evaluate_repository(index, self.fill(index, 0.1))
        (row,) = found["packs"]
        assert row["precision"]["10"]["mean"] == 1.0
        assert row["recall"]["50"]["mean"] == 1.0
        assert set(row["by_class"]) == {"Pneumonia", "Heart failure"}
        (chance,) = found["controls"]
        assert chance["precision"]["10"]["mean"] == pytest.approx(11 / 23, abs=1e-4)
        assert chance["difference"]["ci"][0] > 0

    def test_unknown_is_never_negative(self, index):
        studies = self.fill(index, 0.1)
        half = [known(i) if i % 4 == 0 else s for i, s in enumerate(studies)]
        half = [KnownStudy(s.uid, s.patient, FindingStatus.UNKNOWN) if i % 4 == 0 else s for i, s in enumerate(half)]
        found = evaluate_repository(index, half)
        assert found["packs"][0]["precision"]["5"]["mean"] == 1.0
        assert found["n_queries"] == 18
        assert found["notes"][0].startswith("6 studies of unknown status")
        assert found["notes"][-1] == TRAINED_ON

    def test_excluded_patients_ask_nothing_and_are_no_answer(self, index):
        studies = self.fill(index, 0.1)
        exclude(index, "p0")
        found = evaluate_repository(index, studies)
        assert found["n_queries"] == 23
        assert found["packs"][0]["recall"]["50"]["mean"] == 1.0  # what is excluded is not missed either

    def test_nothing_to_compare(self, index):
        studies = self.fill(index)
        with pytest.raises(InputError, match="fewer than two kinds"):
            evaluate_repository(index, [s for s in studies if LUNG in s.findings])
        with pytest.raises(InputError, match="no study with a known status has vectors"):
            evaluate_repository(index, [known(900, "present", LUNG), known(901, "present", HEART)])

    def put(self, index, clusters: Clusters, cluster: int, study: KnownStudy) -> KnownStudy:
        """A study with vectors near a cluster's centre."""
        refs = slices(study.patient, study.uid, 3)
        catalogue(index, refs, status=study.status.value, coded=study.findings)
        index.add(refs, clusters.study(cluster, 3))
        return study

    def test_chance_is_of_patients_that_can_be_returned(self, index):
        clusters = Clusters.make(clusters=2)
        studies = [self.put(index, clusters, i % 2, known(i, "present", (LUNG, HEART)[i % 2])) for i in range(4)]
        closed = [self.put(index, clusters, 0, known(i, "present", LUNG)) for i in (10, 11)]
        for study in closed:
            exclude(index, study.patient)
        without_vectors = [
            *(known(i, "present", LUNG) for i in range(20, 25)),
            known(30, "present", LUNG, patient="p1"),  # of a patient who comes back with another study
        ]
        (chance,) = evaluate_repository(index, [*studies, *closed, *without_vectors])["controls"]
        assert chance["precision"]["1"]["mean"] == pytest.approx(1 / 3, abs=1e-4)
        assert chance["map"]["mean"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-4)  # its rank is 1, 2 or 3

    @pytest.fixture
    def mostly_unknown(self, index):
        """One study gets unknown cases alone, one has a finding that nobody shares."""
        clusters = Clusters.make(clusters=3)
        studies = [self.put(index, clusters, 0, known(i, "unknown")) for i in range(100, 160)]
        studies.append(self.put(index, clusters, 0, known(0, "present", LUNG)))
        studies += [self.put(index, clusters, 1, known(i, "present", LUNG)) for i in range(1, 4)]
        studies.append(self.put(index, clusters, 1, known(9, "present", HEART)))
        studies += [self.put(index, clusters, 2, known(i, "none")) for i in range(200, 260)]
        return evaluate_repository(index, studies)

    def test_alone_and_among_unknown_cases_only_are_told_apart(self, mostly_unknown):
        notes = mostly_unknown["notes"]
        assert any(n.startswith("1 studies share their finding with no other patient") for n in notes)
        assert any(n.startswith("1 studies got cases of unknown status alone") for n in notes)
        assert mostly_unknown["n_queries"] - mostly_unknown["n_queries_counted"] == 2

    def test_lists_with_few_judged_cases_are_counted_and_said(self, index):
        clusters = Clusters.make(clusters=2)
        studies = [self.put(index, clusters, 0, known(i, "present", LUNG)) for i in range(4)]
        studies += [self.put(index, clusters, 0, known(i, "unknown")) for i in range(100, 160)]
        studies += [self.put(index, clusters, 1, known(i, "none")) for i in range(200, 260)]
        found = evaluate_repository(index, studies)
        (row,) = found["packs"]
        assert found["n_queries_counted"] == 64
        assert found["precision_undefined"] == {"1": 0, "5": 4, "10": 4, "50": 4}
        assert row["precision"]["1"]["mean"] is not None
        assert row["by_class"]["Pneumonia"]["precision"]["10"]["mean"] is None
        assert row["by_class"]["no finding"]["precision"]["50"]["mean"] == 1.0
        assert found["controls"][0]["precision"]["10"]["mean"] == pytest.approx(59 / 63, abs=1e-4)
        (line,) = [n for n in found["notes"] if "fewer than k judged cases" in n]
        assert "k = 5: 4, k = 10: 4, k = 50: 4 of 64 queries" in line
        page = " ".join(render(found, ()).split())
        assert line in page
        assert "whole order" not in page
        assert "taken out of a list before it is judged" in page


class TestJudging:
    def judged(self, query, others, shown) -> Judged:
        cases = [case(s, i + 1) for i, s in enumerate(shown)]
        return judge_cases(query, cases, Pool({s.uid: s for s in (query, *others)}))

    def test_the_ideal_order_has_all_patients_that_could_be_returned(self):
        query, right = known(0, "present", LUNG), [known(i, "present", LUNG) for i in range(1, 61)]
        wrong = [known(i, "none") for i in range(100, 148)]
        found = self.judged(query, [*right, *wrong], [*right[:2], *wrong])
        two, ten = (sum(1 / math.log2(i + 2) for i in range(n)) for n in (2, 10))
        assert found.figures["ndcg"][9] == pytest.approx(two / ten)
        assert found.figures["ndcg"][9] == pytest.approx(0.359, abs=5e-4)
        assert found.figures["ndcg"][1] == 1.0

    def test_one_known_case_of_fifty_is_no_precision_at_ten(self):
        query, right = known(0, "present", LUNG), [known(i, "present", LUNG) for i in range(1, 13)]
        unknown = [known(i, "unknown") for i in range(100, 149)]
        found = self.judged(query, [*right, *unknown], [*unknown, right[0]])
        assert found.figures["precision"][0] == 1.0
        assert np.isnan(found.figures["precision"][1:]).all()
        assert np.isnan(found.figures["ndcg"][1:]).all()
        assert found.figures["recall"][49] == pytest.approx(1 / 12)

    def test_a_list_with_all_known_cases_of_a_small_repository_has_precision_at_ten(self):
        query, right, unknown = known(0, "present", LUNG), known(1, "present", LUNG), known(2, "unknown")
        found = self.judged(query, [right, unknown], [unknown, right])
        assert found.figures["precision"][9] == 1.0

    def test_unknown_cases_alone_are_not_judged(self):
        query, right, unknown = known(0, "present", LUNG), known(1, "present", LUNG), known(2, "unknown")
        found = self.judged(query, [right, unknown], [unknown])
        assert np.isnan(found.figures["ap"])
        assert (found.judged, found.relevant) == (0, 1)

    @pytest.mark.parametrize(
        ("right", "wrong", "unknown"), [(1, 2, 0), (5, 20, 0), (20, 60, 0), (70, 30, 0), (6, 9, 5), (4, 30, 120)]
    )
    def test_chance_is_what_random_orders_reach(self, right, wrong, unknown):
        """Seeded simulation of what is judged; patients with two studies among them."""
        query = known(0, "present", LUNG)
        others = [known(1000 + i, "present", LUNG) for i in range(right)]
        others += [known(2000 + i, "none") for i in range(wrong)]
        others += [known(3000 + i, "unknown") for i in range(unknown)]
        others.append(known(4000, "none", patient="p1000"))  # comes back with either study
        pool = Pool({s.uid: s for s in (query, *others)})
        patients = {p: [s for s in others if s.patient == p] for p in {s.patient for s in others}}
        names, random = sorted(patients), np.random.default_rng(right)
        judged = []
        for _ in range(1000):
            order = [patients[names[i]] for i in random.permutation(len(names))[:50]]
            shown = [studies[random.integers(len(studies))] for studies in order]
            judged.append(judge_cases(query, [case(s, i + 1) for i, s in enumerate(shown)], pool))
        ap = np.array([j.figures["ap"] for j in judged])
        error = np.nanstd(ap) / math.sqrt(np.isfinite(ap).sum())
        assert judged[0].chance_ap == pytest.approx(np.nanmean(ap), abs=3.5 * error)
        first = np.array([j.figures["precision"][0] for j in judged])
        assert judged[0].chance_precision == pytest.approx(np.nanmean(first), abs=0.04)

    def test_by_hand(self):
        query = known(0, "present", LUNG)
        right, unknown, wrong = known(1, "present", LUNG, HEART), known(2, "unknown"), known(3, "none")
        missed = known(4, "present", LUNG)
        found = self.judged(query, [right, unknown, wrong, missed], [unknown, right, wrong])
        assert found.figures["precision"][:2].tolist() == [1.0, 0.5]
        assert found.figures["recall"][49] == 0.5
        assert found.figures["ap"] == 0.5

    def test_none_answers_none(self):
        found = self.judged(known(0, "none"), [known(1, "none")], [known(1, "none")])
        assert found.figures["ap"] == 1.0

    def test_another_study_of_the_own_patient_is_no_missed_case(self):
        query = known(0, "present", LUNG, patient="me")
        other = known(1, "present", LUNG, patient="me")
        assert np.isnan(self.judged(query, [other], []).figures["ap"])

    def test_labels(self):
        icd = Finding("I9C", "9", "Lung inflammation")
        assert known(0, "present", icd, LUNG).label == "Pneumonia"
        assert known(0, "none").label == "no finding"
        word = Finding("99LABEL", "x", "word")
        assert known(0, "present", word).label == "word"
