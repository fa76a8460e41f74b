"""``/api/v1/results/{result_id}/...``: everything a viewer shows of one result, checked in one place.

Every route depends on ``require_result``. Cases go by handles that are worth nothing in another result. Strings are
given as they are: a page must treat them as text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from dicomnode.web.access import Principal, require_result
from dicomnode.web.api import schema
from dicomnode.web.api.errors import errors
from dicomnode.web.handles import QUERY
from dicomnode.web.options import FrameData, GraphAsk, ResultServices, WebOptions, WhyAsk
from dicomnode.web.problems import problem
from dicomnode.web.texts import choose_language

PREFIX = "/api/v1/results/{result_id}"
MAX_K = 1000
MAX_TEXT = 200
ATLAS_MAX = 64  # squares of one sheet
ATLAS_SIZES = (32, 64, 128, 256)
MAX_NUMBER = 1_000_000  # of series and frames: more is no number of ours
IMMUTABLE = "private, max-age=86400, immutable"  # a frame's values never change
PRIVATE_HOUR = "private, max-age=3600"
NO_STORE = "no-store"
LIVE = "private, no-cache"

Reader = Annotated[Principal, Depends(require_result)]
Number = Annotated[int, Query(ge=0, le=MAX_NUMBER)]
Level = Annotated[float | None, Query(ge=-1e6, le=1e6, allow_inf_nan=False)]
Width = Annotated[float | None, Query(gt=0, le=1e6, allow_inf_nan=False)]


def results_router(services: ResultServices, options: WebOptions) -> APIRouter:
    """The routes."""
    routes = _Routes(services, options)
    made = APIRouter(prefix=PREFIX, tags=["results"])
    common = errors(401, 404, 410, 422, 429)

    def get(path: str, handler: Any, summary: str, model: Any = None, media: str = "", more: Any = None) -> None:
        ok: dict[str, Any] = {"model": model} if model else {"content": {media: {}}}
        made.add_api_route(
            path, handler, methods=["GET"], summary=summary, response_model=None,
            responses={200: ok, **common, **(more or {})},
            response_class=JSONResponse if model else Response,
        )  # fmt: skip

    get("", routes.result, "What a result says", schema.Result)
    get("/graph", routes.graph, "The stored answer as a graph, or asked again", schema.Graph, more=errors(409))
    get("/atlas", routes.atlas, "Thumbnails of up to 64 cases, eight a row", media="image/webp")
    get("/cases/{case}", routes.case, "What is known of a case", schema.CaseDetail)
    # the longer one first: {frame} must not take the suffix
    get("/cases/{case}/series/{series}/frames/{frame}.png", routes.png, "A frame through a window", media="image/png")
    get(
        "/cases/{case}/series/{series}/frames/{frame}",
        routes.frame,
        "Values of a frame: int16 little endian, row by row, modality LUT applied",
        media="application/octet-stream",
    )
    get(
        "/cases/{case}/series/{series}/frames/{frame}/masks.png",
        routes.masks,
        "Lungs (red) and infection (green; both: yellow) as the network outlines them, on the frame; not a finding",
        media="image/png",
        more=errors(503),
    )
    get("/cases/{case}/why", routes.why, "Which regions make two frames alike", schema.Why, more=errors(503))
    get("/contact-sheet.png", routes.sheet_png, "The stored answer as a picture", media="image/png")
    get("/contact-sheet.pdf", routes.sheet_pdf, "The stored answer as a document", media="application/pdf")
    return made


class _Routes:
    """Handlers; plain functions run in worker threads."""

    def __init__(self, services: ResultServices, options: WebOptions) -> None:
        self._services = services
        self._options = options

    def result(self, result_id: str, who: Reader) -> Response:
        return _json(self._services.result(result_id, who), NO_STORE)

    def graph(
        self,
        result_id: str,
        who: Reader,
        k: Annotated[int | None, Query(ge=1, le=MAX_K)] = None,
        text: Annotated[str, Query(max_length=MAX_TEXT)] = "",
        status: Annotated[Literal["present", "none", "unknown", ""], Query()] = "",
        modality: Annotated[str, Query(max_length=16)] = "",
        start: Annotated[str, Query(alias="from", max_length=64)] = "",
    ) -> Response:
        ask = GraphAsk(k, " ".join(text.split()), status, modality.strip(), "" if start == QUERY else start)
        return _json(self._services.graph(result_id, ask, who), LIVE)

    def atlas(
        self,
        result_id: str,
        who: Reader,
        cases: Annotated[str, Query(max_length=ATLAS_MAX * 65)],
        size: Annotated[int, Query(description="Side of a square: 32, 64, 128 or 256 pixels.")] = 64,
    ) -> Response:
        if size not in ATLAS_SIZES:
            return problem(422, "invalid", f"size: one of {', '.join(map(str, ATLAS_SIZES))}")
        asked = [case for case in cases.split(",") if case]
        if not 1 <= len(asked) <= ATLAS_MAX:
            return problem(422, "invalid", f"cases: 1 to {ATLAS_MAX} handles, separated by commas")
        content = self._services.atlas(result_id, asked, size, who)
        return Response(content, media_type="image/webp", headers={"Cache-Control": PRIVATE_HOUR})

    def case(self, result_id: str, case: str, who: Reader) -> Response:
        return _json(self._services.case(result_id, case, who), NO_STORE)

    def frame(self, request: Request, result_id: str, case: str, series: int, frame: int, who: Reader) -> Response:
        found = self._services.frame(result_id, case, series, frame, who)
        return _bytes(request, found, "application/octet-stream")

    def png(
        self,
        request: Request,
        result_id: str,
        case: str,
        series: int,
        frame: int,
        who: Reader,
        center: Level = None,
        width: Width = None,
    ) -> Response:
        found = self._services.rendered(result_id, case, series, frame, (center, width), who)
        return _bytes(request, found, "image/png")

    def masks(self, request: Request, result_id: str, case: str, series: int, frame: int, who: Reader) -> Response:
        found = self._services.masks(result_id, case, series, frame, who)
        return _bytes(request, found, "image/png", PRIVATE_HOUR)

    def why(
        self,
        result_id: str,
        case: str,
        who: Reader,
        query_series: Number | None = None,
        query_frame: Number | None = None,
        series: Number | None = None,
        frame: Number | None = None,
    ) -> Response:
        ask = WhyAsk(query_series, query_frame, series, frame)
        return _json(self._services.why(result_id, case, ask, who), PRIVATE_HOUR)

    def sheet_png(self, request: Request, result_id: str, who: Reader, lang: str | None = None) -> Response:
        return self._sheet(request, result_id, who, "png", lang)

    def sheet_pdf(self, request: Request, result_id: str, who: Reader, lang: str | None = None) -> Response:
        return self._sheet(request, result_id, who, "pdf", lang)

    def _sheet(self, request: Request, result_id: str, who: Principal, kind: str, lang: str | None) -> Response:
        language = choose_language(lang, request.headers.get("accept-language", ""), self._options.language)
        content = self._services.contact_sheet(result_id, kind, language, who)
        headers = {
            "Cache-Control": LIVE,
            "Content-Language": language,
            "Vary": "Accept-Language",
            "Content-Disposition": f'inline; filename="similar-cases.{kind}"',
        }
        return Response(content, media_type="image/png" if kind == "png" else "application/pdf", headers=headers)


def _json(value: dict[str, Any], cache: str) -> Response:
    return JSONResponse(value, headers={"Cache-Control": cache})


def _bytes(request: Request, found: FrameData, media_type: str, cache: str = IMMUTABLE) -> Response:
    """The frame, or 304 where the browser has it (RFC 9110 13.1.2)."""
    tag = f'"{found.tag}"'
    headers = {"ETag": tag, "Cache-Control": cache}
    known = [t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(found.content(), media_type=media_type, headers=headers)
