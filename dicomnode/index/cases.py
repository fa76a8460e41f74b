"""Similar cases for a study: the ranking, what the catalogue knows of each case, and the verdict, as one Answer.

Never returns the query's own study or patient, an excluded patient, or a study the catalogue does not know. Similarity
is the re-rank score cut to 0..1: uncalibrated, an order and not a probability. Same repository and query, same answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import select

from dicomnode.archive.schema import findings, studies
from dicomnode.domain import (
    MIN_PATIENTS_FOR_P,
    NOT_TOLD,
    Answer,
    Case,
    Finding,
    FindingStatus,
    Match,
    ModelId,
    Pseudonym,
    PseudoUid,
    Shows,
    Verdict,
)
from dicomnode.errors import InputError, ModelMismatch
from dicomnode.index import ranking
from dicomnode.index.ranking import RANKED_PATIENTS, Probe, Ranked
from dicomnode.index.resident import Resident
from dicomnode.index.search import Searcher
from dicomnode.index.segments import Vectors
from dicomnode.index.vectors import check_vectors
from dicomnode.index.verdict import References

log = structlog.get_logger(__name__)

MATCHES = 8  # slice pairs shown for a case


class QuerySlice(Protocol):
    """A slice of the query, as ``domain.SliceRef`` is one."""

    @property
    def instance(self) -> PseudoUid: ...
    @property
    def z(self) -> float | None: ...


@dataclass(frozen=True)
class QueryStudy:
    """What is asked about.

    Attributes
    ----------
    slices : sequence of QuerySlice
        The embedded slices.
    vectors : float32 [m, dim]
        Unit vectors, one a slice.
    patient, study : optional
        Excluded from the answer where known.
    shows : Shows
        Modality and region of the embedded slices; studies of others count half (``ranking.rank``).
    series : sequence of dict
        Which series were chosen and why; passed into the answer as it is.
    model_id : ModelId, optional
        Model of the vectors; refused where it is not the index's.
    """

    slices: Sequence[QuerySlice]
    vectors: Vectors
    patient: Pseudonym | None = None
    study: PseudoUid | None = None
    shows: Shows = NOT_TOLD
    series: Sequence[dict[str, Any]] = ()
    model_id: ModelId | None = None


class CaseRetriever:
    """Answers queries from one index; safe for threads."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self._store = searcher.store
        self._references = References(searcher)

    def warm(self, slices: int) -> None:
        """Compute the reference of the verdict for queries of ``slices`` slices, unless it is there."""
        now = self._searcher.refresh()
        if len(now.patients_in(now.open_rows())) >= MIN_PATIENTS_FOR_P:
            self._references.reference(now, slices)

    def retrieve(
        self,
        query: QueryStudy,
        k: int = 10,
        *,
        allow: AbstractSet[PseudoUid] | None = None,
        exclude_patients: AbstractSet[Pseudonym] = frozenset(),
    ) -> Answer:
        """The ``k`` most similar cases of other patients, one a patient, and what may be said of them.

        Parameters
        ----------
        query : QueryStudy
        k : int
            Cases wanted; fewer come back only where fewer are open.
        allow : set of PseudoUid, optional
            Only these studies. The verdict stays about the repository as a whole.
        exclude_patients : set of Pseudonym
            Not to be answers, besides the query's own and those excluded in the catalogue.

        Raises
        ------
        InputError
            No slices, NaN or zero vectors, ``k`` below 1.
        ModelMismatch, IndexCorrupt
        """
        started = time.monotonic()
        probe = self._probe(query, k)
        now = self._searcher.refresh()
        whole = _others(now, query)
        mask = whole & now.open_rows(exclude_patients, allow=allow)
        wanted = max(k, RANKED_PATIENTS)
        ranked = ranking.rank(self._searcher, now, probe, mask, wanted)
        unfiltered = ranked
        if not np.array_equal(mask, whole):
            unfiltered = ranking.rank(self._searcher, now, probe, whole, wanted)
        patients = len(now.patients_in(whole))
        verdict = self._references.verdict(now, unfiltered, len(probe.vectors), query.patient, patients)
        cases = self._cases(now, query, probe, ranked, k)
        log.info(
            "retrieved", cases=len(cases), verdict=verdict.kind.value, seconds=round(time.monotonic() - started, 3)
        )
        return self._answer(now, query, verdict, cases, searched=len(now.studies_in(mask)))

    def nearest(
        self, query: QueryStudy, k: int = 10, *, allow: AbstractSet[PseudoUid] | None = None
    ) -> tuple[Case, ...]:
        """The cases of ``retrieve`` without the verdict, whose reference may take long to compute.

        Raises
        ------
        InputError, ModelMismatch, IndexCorrupt
        """
        probe = self._probe(query, k)
        now = self._searcher.refresh()
        mask = _others(now, query) & now.open_rows(allow=allow)
        ranked = ranking.rank(self._searcher, now, probe, mask, max(k, RANKED_PATIENTS))
        return self._cases(now, query, probe, ranked, k)

    def _probe(self, query: QueryStudy, k: int) -> Probe:
        if k < 1:
            raise InputError("at least one case must be asked for")
        if query.model_id is not None and query.model_id != self._store.model_id:
            raise ModelMismatch(
                f"the query was embedded by model {query.model_id}, the index by {self._store.model_id}"
            )
        vectors = check_vectors(query.vectors, self._store.dim, "the query vectors")
        if len(vectors) != len(query.slices) or not len(vectors):
            raise InputError(f"the query has {len(query.slices)} slices and {len(vectors)} vectors")
        z = np.array([np.nan if s.z is None else s.z for s in query.slices], dtype=np.float32)
        return Probe(vectors, z, query.shows)

    def _cases(self, now: Resident, query: QueryStudy, probe: Probe, ranked: list[Ranked], k: int) -> tuple[Case, ...]:
        known = self._catalogue([now.names.studies[case.study] for case in ranked])
        in_catalogue = [case for case in ranked if now.names.studies[case.study] in known]
        if len(in_catalogue) < len(ranked):
            log.warning("studies_not_in_catalogue", studies=len(ranked) - len(in_catalogue))
        chosen = ranking.without_copies(now, in_catalogue, k)
        pairs = {case.study: ranking.best_pairs(now, probe, case.study, MATCHES) for case in chosen}
        instances = self._store.instances([int(now.ids[row]) for found in pairs.values() for _, row, _ in found])
        cases: list[Case] = []
        for case in chosen:
            found = pairs[case.study]
            matches = tuple(
                Match(query.slices[q].instance, instances[int(now.ids[row])], _unit(cosine))
                for q, row, cosine in found
                if int(now.ids[row]) in instances
            )
            if not matches:
                continue  # removed while we ranked
            uid = now.names.studies[case.study]
            of_study, status, coded = known[uid]
            cases.append(
                Case(
                    rank=len(cases) + 1,
                    similarity=_unit(case.score),
                    subject=now.names.patients[now.names.study_patient[case.study]],
                    study_uid=uid,
                    series_uid=now.names.series[int(now.codes[found[0][1], 1])],
                    modality=now.shows(case.study).modality or of_study,
                    status=status,
                    findings=coded,
                    matches=matches,
                )
            )
        return tuple(cases)

    def _catalogue(self, uids: Sequence[PseudoUid]) -> dict[PseudoUid, tuple[str, FindingStatus, tuple[Finding, ...]]]:
        """Modality, status and findings of each study the catalogue knows."""
        with self._store.reading() as c:
            rows = c.execute(select(studies).where(studies.c.uid.in_(uids))).all()
            coded: dict[int, list[Finding]] = {row.id: [] for row in rows}
            query = select(findings).where(findings.c.study_id.in_(list(coded)))
            for row in c.execute(query.order_by(findings.c.system, findings.c.code)):
                coded[row.study_id].append(Finding(row.system, row.code, row.display, row.source))
        return {PseudoUid(row.uid): (row.modality, FindingStatus(row.status), tuple(coded[row.id])) for row in rows}

    def _answer(
        self, now: Resident, query: QueryStudy, verdict: Verdict, cases: tuple[Case, ...], searched: int
    ) -> Answer:
        used = self._searcher.snapshot
        search: dict[str, Any] = {"method": "exact" if used is None else "mrpt", "vectors": now.n}
        if used is not None:
            manifest = used.manifest
            search |= {"target_recall": manifest.target_recall, "recall_lower": manifest.recall_lower}
        return Answer(
            query={**query.shows.as_json(), "slices": len(query.slices), "series": list(query.series)},
            model_id=self._store.model_id,
            verdict=verdict,
            cases=cases,
            searched=searched,
            calibrated=False,
            search=search,
        )


def _others(now: Resident, query: QueryStudy) -> NDArray[np.bool_]:
    """Rows that are neither of the query's patient nor of its study, bool [n]."""
    own_patients = {query.patient} if query.patient is not None else set()
    own_studies = {query.study} if query.study is not None else set()
    return now.open_rows(own_patients, own_studies)


def _unit(value: float) -> float:
    """A cosine or score as a similarity in 0..1, six decimals."""
    return round(min(1.0, max(0.0, value)), 6)
