"""Results as the viewer opens them: stored answers by their link, and queries made in the browser, under one shape.

Finding one writes the audit trail: once for an opening, once for each view of a case. Nothing that identifies the query
leaves the object but to who searches with it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from dicomnode.archive.answers import Answers, StoredAnswer
from dicomnode.archive.cases import Cases
from dicomnode.domain import Answer, Pseudonym, PseudoUid
from dicomnode.errors import Expired, NotFound
from dicomnode.telemetry.audit import AuditEvent, AuditTrail
from dicomnode.web.access import Principal
from dicomnode.workflow.uploads import UploadResult

RESULT_ID = re.compile(r"[0-9a-f]{32}")
DAY_S = 86400.0
OPEN_S = 300.0  # what one person asks of a result or case within this time is one view of it
OPEN_MAX = 4096
HELD_S, HELD_MAX = 60.0, 64  # answers read from the catalogue, so that a hundred images are not a hundred look-ups


@dataclass(frozen=True, slots=True)
class OpenSlice:
    """A key slice of the query: its name in the answer's matches, its file, frame, and position in the volume."""

    name: str
    path: Path
    frame: int
    z: float | None


@dataclass(frozen=True, slots=True)
class OpenResult:
    """A result that may be shown to who asked.

    Attributes
    ----------
    row : int or None
        Of the stored answer; None for an upload.
    vectors : float32 [n, dim]
        Beside ``slices``; both empty where they are no longer kept.
    patient, study
        The query's own: never shown, and left out of every search. No patient: nobody known when it was asked.
    created : float
        When it was asked, seconds since the epoch.
    """

    id: str
    kind: Literal["answer", "upload"]
    row: int | None
    answer: Answer
    expires: float | None
    slices: tuple[OpenSlice, ...]
    vectors: npt.NDArray[np.float32] = field(repr=False)
    patient: Pseudonym | None = field(default=None, repr=False)
    study: PseudoUid | None = field(default=None, repr=False)
    text: str = ""
    created: float = 0.0


def still_shown(answer: Answer, cases: Cases) -> Answer:
    """An answer without the cases that were removed, or whose patient was excluded, since it was made."""
    there = cases.by_uid(case.study_uid for case in answer.cases)
    return replace(answer, cases=tuple(case for case in answer.cases if case.study_uid in there))


def own_patients(result: OpenResult, cases: Cases, only: Collection[Pseudonym] | None = None) -> set[Pseudonym]:
    """Who may be the query's own patient, and so is in no search; ``only``: which of these few may be.

    A patient whom nobody knew when a study was asked about may be in the repository since, under a pseudonym that the
    result cannot tell: all who came later are left out then. A plain picture is of nobody.
    """
    if result.patient is not None:
        return {result.patient}
    return cases.patients_since(result.created, only) if result.study else set()


class FindUpload(Protocol):
    """Queries made in the browser."""

    def result(self, upload_id: str) -> UploadResult | None: ...


class Opened:
    """Finds results and records that they were looked at; safe for threads.

    Parameters
    ----------
    answers : Answers
    patient_of : callable
        Whose a study of the repository is, for answers that do not say.
    results_folder : Path
        Where the key slices of answers lie.
    audit : AuditTrail
    link_days : int
        ``[web] link_days``.
    """

    def __init__(
        self,
        answers: Answers,
        patient_of: Callable[[PseudoUid], Pseudonym | None],
        results_folder: Path,
        audit: AuditTrail,
        link_days: int,
    ) -> None:
        self._answers = answers
        self._patient_of = patient_of
        self._folder = results_folder
        self._audit = audit
        self._link_s = link_days * DAY_S
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[float, OpenResult]] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self.uploads: FindUpload | None = None

    def find(self, result_id: str, principal: Principal, *, opening: bool = False) -> OpenResult:
        """A result, for who may see it.

        Parameters
        ----------
        opening : bool
            Somebody opens it now: recorded however shortly ago it was opened before.

        Raises
        ------
        NotFound
            There is none, or it is another user's upload.
        Expired
            Its link no longer works.
        """
        if not RESULT_ID.fullmatch(result_id):
            raise NotFound("no such result")
        found = self._upload(result_id, principal) or self._answer(result_id)
        if found.expires is not None and found.expires < time.time():
            raise Expired("this link has expired", advice="send the study again for a new answer")
        if self._is_new(principal.name, result_id, "", opening):
            reason = "upload" if found.kind == "upload" else ""
            self._audit.record(AuditEvent.ANSWER_VIEWED, actor=principal.name, row=found.row, reason=reason)
        return found

    def viewed(self, result: OpenResult, subject: Pseudonym, principal: Principal, *, opening: bool = False) -> None:
        """Record that a case of a result is looked at."""
        if self._is_new(principal.name, result.id, subject, opening):
            self._audit.record(AuditEvent.CASE_VIEWED, actor=principal.name, pseudonym=subject, row=result.row)

    def _upload(self, result_id: str, principal: Principal) -> OpenResult | None:
        found = self.uploads.result(result_id) if self.uploads is not None else None
        if found is None:
            return None
        if not (principal.admin or principal.name == found.owner):
            raise NotFound("no such result")
        query = found.question.query
        return OpenResult(
            id=result_id,
            kind="upload",
            row=None,
            answer=found.answer,
            expires=found.expires,
            slices=tuple(OpenSlice(s.name, s.path, s.frame, s.z) for s in found.slices),
            vectors=np.asarray(query.vectors, dtype=np.float32),
            patient=query.patient,
            study=query.study,
            text=found.text,
            created=found.asked,
        )

    def _answer(self, token: str) -> OpenResult:
        with self._lock:
            since, held = self._held.get(token, (0.0, None))
        if held is not None and time.monotonic() - since < HELD_S:
            return held
        try:
            found = self._read(self._answers.by_token(token))
        except NotFound:
            raise NotFound("no such result") from None
        with self._lock:
            self._held[token] = (time.monotonic(), found)
            self._held.move_to_end(token)
            while len(self._held) > HELD_MAX:
                self._held.popitem(last=False)
        return found

    def _read(self, stored: StoredAnswer) -> OpenResult:
        kept = self._answers.slices(stored.id)
        return OpenResult(
            id=stored.token,
            kind="answer",
            row=stored.id,
            answer=stored.answer,
            expires=stored.created + self._link_s,
            slices=tuple(OpenSlice(s.instance_uid, self._folder / s.path, s.frame, s.z) for s in kept),
            vectors=np.stack([s.vector for s in kept]) if kept else np.empty((0, 0), dtype=np.float32),
            patient=stored.patient or self._patient_of(stored.study_uid),
            study=stored.study_uid,
            created=stored.created,
        )

    def _is_new(self, actor: str, result_id: str, subject: str, opening: bool) -> bool:
        now, key = time.monotonic(), (actor, result_id, subject)
        with self._lock:
            fresh = opening or now - self._seen.get(key, -OPEN_S) >= OPEN_S
            if fresh:
                self._seen[key] = now
                self._seen.move_to_end(key)
                while len(self._seen) > OPEN_MAX:
                    self._seen.popitem(last=False)
            return fresh
