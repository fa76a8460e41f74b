"""Leave one patient out over a repository: every case asks, as ``dicomnode query`` would, and its findings judge.

A study is asked about with the vectors it was indexed with, through the very ``CaseRetriever`` of the node: its own
patient is closed, one case a patient comes back, ranked and with copies left out as in any answer. A returned case of
status "unknown" is neither right nor wrong: it is taken out of the list before it is judged, and a study of unknown
status asks nothing. What a list misses and what chance reaches is counted over the patients that can come back at all
(``Pool``). Never embeds, never writes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from dicomnode.domain import Case, Finding, FindingStatus, Pseudonym, PseudoUid
from dicomnode.errors import InputError
from dicomnode.evaluation import metrics
from dicomnode.evaluation.labels import TRAINED_ON
from dicomnode.evaluation.metrics import MAX_K, SHOWN_KS, Floats, PerQuery
from dicomnode.index.cases import QueryStudy
from dicomnode.index.repository import VectorIndex

log = structlog.get_logger(__name__)

Vectors = npt.NDArray[np.float32]

NO_FINDING = "no finding"
DRAWN_CLASSES = 5  # on a map, before "other findings" and "unknown": as many as its colours tell apart
PREFERRED = ("SCT", "I10C", "I10", "I9C")  # whose words name a class, where a study has several systems


@dataclass(frozen=True, slots=True)
class KnownStudy:
    """What the catalogue knows of a study."""

    uid: PseudoUid
    patient: Pseudonym
    status: FindingStatus
    findings: tuple[Finding, ...] = ()

    @property
    def codes(self) -> frozenset[tuple[str, str]]:
        """System and code of each finding that is present; one pseudo code for "none"; empty where unknown."""
        if self.status is FindingStatus.NONE:
            return frozenset({("", NO_FINDING)})
        if self.status is FindingStatus.PRESENT:
            return frozenset((f.system, f.code) for f in self.findings)
        return frozenset()

    @property
    def label(self) -> str:
        """Its class in the table: its findings in words, of the preferred system."""
        if self.status is FindingStatus.NONE:
            return NO_FINDING
        for system in PREFERRED:
            words = sorted({f.display for f in self.findings if f.system == system})
            if words:
                return " + ".join(words)
        return " + ".join(sorted({f.display for f in self.findings}))


@dataclass(frozen=True)
class Pool:
    """Who can come back: the studies, by UID, that have vectors of the model and whose patient is not excluded."""

    studies: Mapping[PseudoUid, KnownStudy]

    @classmethod
    def of(cls, index: VectorIndex, studies: Sequence[KnownStudy]) -> Pool:
        """Those of ``studies`` that the index can return now."""
        now = index.searcher.refresh()
        can_return = {now.names.studies[int(number)] for number in now.studies_in(now.open_rows())}
        return cls({s.uid: s for s in studies if s.uid in can_return})

    @cached_property
    def patients(self) -> frozenset[Pseudonym]:
        """All patients, also those without a known status."""
        return frozenset(s.patient for s in self.studies.values())

    @cached_property
    def _codes(self) -> dict[Pseudonym, list[frozenset[tuple[str, str]]]]:
        """Codes of each study of known status, by patient."""
        found: dict[Pseudonym, list[frozenset[tuple[str, str]]]] = defaultdict(list)
        for study in self.studies.values():
            if study.codes:
                found[study.patient].append(study.codes)
        return found

    def shares(self, query: KnownStudy) -> dict[Pseudonym, float]:
        """Other patients of known status: share of their studies of known status that have a finding of the query."""
        codes = query.codes
        return {
            patient: sum(not codes.isdisjoint(c) for c in theirs) / len(theirs)
            for patient, theirs in self._codes.items()
            if patient != query.patient
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer, judged.

    Attributes
    ----------
    figures : what ``metrics.judge`` gives; all NaN where ``judged`` or ``relevant`` is 0.
    judged : cases of known status that came back.
    relevant : patients with a finding of the query who could have come back.
    chance_precision, chance_ap : expected P@k (the same at every k) and average precision where the patients who can
        come back do so in random order, each with one of its studies of known status (unknown, if it has no other),
        and such a list holds a case of known status. NaN where ``relevant`` is 0.
    """

    figures: dict[str, Any]
    judged: int
    relevant: int
    chance_precision: float
    chance_ap: float


