"""Queries from the browser: received into the identified zone, de-identified first, answered, kept for half an hour.

What was uploaded is deleted as soon as it is de-identified, when it fails, when it is taken back, and at the next start
of the process. What stays is de-identified: key slices in a folder of their own and vectors in memory. Nothing goes to
the catalogue, the vault, the index or the archive. One thread works; a process that ends forgets everything.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from dicomnode.domain import Answer, Pseudonym, PseudoUid, SliceRef
from dicomnode.errors import DicomnodeError, TooManyRequests
from dicomnode.telemetry.audit import AuditEvent, AuditTrail
from dicomnode.workflow.asking import Inputs, Question, Stage, deidentify, embed, search, sort_out
from dicomnode.workflow.context import Context
from dicomnode.workflow.unpacking import MAX_FILES, unpack

log = structlog.get_logger(__name__)

QUEUE_DEPTH = 8  # queries that are being received, wait or are answered; the next is told to come later
KEPT = 32  # answered queries; the one that was not looked at for longest goes first
KEPT_MINUTES = 30  # after its last use
LOOK_EVERY_S = 15.0
CLOSE_S = 5.0  # the step it is in may take longer; the process ends all the same
QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"


@dataclass(frozen=True, slots=True)
class KeptSlice:
    """A slice of an answered query.

    Attributes
    ----------
    name : str
        "slice-1"...: what it is called outside; its pseudonymous UIDs stay here.
    path : Path
        A de-identified DICOM file; an 8-bit grey PNG where ``picture``.
    frame : int
        From 0.
    z : float or None
        Position in its volume, 0..1.
    series : int
        Number of its series in the query, from 0.
    """

    name: str
    path: Path
    frame: int
    z: float | None
    series: int
    picture: bool


@dataclass(frozen=True, slots=True)
class UploadResult:
    """An answered query: what the viewer shows and what another ``k`` is asked with.

    ``question.query`` names its slices by ``KeptSlice.name`` and so does every answer to it; it holds their vectors and
    the patient to leave out. ``owner`` is who may see it, beside administrators. ``asked``, ``expires``: seconds since
    the epoch.
    """

    id: str
    owner: str
    asked: float
    expires: float
    answer: Answer
    question: Question = field(repr=False)
    slices: tuple[KeptSlice, ...]
    k: int
    text: str


@dataclass(slots=True, eq=False)
class _Upload:
    id: str
    owner: str
    folder: Path  # identified zone: as uploaded
    kept: Path  # de-identified
    state: str = QUEUED
    stage: Stage = Stage.RECEIVED
    progress: float = 0.0
    error: dict[str, str] | None = None
    k: int = 10
    text: str = ""
    inputs: Inputs | None = field(default=None, repr=False)  # until de-identified: it names the patient
    skipped: dict[str, int] = field(default_factory=dict)
    question: Question | None = None
    slices: tuple[KeptSlice, ...] = ()
    answer: Answer | None = None
    asked: float = field(default_factory=time.time)
    used: float = 0.0
    gone: bool = False

    @property
    def ended(self) -> bool:
        return self.state in (DONE, FAILED)


class _TakenBack(Exception):
    """The query was deleted while it was worked on."""


class Uploads:
    """The queries of one web process; safe for threads.

    Parameters
    ----------
    context : callable
        Makes the parts when first needed: the networks are loaded by the first query, not by the start.
    identified, kept : Path
        Folders of their own, swept here: for what is uploaded (identified zone), and for de-identified key slices.
    max_bytes : int
        Size of one upload.
    audit : AuditTrail
        Who asked is written down before anything is done.
    default_issuer : str
        Issuer of Patient IDs that name none.
    minutes : float
        How long an answered query is kept after its last use.
    shown : callable
        An answer without the cases that may no longer be shown.
    """

    def __init__(
        self,
        context: Callable[[], Context],
        identified: Path,
        kept: Path,
        *,
        max_bytes: int,
        audit: AuditTrail,
        default_issuer: str = "",
        minutes: float = KEPT_MINUTES,
        shown: Callable[[Answer], Answer] = lambda answer: answer,
        depth: int = QUEUE_DEPTH,
    ) -> None:
        self._context = context
        self._identified, self._kept = identified, kept
        self.max_bytes, self.max_files = max_bytes, MAX_FILES
        self._audit, self._issuer = audit, default_issuer
        self._shown = shown
        self._keep_s, self._depth = minutes * 60.0, depth
        self._uploads: dict[str, _Upload] = {}
        self._waiting: deque[_Upload] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        for folder in (identified, kept):
            shutil.rmtree(folder, ignore_errors=True)  # of a former life

    def begin(self, owner: str) -> tuple[str, Path]:
        """A place in the queue for an upload that begins: its id, and the folder that takes its files.

        Raises
        ------
        TooManyRequests
            ``busy``: the queue is full.
        """
        with self._changed:
            self._expire()
            if self._closing or sum(not u.ended for u in self._uploads.values()) >= self._depth:
                raise TooManyRequests("busy", "too many queries are waiting", advice="try again in a moment")
            upload_id = secrets.token_hex(16)
            upload = _Upload(upload_id, owner, self._identified / upload_id, self._kept / upload_id)
            upload.used = time.monotonic()
            for folder in (self._identified, self._kept, upload.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._uploads[upload_id] = upload
            if self._thread is None or not self._thread.is_alive():  # it loads the networks while the upload comes in
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()
        return upload_id, upload.folder

    def submit(self, upload_id: str, files: Sequence[Path], k: int, text: str) -> dict[str, Any]:
        """Check what was uploaded and queue it; returns its state. Whatever is refused is gone.

        Raises
        ------
        UploadRefused
            It is not one study, or one picture, that can be read; see docs/api.md for the reasons.
        """
        upload = self._uploads[upload_id]
        try:
            found = unpack(files, upload.folder, self.max_bytes)
            upload.inputs = sort_out(found.files, self._issuer)
            upload.skipped = upload.inputs.skipped
            for why, n in found.skipped.items():
                upload.skipped[why] = upload.skipped.get(why, 0) + n
            self._audit.record(AuditEvent.QUERY_ASKED, actor=upload.owner)
        except BaseException:
            self.abandon(upload_id)
            raise
        upload.k, upload.text = k, text
        with self._changed:
            self._waiting.append(upload)
            self._changed.notify_all()
            log.info("query_received", files=len(upload.inputs.files), skipped=sum(upload.skipped.values()))
            return self._state(upload)

    def abandon(self, upload_id: str) -> None:
        """Forget a query and delete all there is of it."""
        with self._changed:
            upload = self._uploads.pop(upload_id, None)
            if upload is None:
                return
            upload.gone = True
            if upload in self._waiting:
                self._waiting.remove(upload)
        _delete(upload)

    def state(self, upload_id: str, asker: str | None) -> dict[str, Any] | None:
        """QueryState of the API, and the answer once it is done; None where ``asker`` (None: anybody) has no such."""
        with self._changed:
            self._expire()
            upload = self._uploads.get(upload_id)
            if upload is None or asker not in (None, upload.owner):
                return None
            upload.used = time.monotonic()
            return self._state(upload)

    def delete(self, upload_id: str, asker: str | None) -> bool:
        """Take a query back, whatever its state; False where ``asker`` has no such."""
        if self.state(upload_id, asker) is None:
            return False
        self.abandon(upload_id)
        log.info("query_taken_back")
        return True

    def result(self, upload_id: str) -> UploadResult | None:
        """An answered query; None where it is unknown, unfinished, failed or no longer kept. Prolongs its life."""
        with self._changed:
            self._expire()
            upload = self._uploads.get(upload_id)
            if upload is None or upload.answer is None or upload.question is None:
                return None
            upload.used = time.monotonic()
            return UploadResult(
                id=upload.id,
                owner=upload.owner,
                asked=upload.asked,
                expires=time.time() + self._keep_s,
                answer=upload.answer,
                question=upload.question,
                slices=upload.slices,
                k=upload.k,
                text=upload.text,
            )

    def close(self) -> None:
        """Stop the thread after the step it is in, and delete everything."""
        with self._changed:
            self._closing = True
            for upload in self._uploads.values():
                upload.gone = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_S)
        for folder in (self._identified, self._kept):
            shutil.rmtree(folder, ignore_errors=True)

    def _state(self, upload: _Upload) -> dict[str, Any]:
        state: dict[str, Any] = {
            "id": upload.id,
            "state": upload.state,
            "stage": upload.stage.value,
            "progress": round(upload.progress, 3),
            "error": upload.error,
            "skipped": dict(upload.skipped),
        }
        return state if upload.answer is None else state | self._shown(upload.answer).as_json()

    def _expire(self) -> None:
        """Drop what was not used for long, and the oldest where there are too many. Holds the lock."""
        now = time.monotonic()
        ended = sorted((u for u in self._uploads.values() if u.ended), key=lambda u: u.used)
        surplus = max(0, len(ended) - KEPT)
        for number, upload in enumerate(ended):
            if number < surplus or now - upload.used > self._keep_s:
                del self._uploads[upload.id]
                _delete(upload)

    def _work(self) -> None:
        try:
            self._context()
        except Exception as exc:  # told to the query that meets it
            log.exception("request_failed", exc_info=exc)
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait(LOOK_EVERY_S)
                    self._expire()
                if self._closing:
                    return
                upload = self._waiting.popleft()
                upload.state = RUNNING
            self._answer(upload)

    def _answer(self, upload: _Upload) -> None:
        began = time.monotonic()
        try:
            answer = self._steps(upload)
            metrics = self._context().metrics
        except _TakenBack:
            _delete(upload)
            return
        except DicomnodeError as exc:
            reason = getattr(exc, "reason", exc.code)
            self._failed(upload, reason, exc.line)
            return
        except Exception as exc:  # a fault of ours must not stop the thread; told without its text
            log.exception("request_failed", exc_info=exc)
            self._failed(upload, "error", "the query could not be answered")
            return
        finally:
            upload.inputs = None
        with self._changed:
            upload.answer, upload.state, upload.stage, upload.progress = answer, DONE, Stage.DONE, 1.0
            upload.used = time.monotonic()
            gone = upload.gone
        if gone:
            _delete(upload)
        kind = answer.verdict.kind.value
        metrics.query("web")
        metrics.verdict(kind)
        log.info("query_answered", verdict=kind, seconds=round(time.monotonic() - began, 3))

    def _steps(self, upload: _Upload) -> Answer:
        """De-identified, embedded, searched; what was uploaded is gone after the first."""

        def tell(stage: Stage, progress: float) -> None:
            with self._changed:
                if upload.gone:
                    raise _TakenBack
                upload.stage, upload.progress = stage, progress

        inputs = upload.inputs
        assert inputs is not None
        ctx = self._context()
        tell(Stage.RECEIVED, 0.05)
        try:
            cleaned = deidentify(ctx, inputs, upload.kept, tell)
        finally:
            shutil.rmtree(upload.folder, ignore_errors=True)
        tell(Stage.DEIDENTIFIED, 0.5)
        question = embed(ctx, inputs, cleaned)
        for path in set(cleaned.files) - set(question.files):
            path.unlink(missing_ok=True)
        tell(Stage.EMBEDDED, 0.9)
        upload.inputs = None
        question, upload.slices = _renamed(question, picture=inputs.is_picture)
        answer = search(ctx, question, upload.k, upload.text)
        tell(Stage.SEARCHED, 0.98)
        upload.question = question
        return answer

    def _failed(self, upload: _Upload, reason: str, line: str) -> None:
        with self._changed:
            upload.error, upload.state, upload.used = {"code": reason, "detail": line}, FAILED, time.monotonic()
            gone = upload.gone
        _delete(upload)
        if not gone:
            log.info("query_failed", reason=reason)


def _renamed(question: Question, *, picture: bool) -> tuple[Question, tuple[KeptSlice, ...]]:
    """The question with slices that are called "slice-1"...: nothing that is told of it can hold a UID."""
    refs: list[SliceRef] = []
    kept: list[KeptSlice] = []
    series: dict[PseudoUid, int] = {}
    for number, (ref, path) in enumerate(zip(question.refs, question.files, strict=True), start=1):
        name = f"slice-{number}"
        of_series = series.setdefault(ref.series, len(series))
        refs.append(
            SliceRef(PseudoUid(name), PseudoUid(f"series-{of_series}"), PseudoUid(""), Pseudonym(""), ref.frame, ref.z)
        )
        kept.append(KeptSlice(name, path, ref.frame, ref.z, of_series, picture))
    return replace(question, refs=tuple(refs), query=replace(question.query, slices=tuple(refs))), tuple(kept)


def _delete(upload: _Upload) -> None:
    for folder in (upload.folder, upload.kept):
        shutil.rmtree(folder, ignore_errors=True)
