"""The ASGI application: health, readiness, metrics, and the page of an answer.

Made by ``create_app`` from options and services; no state of its own. Nothing about the query but its modality and
number of slices leaves it, and no token, UID or path is ever logged.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import structlog
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from dicomnode import __version__
from dicomnode.domain import Answer
from dicomnode.errors import DicomnodeError
from dicomnode.web.access import principal_of, require_user
from dicomnode.web.api.queries import QueryService
from dicomnode.web.api.queries import router as queries_router
from dicomnode.web.api.results import results_router
from dicomnode.web.api.session import session_router
from dicomnode.web.bundle import Bundle
from dicomnode.web.options import EXPIRED, LinkState, ResultServices, WebOptions, WebServices
from dicomnode.web.page import Pages, best_instance
from dicomnode.web.problems import problem
from dicomnode.web.security import Guard, secure
from dicomnode.web.sessions import SignIn
from dicomnode.web.sign_in import doorway
from dicomnode.web.texts import Language, choose_language

log = structlog.get_logger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus text exposition format
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")  # 128 random bits in hexadecimal or URL-safe base64
STATIC_TYPES = {"page.css": "text/css", "icon.svg": "image/svg+xml"}
IMMUTABLE = "public, max-age=31536000, immutable"
OPENED_S, OPENED_MAX = 300.0, 64  # a page's images are asked for within seconds of it
IMAGE_CACHE = "private, max-age=3600"
SHELL_CACHE = "private, no-cache"  # its assets' names change with a new version
HTTP_CODES = {401: "not-signed-in", 403: "out-of-scope", 404: "not-found", 405: "method-not-allowed"}


def create_app(
    services: WebServices,
    options: WebOptions,
    sign_in: SignIn | None = None,
    *,
    results: ResultServices | None = None,
    queries: QueryService | None = None,
) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    services : WebServices
        What it asks; calls may block, they run in worker threads.
    options : WebOptions
        How it is reached.
    sign_in : SignIn, optional
        Users and sessions; needed where ``[web] auth`` asks for sign-in.
    results, queries : optional
        What answers the API; its routes are there where these are.

    Raises
    ------
    SettingsError
        Options that would open the pages to a network without sign-in (``WebOptions.check``).
    """
    options.check()
    site = _Site(services, options)
    entry, gate = doorway(options, sign_in, site.pages)
    app = FastAPI(
        title="dicomnode",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        routes=[
            *entry,
            Route("/", site.root),
            Route("/healthz", site.healthz),
            Route("/readyz", site.readyz),
            Route("/metrics", site.metrics),
            Route("/v", site.home),
            Route("/v/", site.viewer),
            Route("/v/assets/{name}", site.asset),
            Route("/v/q/{token}", site.viewer),
            Route("/v/r/{token}", site.answer),
            Route("/v/r/{token}/plain", site.plain),
            Route("/v/r/{token}/cases/{rank:int}.png", site.case_image),
            Route("/static/{name}", site.static),
        ],
        middleware=[Middleware(Guard, options=options), gate],
        exception_handlers={
            HTTPException: site.on_http_error,
            RequestValidationError: site.on_bad_request,
            DicomnodeError: site.on_our_error,
            Exception: site.on_fault,
        },
    )
    app.include_router(session_router(options))
    if results is not None:
        app.include_router(results_router(results, options))
    if queries is not None:
        app.include_router(queries_router(_Queries(queries), options))

    @app.get("/api/openapi.json", include_in_schema=False, dependencies=[Depends(require_user)])
    def openapi() -> Response:
        return JSONResponse(app.openapi())

    return app


@dataclass(frozen=True, slots=True)
class _Queries:
    queries: QueryService