@dataclass(frozen=True, slots=True)
class _Slice:
    instance: PseudoUid
    z: float | None


def stored_query(index: VectorIndex, study: KnownStudy) -> QueryStudy | None:
    """A study of the repository as a query, with its stored vectors; None where it has none of this model."""
    now = index.searcher.refresh()
    number = now.names.study_of.get(study.uid)
    if number is None or number >= len(now.study_count) or not now.study_count[number]:
        return None
    rows = now.rows_of(number)
    instances = index.store.instances([int(i) for i in now.ids[rows]])
    kept = [int(row) for row in rows if int(now.ids[row]) in instances]
    if not kept:
        return None
    slices = [_Slice(instances[int(now.ids[r])], None if np.isnan(now.z[r]) else float(now.z[r])) for r in kept]
    return QueryStudy(
        slices=slices,
        vectors=now.matrix[kept],
        patient=study.patient,
        study=study.uid,
        shows=now.shows(number),
        model_id=index.store.model_id,
    )


def judge_cases(query: KnownStudy, cases: Sequence[Case], pool: Pool) -> Judged:
    """Figures of one answer; cases of unknown status are left out before they are counted.

    Recall, average precision and the ideal order of nDCG count the patients of the pool, but the query's own, who have
    a study that shares a finding with it. Average precision is over the cases returned, at most 50.
    """
    returned = [pool.studies[c.study_uid] for c in cases if c.study_uid in pool.studies]
    relevant = np.array([not query.codes.isdisjoint(s.codes) for s in returned if s.codes], dtype=bool)
    shares = pool.shares(query)
    total = sum(share > 0 for share in shares.values())
    n_open = len(relevant) + len(shares.keys() - {s.patient for s in returned})
    figures = metrics.judge(relevant.astype(np.float64), relevant, total, n_open)
    if total > MAX_K:  # 50 cases cannot hold them all
        figures["ap"] *= total / MAX_K
    precision, ap = _chance_of(np.array(list(shares.values())), len(pool.patients - {query.patient}))
    return Judged(figures, len(relevant), total, precision, ap)


def _chance_of(shares: Floats, n: int) -> tuple[float, float]:
    """Expected P@k and average precision of a random order; see ``Judged``.

    Parameters
    ----------
    shares : float64 [known]
        ``Pool.shares`` of the patients of known status.
    n : int
        Patients who can come back, of known status or not: the first 50 do.
    """
    if not shares.any():
        return float("nan"), float("nan")
    reached = metrics.drawn_at_least(len(shares), n, MAX_K)
    return float(shares.mean()), metrics.random_ap(shares, reached) / float(reached[0])


def study_points(index: VectorIndex, studies: Sequence[KnownStudy]) -> tuple[Vectors, metrics.Strings]:
    """For a map: the mean vector of each study that has vectors, float32 [n, dim], each of length 1; and its class.

    Classes beyond the most frequent are drawn as one, "other findings"; a study of unknown status is "unknown".
    """
    counts = Counter(s.label for s in studies if s.codes)
    named = {label for label, _ in counts.most_common(DRAWN_CLASSES)}
    means, labels = [], []
    for study in studies:
        query = stored_query(index, study)
        if query is None:
            continue
        mean = query.vectors.mean(axis=0, dtype=np.float64)
        means.append(mean / (np.linalg.norm(mean) or 1.0))
        label = study.label if study.label in named else "other findings"
        labels.append(label if study.codes else "unknown")
    return np.array(means, dtype=np.float32), np.array(labels)


