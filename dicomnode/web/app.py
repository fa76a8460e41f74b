"""The ASGI application: health, readiness, metrics, and the page of an answer.

Made by ``create_app`` from options and services; no state of its own. Nothing about the query but its modality and
number of slices leaves it, and no token, UID or path is ever logged.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from importlib.resources import files

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from dicomnode.domain import Answer
from dicomnode.errors import DicomnodeError
from dicomnode.web.options import EXPIRED, WebOptions, WebServices
from dicomnode.web.page import Pages, best_instance
from dicomnode.web.problems import problem
from dicomnode.web.security import Guard, secure
from dicomnode.web.texts import Language, choose_language

log = structlog.get_logger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus text exposition format
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")  # 128 random bits in hexadecimal or URL-safe base64
STATIC_TYPES = {"page.css": "text/css", "icon.svg": "image/svg+xml"}
IMMUTABLE = "public, max-age=31536000, immutable"
OPENED_S, OPENED_MAX = 300.0, 64  # a page's images are asked for within seconds of it
IMAGE_CACHE = "private, max-age=3600"


def create_app(services: WebServices, options: WebOptions) -> Starlette:
    """Build the application.

    Parameters
    ----------
    services : WebServices
        What it asks; calls may block, they run in worker threads.
    options : WebOptions
        How it is reached.

    Raises
    ------
    SettingsError
        Options that would open the pages to a network without sign-in (``WebOptions.check``).
    """
    options.check()
    site = _Site(services, options)
    return Starlette(
        routes=[
            Route("/", site.root),
            Route("/healthz", site.healthz),
            Route("/readyz", site.readyz),
            Route("/metrics", site.metrics),
            Route("/v/r/{token}", site.answer),
            Route("/v/r/{token}/cases/{rank:int}.png", site.case_image),
            Route("/static/{name}", site.static),
        ],
        middleware=[Middleware(Guard, options=options)],
        exception_handlers={
            HTTPException: site.on_http_error,
            DicomnodeError: site.on_our_error,
            Exception: site.on_fault,
        },
    )


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
        self._static = {_hashed(name): (name, _static(name)) for name in STATIC_TYPES}
        self._pages = Pages({name: f"/static/{hashed}" for hashed, (name, _) in self._static.items()})

    async def root(self, _request: Request) -> Response:
        return RedirectResponse("/readyz", status_code=307)

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

    async def answer(self, request: Request) -> Response:
        """The page of one answer."""
        language = self._language(request)
        found = await self._find(request.path_params["token"])
        if found is None:
            return self._page(self._pages.message("unknown", language), language, 404)
        if isinstance(found, str):
            return self._page(self._pages.message("expired", language), language, 410)
        self._opened.keep(request.path_params["token"], found)
        image_base = f"/v/r/{request.path_params['token']}/cases"
        return self._page(self._pages.answer(found, language, image_base), language)

    async def case_image(self, request: Request) -> Response:
        """PNG of the best matching slice of a case; by rank, so a link reaches only its own answer's images."""
        token = request.path_params["token"]
        found = self._opened.recall(token) or await self._find(token)
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
            language = self._language(request)
            return self._page(self._pages.message("unknown", language), language, 404)
        response = problem(exc.status_code, "http")
        response.headers.update(exc.headers or {})
        return response

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

    async def _find(self, token: str) -> Answer | str | None:
        if not TOKEN.fullmatch(token):
            return None
        found = await run_in_threadpool(self._services.answer, token)
        if found is None or found == EXPIRED:
            return found
        assert isinstance(found, dict)
        return Answer.from_json(found)

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
