"""Leave one patient out over a repository: every case asks, as ``dicomnode query`` would, and its findings judge.

A study is asked about with the vectors it was indexed with, through the very ``CaseRetriever`` of the node: its own
patient is closed, one case a patient comes back, ranked and with copies left out as in any answer. A returned case of
status "unknown" is neither right nor wrong: it is taken out of the list before it is judged, and a study of unknown
status asks nothing. Never embeds, never writes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from dicomnode.domain import Case, Finding, FindingStatus, Pseudonym, PseudoUid
from dicomnode.errors import InputError
from dicomnode.evaluation import metrics
from dicomnode.evaluation.metrics import MAX_K, PerQuery
from dicomnode.index.cases import QueryStudy
from dicomnode.index.repository import VectorIndex

log = structlog.get_logger(__name__)

NO_FINDING = "no finding"
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


def judge_cases(
    query: KnownStudy,
    cases: Sequence[Case],
    known: Mapping[PseudoUid, KnownStudy],
    open_patients: AbstractSet[Pseudonym],
) -> dict[str, Any]:
    """Figures of one answer; cases of unknown status are left out before they are counted.

    Recall and average precision count patients: ``open_patients`` other than the query's own who have a study that
    shares a finding with it. Average precision is over the cases returned, at most 50.
    """
    hits = [bool(query.codes & known[c.study_uid].codes) for c in cases if known[c.study_uid].codes]
    total = len(
        {s.patient for s in known.values() if s.codes & query.codes and s.patient in open_patients} - {query.patient}
    )
    relevant = np.array(hits, dtype=bool)
    judged = metrics.judge(relevant.astype(np.float64), relevant, total)
    if total > MAX_K:  # 50 cases cannot hold them all
        judged["ap"] *= total / MAX_K
    return judged


def evaluate_repository(
    index: VectorIndex, studies: Sequence[KnownStudy], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The object of ``evaluate --repository --json``: contract keys, with counts of what could not be asked.

    Raises
    ------
    InputError
        Fewer than two classes among the studies that can be asked about.
    """
    known = {s.uid: s for s in studies}
    asked = [s for s in studies if s.codes]
    if len({s.label for s in asked}) < 2:
        line = (
            f"{len(asked)} of {len(studies)} studies have a known status, of fewer than two kinds: nothing to compare"
        )
        raise InputError(line, place="repository", advice="dicomnode index add ... --findings F.csv")
    now = index.searcher.refresh()
    open_patients = {now.names.patients[int(p)] for p in now.patients_in(now.open_rows())}
    judged, who, without = [], [], 0
    for done, study in enumerate(asked):
        if progress:
            progress(done, len(asked))
        query = stored_query(index, study)
        if query is None or study.patient not in open_patients:
            without += 1
            continue
        cases = index.retriever.nearest(query, MAX_K)
        judged.append(judge_cases(study, cases, known, open_patients))
        who.append(study)
    if progress:
        progress(len(asked), len(asked))
    if not judged:
        raise InputError("no study with a known status has vectors of the active model", place="repository")
    table = metrics.collect(judged, np.array([s.label for s in who]), np.array([str(s.patient) for s in who]))
    log.info("repository_evaluated", studies=len(who))
    return _as_json(index, studies, table, without)


def _as_json(index: VectorIndex, studies: Sequence[KnownStudy], table: PerQuery, without: int) -> dict[str, Any]:
    unknown = sum(not s.codes for s in studies)
    notes = [f"{unknown} studies of unknown status ask nothing and are neither right nor wrong in a list"]
    if without:
        notes.append(f"{without} studies have no vectors of the active model, or an excluded patient")
    alone = int((~table.counted).sum())
    if alone:
        notes.append(f"{alone} studies share their finding with no other patient: not counted")
    notes.append("map is the average precision of the first 50 cases")
    return {
        "protocol": "repository",
        "title": "Leave one patient out over this repository",
        "n_index": len(studies),
        "n_queries": len(table.ap),
        "n_queries_counted": int(table.counted.sum()),
        "n_query_patients": len(np.unique(table.clusters)),
        "packs": [metrics.row_of(index.store.model_id, table)],
        "controls": _chance(studies, table),
        "notes": notes,
        "skipped": 0,
    }


def _chance(studies: Sequence[KnownStudy], table: PerQuery) -> list[dict[str, Any]]:
    """What a list of known cases in random order reaches, by class: the share of other patients with the finding."""
    by_patient: dict[Pseudonym, set[tuple[str, str]]] = defaultdict(set)
    for s in studies:
        by_patient[s.patient] |= s.codes
    labelled = [codes for codes in by_patient.values() if codes]
    counts: Counter[str] = Counter()
    example = {s.label: s.codes for s in studies if s.codes}
    for name, codes in example.items():
        counts[name] = sum(bool(codes & other) for other in labelled) - 1
    n = max(1, len(labelled) - 1)
    share = np.array([counts[c] / n for c in table.classes])
    share[~table.counted] = np.nan
    flat = np.repeat(share[:, None], MAX_K, axis=1)
    chance = PerQuery(flat, np.full_like(flat, np.nan), table.ceiling, flat, share, table.classes, table.clusters)
    figures = metrics.figures_of(flat[:, :1], table.classes, table.clusters)[0]
    keys = {str(k): figures for k in metrics.SHOWN_KS}
    nothing = {"mean": None, "ci": [None, None]}
    row = {"name": "control: random order (expected)", "precision": keys, "map": figures, "by_class": {}}
    row |= {"recall": dict.fromkeys(keys, nothing), "difference": metrics.difference(table, chance)}
    return [{**row, "note": "share of the other known patients who have the finding"}]