def evaluate_repository(
    index: VectorIndex,
    studies: Sequence[KnownStudy],
    progress: Callable[[int, int], None] | None = None,
    *,
    name: str = "",
) -> dict[str, Any]:
    """The object of ``evaluate --repository --json``: contract keys, with counts of what could not be asked.

    Parameters
    ----------
    name : what the pack is called in words; its model_id where nothing is given.

    Raises
    ------
    InputError
        Fewer than two classes among the studies that can be asked about.
    """
    asked = [s for s in studies if s.codes]
    if len({s.label for s in asked}) < 2:
        line = (
            f"{len(asked)} of {len(studies)} studies have a known status, of fewer than two kinds: nothing to compare"
        )
        raise InputError(line, place="repository", advice="dicomnode index add ... --findings F.csv")
    pool = Pool.of(index, studies)
    judged: list[Judged] = []
    who, without = [], 0
    for done, study in enumerate(asked):
        if progress:
            progress(done, len(asked))
        query = stored_query(index, study) if study.uid in pool.studies else None
        if query is None:
            without += 1
            continue
        judged.append(judge_cases(study, index.retriever.nearest(query, MAX_K), pool))
        who.append(study)
    if progress:
        progress(len(asked), len(asked))
    if not judged:
        raise InputError("no study with a known status has vectors of the active model", place="repository")
    classes, clusters = np.array([s.label for s in who]), np.array([str(s.patient) for s in who])
    table = metrics.collect([j.figures for j in judged], classes, clusters)
    log.info("repository_evaluated", studies=len(who))
    undefined = {k: int((table.counted & np.isnan(table.column(f"precision@{k}"))).sum()) for k in SHOWN_KS}
    return {
        "protocol": "repository",
        "title": "Leave one patient out over this repository",
        "n_index": len(studies),
        "n_queries": len(table.ap),
        "n_queries_counted": int(table.counted.sum()),
        "n_query_patients": len(np.unique(table.clusters)),
        "packs": [{**metrics.row_of(name or index.store.model_id, table), "model_id": index.store.model_id}],
        "controls": [_chance(judged, table)],
        "precision_undefined": {str(k): n for k, n in undefined.items()},
        "notes": _notes(studies, judged, without, undefined),
        "skipped": 0,
    }


def _notes(
    studies: Sequence[KnownStudy], judged: Sequence[Judged], without: int, undefined: Mapping[int, int]
) -> list[str]:
    """What was left out and why, a line each; ``undefined`` queries have no P@k, by k."""
    unknown = sum(not s.codes for s in studies)
    alone = sum(not j.relevant for j in judged)
    unjudged = sum(j.relevant > 0 and not j.judged for j in judged)
    notes = [f"{unknown} studies of unknown status ask nothing and are neither right nor wrong in a list"]
    if without:
        notes.append(f"{without} studies have no vectors of the active model, or an excluded patient")
    if alone:
        notes.append(f"{alone} studies share their finding with no other patient who can come back: not counted")
    if unjudged:
        notes.append(
            f"{unjudged} studies got cases of unknown status alone, though patients with their finding can come back:"
            " not counted"
        )
    if any(undefined.values()):
        counts = ", ".join(f"k = {k}: {n}" for k, n in undefined.items() if n)
        notes.append(
            f"fewer than k judged cases came back, though the repository has more: {counts} of"
            f" {len(judged) - alone - unjudged} queries; these have no P@k and nDCG@k, and are in no mean of them"
        )
    notes.append("mAP is the average precision of the first 50 cases")
    notes.append(TRAINED_ON)
    return notes


def _chance(judged: Sequence[Judged], table: PerQuery) -> dict[str, Any]:
    """The row of a random order of the cases that can come back, on the queries that have the figure."""
    precision = np.array([j.chance_precision for j in judged])[:, None]
    precision = np.where(np.isnan(table.precision), np.nan, precision)
    ap = np.where(table.counted, [j.chance_ap for j in judged], np.nan)
    chance = PerQuery(precision, table.recall, table.ceiling, table.ndcg, ap, table.classes, table.clusters)
    values = np.stack([*(chance.column(f"precision@{k}") for k in SHOWN_KS), ap], axis=1)
    *at_k, mean_ap = metrics.figures_of(values, table.classes, table.clusters)
    keys = [str(k) for k in SHOWN_KS]
    nothing = {"mean": None, "ci": [None, None]}
    return {
        "name": "control: random order (expected)",
        "precision": dict(zip(keys, at_k, strict=True)),
        "map": mean_ap,
        "by_class": {},
        "recall": dict.fromkeys(keys, nothing),
        "difference": metrics.difference(table, chance),
        "note": "exact, over the other patients of known status who can come back",
    }
