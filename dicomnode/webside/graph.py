"""The graph of a result: the stored answer as it is, or asked again now with another k, filter or case to start from.

The query's own patient is in no search, whatever it starts from. What was removed or excluded since is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dicomnode.archive.cases import CaseRow, Cases
from dicomnode.archive.catalogue import Catalogue
from dicomnode.domain import Answer, Case, FindingStatus, ModelId, Pseudonym, PseudoUid, SliceRef
from dicomnode.errors import InputError, NotFound
from dicomnode.index import neighbours
from dicomnode.index.cases import QueryStudy
from dicomnode.index.ranking import Probe, best_pairs
from dicomnode.index.repository import VectorIndex
from dicomnode.index.resident import Resident
from dicomnode.web.handles import QUERY, Handles
from dicomnode.web.options import GraphAsk
from dicomnode.webside.opened import OpenResult, OpenSlice, own_patients

Place = tuple[PseudoUid, int]  # an instance of the repository and the frame in it


class Graphs:
    """Makes graphs of results, each by the model that answered it where its vectors are kept; safe for threads.

    Parameters
    ----------
    index : callable
        The index of the model that gave an answer, or of the one in force where it has gone.
    """

    def __init__(
        self, index: Callable[[ModelId], VectorIndex], catalogue: Catalogue, cases: Cases, handles: Handles, k: int
    ) -> None:
        self._index_of = index
        self._catalogue = catalogue
        self._cases = cases
        self._handles = handles
        self._k = k

    def graph(self, result: OpenResult, ask: GraphAsk, start: CaseRow | None) -> dict[str, Any]:
        """``Graph`` of the API.

        Parameters
        ----------
        ask : GraphAsk
            Empty: the stored answer.
        start : CaseRow or None
            The case to ask from, where one is given.

        Raises
        ------
        ModelMismatch
            Asked again although the node has another model than the answer.
        InputError
            Asked again although the query's vectors are no longer kept.
        """
        index = self._index(result)
        answer = self._ask(index, result, ask, start) if ask.is_live else result.answer
        now = index.searcher.refresh()
        probe = self._case_probe(now, start) if start is not None else self._probe(index, result)
        rows = self._cases.by_uid([case.study_uid for case in answer.cases])
        own = own_patients(result, self._cases)
        shown = [
            (case, rows[case.study_uid])
            for case in answer.cases
            if case.study_uid in rows and rows[case.study_uid].patient not in own
        ]
        nodes, edges = self._nodes(result, now, probe, shown)
        return {
            "live": ask.is_live,
            "verdict": answer.verdict.kind.value,
            "reason": answer.verdict.reason,
            "p": answer.verdict.p,
            "calibrated": answer.calibrated,
            "searched": answer.searched,
            "from": self._handles.make(result.id, start.id, start.study) if start is not None else None,
            "total": len(shown),
            "nodes": [self._centre(result, start), *nodes],
            "edges": edges,
        }

    def _index(self, result: OpenResult) -> VectorIndex:
        return self._index_of(result.answer.model_id)

    def _ask(self, index: VectorIndex, result: OpenResult, ask: GraphAsk, start: CaseRow | None) -> Answer:
        exclude = own_patients(result, self._cases)
        if start is None:
            if not len(result.slices) or len(result.vectors) != len(result.slices):
                raise InputError("the query's images are no longer kept", advice="send the study again")
            query = QueryStudy(
                slices=[_ref(PseudoUid(s.name), s.frame, s.z) for s in result.slices],
                vectors=np.ascontiguousarray(result.vectors),
                patient=result.patient,
                study=result.study,
                shows=result.answer.shows,
                model_id=result.answer.model_id,
            )
        else:
            query = self._case_query(index, start)
            if result.study is not None and start.study == result.study:
                raise NotFound("no such case")
        k = ask.k or max(1, len(result.answer.cases)) if start is None else ask.k or self._k
        return index.retriever.retrieve(query, k, allow=self._allowed(ask), exclude_patients=exclude)

    def _case_query(self, index: VectorIndex, start: CaseRow) -> QueryStudy:
        now = index.searcher.refresh()
        rows = self._rows(now, start.study)
        if not len(rows):
            raise NotFound("this case has no images that can be compared")
        instances = index.store.instances([int(now.ids[row]) for row in rows])
        kept = [row for row in rows if int(now.ids[row]) in instances]
        refs = [
            _ref(instances[int(now.ids[row])], 0, None if np.isnan(now.z[row]) else float(now.z[row])) for row in kept
        ]
        return QueryStudy(
            slices=refs,
            vectors=np.ascontiguousarray(now.matrix[kept]),
            patient=start.patient,
            study=start.study,
            shows=now.shows(self._number(now, start.study) or 0),
        )

    def _allowed(self, ask: GraphAsk) -> set[PseudoUid] | None:
        allow: set[PseudoUid] | None = None
        if ask.status or ask.modality:
            status = FindingStatus(ask.status) if ask.status else None
            allow = self._cases.where(status=status, modality=ask.modality or None)
        if ask.text.split():
            said = self._catalogue.studies_with_finding(ask.text)
            allow = said if allow is None else allow & said
        return allow

    def _probe(self, index: VectorIndex, result: OpenResult) -> Probe | None:
        """The query's vectors; None where they are gone or another model's."""
        if result.answer.model_id != index.store.model_id or not len(result.slices):
            return None
        z = np.array([np.nan if s.z is None else s.z for s in result.slices], dtype=np.float32)
        return Probe(np.ascontiguousarray(result.vectors), z)

    def _case_probe(self, now: Resident, start: CaseRow) -> Probe | None:
        rows = self._rows(now, start.study)
        return Probe(np.ascontiguousarray(now.matrix[rows]), now.z[rows]) if len(rows) else None

    def _nodes(
        self, result: OpenResult, now: Resident, probe: Probe | None, shown: Sequence[tuple[Case, CaseRow]]
    ) -> tuple[list[dict[str, Any]], list[tuple[int, int, float]]]:
        numbers = [self._number(now, case.study_uid) for case, _ in shown]
        placed = [i for i, number in enumerate(numbers) if number is not None]
        best = neighbours.best_rows(now, probe, [n for n in numbers if n is not None])
        vectors = now.matrix[best]
        angle = dict(zip(placed, neighbours.angles(vectors).tolist(), strict=True))
        nodes = [
            self._node(result, case, row, angle.get(i, 2 * math.pi * i / len(shown)), has_picture=i in angle)
            for i, (case, row) in enumerate(shown)
        ]
        edges = [(placed[i] + 1, placed[j] + 1, d) for i, j, d in neighbours.edges(vectors)]
        return nodes, edges

    def _node(self, result: OpenResult, case: Case, row: CaseRow, angle: float, *, has_picture: bool) -> dict[str, Any]:
        return {
            "id": self._handles.make(result.id, row.id, row.study),
            "rank": case.rank,
            "similarity": case.similarity,
            "distance": 1 - case.similarity,
            "angle": round(angle, 6),
            "status": case.status.value,
            "findings": [f.as_json() for f in case.findings],
            "modality": row.modality,
            "body_part": row.body_part,
            "subject": row.patient,
            "has_picture": has_picture or bool(case.matches),
        }

    def _centre(self, result: OpenResult, start: CaseRow | None) -> dict[str, Any]:
        centre: dict[str, Any] = {"rank": 0, "similarity": 1.0, "distance": 0.0, "angle": 0.0}
        if start is None:
            modality = result.answer.shows.modality
            return {
                "id": QUERY,
                **centre,
                "status": FindingStatus.UNKNOWN.value,
                "findings": [],
                "modality": modality,
                "body_part": "",
                "subject": "",
                "has_picture": bool(result.slices),
            }
        return {
            "id": self._handles.make(result.id, start.id, start.study),
            **centre,
            "status": start.status.value,
            "findings": [f.as_json() for f in start.findings],
            "modality": start.modality,
            "body_part": start.body_part,
            "subject": start.patient,
            "has_picture": True,
        }

    def best_places(self, result: OpenResult, rows: Sequence[CaseRow]) -> dict[PseudoUid, Place]:
        """The slice of each study that matches the query best: what its thumbnail shows."""
        index, found = self._index(result), dict[PseudoUid, Place]()
        now = index.searcher.refresh()
        numbers = {row.study: n for row in rows if (n := self._number(now, row.study)) is not None}
        best = neighbours.best_rows(now, self._probe(index, result), list(numbers.values()))
        places = index.store.places([int(now.ids[row]) for row in best])
        for study, row in zip(numbers, best, strict=True):
            place = places.get(int(now.ids[row]))
            if place is not None:
                found[study] = place
        for case in result.answer.cases:  # of another model, or no longer in the index
            if case.study_uid not in found and case.matches:
                found[case.study_uid] = (case.matches[0].instance, 0)
        return found

    def best_slice(self, result: OpenResult) -> OpenSlice | None:
        """The query's slice that stands for it: of the best match of the first case, else the middle one."""
        if not result.slices:
            return None
        named = {s.name: s for s in result.slices}
        matches = result.answer.cases[0].matches if result.answer.cases else ()
        return named.get(matches[0].query_instance if matches else "", result.slices[len(result.slices) // 2])

    def pairs(self, result: OpenResult, row: CaseRow, wanted: int) -> list[tuple[int, Place, float]]:
        """Best matching pairs with a case: (number of the query's slice, place in the case, similarity), best first."""
        index = self._index(result)
        now, probe = index.searcher.refresh(), self._probe(index, result)
        number = self._number(now, row.study)
        if probe is None or number is None:
            return self._stored_pairs(result, row, wanted)
        found = best_pairs(now, probe, number, wanted)
        places = index.store.places([int(now.ids[r]) for _, r, _ in found])
        return [
            (q, places[int(now.ids[r])], min(1.0, max(0.0, round(cosine, 6))))
            for q, r, cosine in found
            if int(now.ids[r]) in places
        ]

    def _stored_pairs(self, result: OpenResult, row: CaseRow, wanted: int) -> list[tuple[int, Place, float]]:
        numbers = {s.name: i for i, s in enumerate(result.slices)}
        for case in result.answer.cases:
            if case.study_uid == row.study:
                matches = case.matches[:wanted]
                return [(numbers.get(m.query_instance, -1), (m.instance, 0), m.similarity) for m in matches]
        return []

    @staticmethod
    def _number(now: Resident, study: PseudoUid) -> int | None:
        """Number of a study that has rows in what is seen now."""
        number = now.names.study_of.get(study)
        return number if number is not None and number < len(now.study_count) and now.study_count[number] else None

    def _rows(self, now: Resident, study: PseudoUid) -> npt.NDArray[np.int64]:
        number = self._number(now, study)
        return np.empty(0, dtype=np.int64) if number is None else now.rows_of(number)


def _ref(name: PseudoUid, frame: int, z: float | None) -> SliceRef:
    """A slice of a query; whose it is, is said for all of them at once."""
    return SliceRef(name, PseudoUid(""), PseudoUid(""), Pseudonym(""), frame, z)
