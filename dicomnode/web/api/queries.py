"""``/api/v1/queries``: images from the browser as a question; progress as server-sent events; taken back at will.

A query is visible to who asked it and to administrators. What is uploaded goes from the connection to files in the
identified zone; the service behind ``QueryService`` de-identifies first and deletes it. No name of a file is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import structlog
from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from dicomnode.errors import DicomnodeError, TooManyRequests, UploadRefused
from dicomnode.web.access import Principal, require_user
from dicomnode.web.api.errors import errors
from dicomnode.web.options import WebOptions
from dicomnode.web.problems import problem
from dicomnode.web.uploads import FILE_FIELD, drain, receive

log = structlog.get_logger(__name__)

PREFIX = "/api/v1/queries"
MAX_K = 200
MAX_K_DIGITS = 4
MAX_TEXT = 200
LOOK_S = 0.1  # between two looks at a query's state
STREAMS = 64  # followed at once, of all users: each holds a connection of the server's 256
KEEPALIVE_S = 15.0  # a comment for proxies that close silent connections
ENDED = ("done", "failed")
UPLOAD_ID = r"^[0-9a-f]{32}$"


class QueryService(Protocol):
    """The queries of this process. Calls may block."""

    max_bytes: int
    max_files: int

    def begin(self, owner: str) -> tuple[str, Path]:
        """Id of a new query and the folder for its files; raises ``TooManyRequests``."""

    def submit(self, upload_id: str, files: Sequence[Path], k: int, text: str) -> dict[str, Any]:
        """Check and queue what was uploaded; its state."""

    def abandon(self, upload_id: str) -> None:
        """Delete a query of which nothing came."""

    def state(self, upload_id: str, asker: str | None) -> dict[str, Any] | None:
        """State of a query, None where ``asker`` (None: anybody) has no such."""

    def delete(self, upload_id: str, asker: str | None) -> bool:
        """Take a query back; False where ``asker`` has no such."""


class HasQueries(Protocol):
    """Services with queries."""

    @property
    def queries(self) -> QueryService: ...


class QueryError(BaseModel):
    """Why a query failed."""

    code: str = Field(description="Stable word: a reason of docs/quarantine.md or of docs/api.md.")
    detail: str = Field(description="One line for people.")


class QueryFinding(BaseModel):
    """A coded finding."""

    system: str
    code: str
    display: str


class QueryMatch(BaseModel):
    """A slice of the query beside its best slice in the case."""

    query_instance: str = Field(description='"slice-1" and so on.')
    instance: str
    similarity: float


class QueryCase(BaseModel):
    """A similar case of another patient."""

    rank: int
    similarity: float = Field(ge=0, le=1, description="Uncalibrated: an order, not a probability.")
    subject: str
    study_uid: str
    series_uid: str
    modality: str
    status: Literal["present", "none", "unknown"]
    findings: list[QueryFinding]
    matches: list[QueryMatch]


class QueryState(BaseModel):
    """How far a query is; once it is done, its answer under the keys of `dicomnode query --json`."""

    model_config = ConfigDict(json_schema_extra={"required": ["id", "state", "stage", "progress", "error", "skipped"]})

    id: str
    state: Literal["queued", "running", "done", "failed"]
    stage: Literal["received", "de-identified", "embedded", "searched", "done"] = Field(description="The last reached.")
    progress: float = Field(ge=0, le=1)
    error: QueryError | None = None
    skipped: dict[str, int] = Field(default_factory=dict, description="Files left out, by why.")
    query: dict[str, Any] | None = Field(None, description="What was compared: kind, modality, slices, series.")
    model_id: str | None = None
    verdict: Literal["similar", "none", "repository-too-small", "not-searchable"] | None = None
    reason: str | None = None
    p: float | None = Field(None, description="Conformal p; null where it cannot be given.")
    no_similar_case: bool | None = None
    calibrated: bool | None = None
    searched: int | None = None
    search: dict[str, Any] | None = None
    cases: list[QueryCase] | None = None


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FILE_FIELD],
                    "properties": {
                        FILE_FIELD: {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "DICOM files of one study, a zip of them, or one PNG, JPEG or WebP.",
                        },
                        "text": {
                            "type": "string",
                            "maxLength": MAX_TEXT,
                            "description": "Only cases with a finding whose words or code hold all of these words.",
                        },
                        "k": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
                    },
                }
            }
        },
    }
}

_CSRF = {
    "parameters": [
        {
            "name": "X-Dicomnode-CSRF",
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "description": "`csrf` of `GET /api/v1/session`.",
        }
    ]
}

UploadId = Annotated[str, InPath(pattern=UPLOAD_ID, description="From `POST /api/v1/queries`.")]
User = Annotated[Principal, Depends(require_user)]


def router(services: HasQueries, options: WebOptions) -> APIRouter:
    """The routes. ``options`` is taken as every router of the API takes it."""
    del options
    routes = _Routes(services.queries)
    made = APIRouter(prefix=PREFIX, tags=["queries"])
    made.add_api_route(
        "",
        routes.post,
        methods=["POST"],
        status_code=202,
        summary="Ask with images",
        response_model=QueryState,
        response_model_exclude_unset=True,
        responses={
            202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "Where its state is."}}},
            **errors(401, 403, 413, 415, 422, 429, 507),
        },
        openapi_extra={**_BODY, **_CSRF},
    )
    made.add_api_route(
        "/{upload_id}",
        routes.get,
        methods=["GET"],
        summary="State of a query, and its answer once it is done",
        response_model=QueryState,
        response_model_exclude_unset=True,
        responses=errors(401, 403, 404, 422, 429),
    )
    made.add_api_route(
        "/{upload_id}/events",
        routes.events,
        methods=["GET"],
        summary="State of a query at each change, as server-sent events; ends with the query",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "`event: state`, `data:` a QueryState.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **errors(401, 403, 404, 422, 429),
        },
    )
    made.add_api_route(
        "/{upload_id}",
        routes.delete,
        methods=["DELETE"],
        status_code=204,
        summary="Take a query back: all there is of it is deleted",
        response_class=Response,
        responses=errors(401, 403, 404, 422, 429),
        openapi_extra=_CSRF,
    )
    return made


class _Routes:
    def __init__(self, queries: QueryService) -> None:
        self._queries = queries
        self._streams = 0

    async def post(self, request: Request, principal: User) -> Response:
        """DICOM files of one study (or a zip of them), or one picture. De-identified before anything else is done."""
        try:
            state = await self._take(request, principal.name)
        except DicomnodeError as exc:
            if "expect" not in request.headers:  # such a client waits for leave to send (RFC 9110 10.1.1)
                await drain(request.stream())
            return _refusal(exc)
        place = f"{PREFIX}/{state['id']}"
        return JSONResponse(state, 202, {"Location": place})

    async def _take(self, request: Request, owner: str) -> dict[str, Any]:
        queries = self._queries
        upload_id, folder = await run_in_threadpool(queries.begin, owner)
        try:
            headers = request.headers
            received = await receive(
                request.stream(),
                headers.get("content-type", ""),
                headers.get("content-length", ""),
                folder,
                max_bytes=queries.max_bytes,
                max_files=queries.max_files,
            )
            k, text = _asked(received.fields)
            return await run_in_threadpool(queries.submit, upload_id, received.files, k, text)
        except BaseException:  # the client went away, too
            queries.abandon(upload_id)
            raise

    async def get(self, upload_id: UploadId, principal: User) -> Response:
        state = await run_in_threadpool(self._queries.state, upload_id, _asker(principal))
        if state is None:
            return _unknown()
        return JSONResponse(state, headers={"Cache-Control": "no-store"})

    async def events(self, upload_id: UploadId, principal: User, request: Request) -> Response:
        asker = _asker(principal)
        if await run_in_threadpool(self._queries.state, upload_id, asker) is None:
            return _unknown()
        if self._streams >= STREAMS:
            return _refusal(TooManyRequests("too-many-requests", f"{STREAMS} queries are followed already"))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._follow(upload_id, asker, request), 200, headers, "text/event-stream")

    async def _follow(self, upload_id: str, asker: str | None, request: Request) -> AsyncIterator[str]:
        self._streams += 1
        try:
            async for event in self._changes(upload_id, asker, request):
                yield event
        finally:
            self._streams -= 1

    async def _changes(self, upload_id: str, asker: str | None, request: Request) -> AsyncIterator[str]:
        told: dict[str, Any] | None = None
        silent = 0.0
        while not await request.is_disconnected():
            state = await run_in_threadpool(self._queries.state, upload_id, asker)
            if state is None:
                return
            if state != told:
                told, silent = state, 0.0
                yield f"event: state\ndata: {json.dumps(state)}\n\n"
            if state["state"] in ENDED:
                return
            await asyncio.sleep(LOOK_S)
            silent += LOOK_S
            if silent >= KEEPALIVE_S:
                silent = 0.0
                yield ": waiting\n\n"

    async def delete(self, upload_id: UploadId, principal: User) -> Response:
        if not await run_in_threadpool(self._queries.delete, upload_id, _asker(principal)):
            return _unknown()
        return Response(status_code=204)


def _asker(principal: Principal) -> str | None:
    return None if principal.admin else principal.name


def _asked(fields: dict[str, str]) -> tuple[int, str]:
    text = " ".join(fields.get("text", "").split())
    if len(text) > MAX_TEXT or not text.isprintable():
        raise UploadRefused("bad-text", f"text has at most {MAX_TEXT} printable characters")
    k = fields.get("k", "10").strip()
    if not (k.isascii() and k.isdigit() and len(k) <= MAX_K_DIGITS and 1 <= int(k) <= MAX_K):
        raise UploadRefused("bad-k", f"k is a number from 1 to {MAX_K}")
    return int(k), text


def _unknown() -> Response:
    return problem(404, "not-found", "there is no such query")


def _refusal(exc: DicomnodeError) -> Response:
    code = getattr(exc, "reason", exc.code)
    log.warning("request_refused", code=code, status=exc.http_status)
    response = problem(exc.http_status, code, exc.line)
    if isinstance(exc, TooManyRequests):
        response.headers["Retry-After"] = str(exc.retry_after_s)
    return response
