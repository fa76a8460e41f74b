"""What C-FIND asks of the repository: attributes from the catalogue, similar cases from the stored vectors.

Runs in the receivers, so it needs no networks: a study is asked about with the vectors it was indexed with, or with
those kept of a query. Vault and index are opened at the first request that needs them. Never writes anything, and
never gives a UID as the hospital knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dicomnode.archive.answers import Answers
from dicomnode.archive.finding import Condition, Finder, Level, Row
from dicomnode.deid.vault import Vault
from dicomnode.domain import Case, OriginalUid, PseudoUid
from dicomnode.index.cases import QueryStudy
from dicomnode.index.repository import VectorIndex
from dicomnode.scp.find import SimilarRow


@dataclass(frozen=True, slots=True)
class _Slice:
    """A slice of the study asked about."""

    instance: PseudoUid
    z: float | None


class RepositoryQueries:
    """The repository as C-FIND sees it; safe for threads.

    Parameters
    ----------
    finder : Finder
    answers : Answers
    vault : callable
        Opens the vault, or gives it where it is open.
    indexes : callable
        The vector index of the model in force now, then those of other models whose vectors are kept.
    k : int
        Similar cases where the request does not say how many.
    """

    def __init__(
        self,
        finder: Finder,
        answers: Answers,
        vault: Callable[[], Vault],
        indexes: Callable[[], Sequence[VectorIndex]],
        k: int,
    ) -> None:
        self._finder = finder
        self._answers = answers
        self._vault = vault
        self._indexes = indexes
        self._k = k

    def pseudonymous(self, uid: str) -> Iterable[str]:
        """The UID itself, and what it is here if it is the hospital's."""
        return uid, self._vault().uid(OriginalUid(uid))

    def find(self, level: Level, conditions: Sequence[Condition], wanted: Collection[str]) -> Iterator[Row]:
        """``Finder.find``."""
        return self._finder.find(level, conditions, wanted)

    def similar(
        self, instance: str, maximum: int | None, conditions: Sequence[Condition], wanted: Collection[str]
    ) -> tuple[str, list[SimilarRow]]:
        """Similar cases of the study that an instance belongs to, as ``dicomnode query`` of that study ranks them.

        Parameters
        ----------
        instance : str
            SOP Instance UID, original or pseudonymous, of the repository or of a query whose page is still kept.
        maximum : int, optional
            Cases wanted.
        conditions : sequence of Condition
            Only cases with an indexed instance that fulfils all of them.
        wanted : collection of str
            Keywords of each row.

        Returns
        -------
        (str, list of SimilarRow)
            The pseudonymous UID of ``instance``, "" where it is not known; a row a case, by rank. A row is the case's
            best matching instance among those that fulfil the conditions.

        Raises
        ------
        DicomnodeError
            The vault or the index cannot be read.
        """
        uids = tuple(self.pseudonymous(instance))
        for index in self._indexes():  # a query that is kept has vectors of the model that answered it
            known, query = self._query_of(index, uids)
            if query is not None:
                break
        else:
            return "", []
        allow = self._finder.indexed_studies(conditions) if conditions else None
        if allow is not None and not allow:
            return known, []
        cases = index.retriever.nearest(query, maximum or self._k, allow=allow)
        return known, self._rows(cases, conditions, wanted)

    def _query_of(self, index: VectorIndex, uids: tuple[str, ...]) -> tuple[str, QueryStudy | None]:
        found = self._finder.locate(uids)
        if found is None:
            return self._kept_query(index, uids)
        now = index.searcher.refresh()
        number = now.names.study_of.get(found.study)
        if number is None or number >= len(now.study_count) or not now.study_count[number]:
            return "", None  # in the repository, but nothing of it can be searched
        rows = now.rows_of(number)
        instances = index.store.instances([int(i) for i in now.ids[rows]])
        kept = [row for row in rows if int(now.ids[row]) in instances]  # one may just have been removed
        if not kept:
            return "", None
        z = [None if np.isnan(now.z[row]) else float(now.z[row]) for row in kept]
        slices = [_Slice(instances[int(now.ids[row])], depth) for row, depth in zip(kept, z, strict=True)]
        study = QueryStudy(
            slices=slices,
            vectors=now.matrix[kept],
            patient=found.patient,
            study=found.study,
            shows=now.shows(number),
            model_id=index.store.model_id,
        )
        return found.instance, study

    def _kept_query(self, index: VectorIndex, uids: tuple[str, ...]) -> tuple[str, QueryStudy | None]:
        """A query that was answered and never kept (AE role "query"): its key slices are there for its page."""
        kept = self._finder.kept_query(uids, index.store.model_id)
        if kept is None:
            return "", None
        known, answer_id = kept
        answer, slices = self._answers.by_id(answer_id), self._answers.slices(answer_id)
        if not slices:
            return "", None  # its time has just run out
        study = QueryStudy(
            slices=[_Slice(s.instance_uid, s.z) for s in slices],
            vectors=np.stack([s.vector for s in slices]),
            patient=answer.patient,
            study=answer.study_uid,
            shows=answer.answer.shows,
            model_id=answer.model_id,
        )
        return known, study

    def _rows(
        self, cases: Sequence[Case], conditions: Sequence[Condition], wanted: Collection[str]
    ) -> list[SimilarRow]:
        matched = list(dict.fromkeys(m.instance for case in cases for m in case.matches))
        fulfilling = self._finder.instances(matched, conditions, wanted)
        rows = []
        for case in cases:
            best = next((m.instance for m in case.matches if m.instance in fulfilling), None)
            if best is None:  # the pairs shown are of another series of the case
                first = self._finder.first_indexed(case.study_uid, conditions)
                fulfilling.update(self._finder.instances([first] if first else [], conditions, wanted))
                best = first
            if best is not None and best in fulfilling:
                rows.append(SimilarRow(fulfilling[best], case.similarity, case.rank))
        return rows
