"""Leave one patient out over a repository: the very ranking of ``dicomnode query``, judged by findings."""

from __future__ import annotations

import numpy as np
import pytest
from index_samples import Clusters, catalogue, exclude, open_index, slices

from dicomnode.domain import Case, Finding, FindingStatus, Match, Pseudonym, PseudoUid
from dicomnode.errors import InputError
from dicomnode.evaluation.repository import KnownStudy, evaluate_repository, judge_cases, stored_query
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


class TestJudging:
    def judged(self, query, others, shown):
        everything = {s.uid: s for s in (query, *others)}
        cases = [case(s, i + 1) for i, s in enumerate(shown)]
        return judge_cases(query, cases, everything, {s.patient for s in everything.values()})

    def test_by_hand(self):
        query = known(0, "present", LUNG)
        right, unknown, wrong = known(1, "present", LUNG, HEART), known(2, "unknown"), known(3, "none")
        missed = known(4, "present", LUNG)
        found = self.judged(query, [right, unknown, wrong, missed], [unknown, right, wrong])
        assert found["precision"][:2].tolist() == [1.0, 0.5]
        assert found["recall"][49] == 0.5
        assert found["ap"] == 0.5

    def test_none_answers_none(self):
        found = self.judged(known(0, "none"), [known(1, "none")], [known(1, "none")])
        assert found["ap"] == 1.0

    def test_another_study_of_the_own_patient_is_no_missed_case(self):
        query = known(0, "present", LUNG, patient="me")
        other = known(1, "present", LUNG, patient="me")
        assert np.isnan(self.judged(query, [other], [])["ap"])

    def test_labels(self):
        icd = Finding("I9C", "9", "Lung inflammation")
        assert known(0, "present", icd, LUNG).label == "Pneumonia"
        assert known(0, "none").label == "no finding"
        word = Finding("99LABEL", "x", "word")
        assert known(0, "present", word).label == "word"