class _Opened:
    """Answers whose page was just opened: its images then need no second look-up, nor a second audit entry."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Answer]] = OrderedDict()

    def keep(self, token: str, answer: Answer) -> None:
        self._kept[token] = (time.monotonic(), answer)
        self._kept.move_to_end(token)
        while len(self._kept) > OPENED_MAX:
            self._kept.popitem(last=False)

    def recall(self, token: str) -> Answer | None:
        opened, answer = self._kept.get(token, (0.0, None))
        return answer if answer is not None and time.monotonic() - opened < OPENED_S else None


class _Site:
    """The routes, with what they share."""

    def __init__(self, services: WebServices, options: WebOptions) -> None:
        self._services = services
        self._options = options
        self._opened = _Opened()
        self._bundle = Bundle(options.viewer)
        self._static = {_hashed(name): (name, _static(name)) for name in STATIC_TYPES}
        self.pages = self._pages = Pages({name: f"/static/{hashed}" for hashed, (name, _) in self._static.items()})

    async def root(self, _request: Request) -> Response:
        """Where somebody arrives who types the node's address."""
        return RedirectResponse("/readyz" if self._bundle.shell() is None else "/v/", status_code=307)

    async def healthz(self, _request: Request) -> Response:
        """The process is alive: nothing else is asked."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """200 only where every required part is ready; the body tells which is not."""
        states = dict(await run_in_threadpool(self._services.readiness))
        for name in self._options.required_parts:
            states.setdefault(name, {"ready": False, "detail": "not running"})
        ready = all(states[name]["ready"] for name in self._options.required_parts)
        return JSONResponse({"ready": ready, "parts": states}, status_code=200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        return Response(await run_in_threadpool(self._services.metrics), headers={"Content-Type": METRICS_TYPE})

    async def home(self, _request: Request) -> Response:
        return RedirectResponse("/v/", status_code=307)

    async def viewer(self, request: Request) -> Response:
        """The viewer; what it shows it asks of the API."""
        self._require_scope(request)
        shell = self._bundle.shell()
        if shell is None:
            raise HTTPException(404)
        return HTMLResponse(shell, headers={"Cache-Control": SHELL_CACHE})

    async def asset(self, request: Request) -> Response:
        """A file of the viewer; its name changes with its content."""
        found = self._bundle.asset(request.path_params["name"])
        if found is None:
            return problem(404, "not-found")
        content, media_type = found
        return Response(content, media_type=media_type, headers={"Cache-Control": IMMUTABLE})

    async def answer(self, request: Request) -> Response:
        """The viewer at one answer, which the API records as opened; the plain page where there is no viewer."""
        shell = self._bundle.shell()
        if shell is None:
            return await self.plain(request)
        self._require_scope(request)
        state = await self._state(request.path_params["token"])
        if state != "open":
            return self._message(request, state)
        return HTMLResponse(shell, headers={"Cache-Control": SHELL_CACHE})

    async def plain(self, request: Request) -> Response:
        """The page of one answer without script."""
        self._require_scope(request)
        language = self._language(request)
        found = await self._find(request)
        if found is None:
            return self._message(request, "unknown")
        if isinstance(found, str):
            return self._message(request, "expired")
        self._opened.keep(request.path_params["token"], found)
        image_base = f"/v/r/{request.path_params['token']}/cases"
        return self._page(self._pages.answer(found, language, image_base), language)

    async def case_image(self, request: Request) -> Response:
        """PNG of the best matching slice of a case; by rank, so a link reaches only its own answer's images."""
        self._require_scope(request)
        token = request.path_params["token"]
        found = self._opened.recall(token) or await self._find(request)
        if isinstance(found, str):
            return problem(410, "expired", "this link has expired")
        instance = None if found is None else best_instance(found, request.path_params["rank"])
        png = None if instance is None else await run_in_threadpool(self._services.thumbnail, token, instance)
        if png is None:
            return problem(404, "not-found", "no such image")
        return Response(png, media_type="image/png", headers={"Cache-Control": IMAGE_CACHE})

    async def static(self, request: Request) -> Response:
        """Style sheet and icon, under names that change with their content."""
        found = self._static.get(request.path_params["name"])
        if found is None:
            return problem(404, "not-found")
        name, content = found
        return Response(content, media_type=STATIC_TYPES[name], headers={"Cache-Control": IMMUTABLE})

    async def on_http_error(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        if _is_page(request) and exc.status_code == 404:
            return self._message(request, "unknown")
        response = problem(exc.status_code, HTTP_CODES.get(exc.status_code, "http"))
        response.headers.update(exc.headers or {})
        return response

    async def on_bad_request(self, _request: Request, exc: Exception) -> Response:
        """A parameter that is not what the API says: which one, never its value."""
        assert isinstance(exc, RequestValidationError)
        in_path = any(error["loc"][:1] == ("path",) for error in exc.errors())
        if in_path:  # not an id of ours
            return problem(404, "not-found")
        said = "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in exc.errors()[:5])
        return problem(422, "invalid", said)

    async def on_our_error(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, DicomnodeError)
        log.warning("request_refused", code=exc.code, line=exc.line, status=exc.http_status)
        if _is_page(request):
            language = self._language(request)
            return self._page(self._pages.message("error", language), language, exc.http_status)
        return problem(exc.http_status, exc.code, exc.line)

    async def on_fault(self, request: Request, exc: Exception) -> Response:
        """A fault of ours: logged by class and place, told without its text."""
        log.error("request_failed", exc_info=exc)
        response = problem(500, "error", "the request could not be answered")
        if _is_page(request):
            language = self._language(request)
            response = self._page(self._pages.message("error", language), language, 500)
        secure(response.headers)  # this handler runs outside the middleware
        return response

    async def _find(self, request: Request) -> Answer | str | None:
        token, who = request.path_params["token"], principal_of(request)
        if not TOKEN.fullmatch(token) or who is None:
            return None
        found = await run_in_threadpool(self._services.answer, token, who.name)
        if found is None or found == EXPIRED:
            return found
        assert isinstance(found, dict)
        return Answer.from_json(found)

    async def _state(self, token: str) -> LinkState:
        if not TOKEN.fullmatch(token):
            return "unknown"
        return await run_in_threadpool(self._services.link_state, token)

    @staticmethod
    def _require_scope(request: Request) -> None:
        """The middleware has asked who it is; what is outside a link's scope is unknown to its holder."""
        who = principal_of(request)
        if who is None or not who.may_read(request.path_params.get("token", "")):
            raise HTTPException(404)

    def _message(self, request: Request, state: Literal["unknown", "expired"]) -> Response:
        language = self._language(request)
        return self._page(self._pages.message(state, language), language, 404 if state == "unknown" else 410)

    def _language(self, request: Request) -> Language:
        accept = request.headers.get("accept-language", "")
        return choose_language(request.query_params.get("lang"), accept, self._options.language)

    @staticmethod
    def _page(html: str, language: Language, status: int = 200) -> Response:
        return HTMLResponse(html, status, {"Content-Language": language, "Vary": "Accept-Language"})


def _is_page(request: Request) -> bool:
    return request.url.path.startswith("/v/") and not request.url.path.endswith(".png")


def _static(name: str) -> bytes:
    return (files("dicomnode.web") / "static" / name).read_bytes()


def _hashed(name: str) -> str:
    stem, dot, suffix = name.partition(".")
    return f"{stem}.{hashlib.sha256(_static(name)).hexdigest()[:16]}{dot}{suffix}"
