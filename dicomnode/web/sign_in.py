"""Sign-in, sign-out, and the page before an open link: the only pages for people whom the node does not know yet.

Forms carry a token bound to a cookie of this browser. What was typed is never told back but the name, and an error
does not say which of name and password was wrong. Leads nowhere but to pages below /v/ of this node.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, quote

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from dicomnode.errors import NotFound, SettingsError
from dicomnode.telemetry.audit import AuditEvent
from dicomnode.web.access import CSRF_HEADER, csrf_matches, csrf_of, principal_of
from dicomnode.web.limits import SIGN_IN_ADDRESS, SIGN_IN_NAME, Limits, Wait, address_of
from dicomnode.web.options import WebOptions
from dicomnode.web.page import Pages
from dicomnode.web.problems import problem
from dicomnode.web.sessions import SessionGate, Sessions, SignIn, link_token
from dicomnode.web.texts import LANGUAGES, Language, choose_language

log = structlog.get_logger(__name__)

HOME = "/v/"
MAX_FORM = 8192  # bytes
FORM_S = 20.0  # in which it comes
HASHING = 2  # passwords checked at once: each takes 64 MiB and a processor
_LOCAL_PATH = re.compile(r"/v/[A-Za-z0-9_\-./?=&%+~:,]{0,1000}")
_LEAVES = "cache", "storage"  # what a browser forgets at sign-out: images stay in no cache of a shared workstation


class SignInPages:
    """The routes, with what they share.

    Parameters
    ----------
    options : WebOptions
    sessions : Sessions
    pages : Pages
    limits : Limits
    """

    def __init__(self, options: WebOptions, sessions: Sessions, pages: Pages, limits: Limits) -> None:
        self._options = options
        self._sessions = sessions
        self._pages = pages
        self._limits = limits
        self._record = sessions.sign_in.record
        self._users = sessions.sign_in.users
        self._now = sessions.sign_in.clock
        self._hashing = ThreadPoolExecutor(HASHING, "password")
        self._hashing.submit(self._users.warm)

    @property
    def routes(self) -> list[Route]:
        """To be tried before those of the viewer: POST on a link's page is ours."""
        return [
            Route("/sign-in", self.sign_in_page, methods=["GET"]),
            Route("/sign-in", self.sign_in, methods=["POST"]),
            Route("/sign-out", self.sign_out_page, methods=["GET"]),
            Route("/sign-out", self.sign_out, methods=["POST"]),
            Route("/continue", self.go_on, methods=["GET"]),
            Route("/v/r/{token}", self.open_link, methods=["POST"]),
        ]

    async def ask(self, request: Request) -> Response:
        """What somebody gets who may not see a page: a second try, the page before a link, or sign-in."""
        if request.method not in ("GET", "HEAD"):
            return problem(401, "not-signed-in", "sign in first")
        path = request.scope["path"]
        wanted = local_path(path + (f"?{request.url.query}" if request.url.query else ""))
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A link in another site's page: a Strict cookie was not sent. Asked again from a page of ours it is.
            return self._page(request, "sign_in_again.html", "wait", 401, next_path=wanted)
        token = link_token(path)
        if token is not None and self._sessions.open_links:
            return await self._before_link(request, token, wanted)
        asked = request.query_params.get("lang", "")
        language = f"&lang={asked}" if asked in LANGUAGES else ""
        return RedirectResponse(f"/sign-in?next={quote(wanted, safe='/')}{language}", 303)

    async def go_on(self, request: Request) -> Response:
        """The second try of a link from another site."""
        return RedirectResponse(local_path(request.query_params.get("next", "")), 303)

    async def sign_in_page(self, request: Request) -> Response:
        """The form; somebody who is signed in goes on at once."""
        wanted = local_path(request.query_params.get("next", ""))
        principal = principal_of(request)
        if principal is not None and principal.scope is None:
            return RedirectResponse(wanted, 303)
        return await self._form(request, wanted)

    async def sign_in(self, request: Request) -> Response:
        """Check name and password; a new session where they are right."""
        form = await _read_form(request)
        wanted, name = local_path(form.get("next", "")), form.get("name", "").strip()
        if not self._sessions.form_is_ours(request, form.get("token", "")):
            return await self._form(request, wanted, name, error="form_old", status=403)
        address = address_of(request)
        wait = self._limits.hit(SIGN_IN_ADDRESS, address) or self._limits.hit(SIGN_IN_NAME, name.lower()[:64])
        if wait is not None:
            return await self._form(request, wanted, name, error="too_often", status=429, wait=wait)
        loop = asyncio.get_running_loop()
        user = await loop.run_in_executor(self._hashing, self._users.check, name, form.get("password", ""))
        if user is None:
            known = await run_in_threadpool(self._users.knows, name)
            self._record(
                AuditEvent.SIGN_IN_FAILED, actor=name.lower() if known else "unknown", reason=f"from {address}"
            )
            return await self._form(request, wanted, name, error="wrong", status=401)
        await run_in_threadpool(lambda: self._record(AuditEvent.SIGNED_IN, actor=user.name, reason=f"from {address}"))
        response = RedirectResponse(wanted, 303)
        try:
            await run_in_threadpool(self._sessions.begin, request, response, user.name)
        except NotFound:  # disabled between the two
            return await self._form(request, wanted, name, error="wrong", status=401)
        return response

    async def sign_out_page(self, request: Request) -> Response:
        """A button, for a browser without the viewer's script."""
        principal = principal_of(request)
        if principal is None or principal.scope is not None:
            return RedirectResponse("/sign-in", 303)
        return self._page(request, "sign_in_out.html", "sign_out", token=csrf_of(request), name=principal.name)

    async def sign_out(self, request: Request) -> Response:
        """End the session: by the page's button, or by the viewer with the header (204)."""
        principal = principal_of(request)
        by_script = CSRF_HEADER.lower() in request.headers
        token = None if by_script else (await _read_form(request)).get("token", "")
        if principal is None or principal.scope is not None:
            return problem(401, "not-signed-in") if by_script else RedirectResponse("/sign-in", 303)
        if not csrf_matches(request, token):
            return problem(403, "csrf", "this form is not of your session")
        response: Response = Response(status_code=204) if by_script else RedirectResponse("/sign-in", 303)
        await run_in_threadpool(
            lambda: self._record(AuditEvent.SIGNED_OUT, actor=principal.name, reason=f"from {address_of(request)}")
        )
        await run_in_threadpool(self._sessions.end, request, response)
        response.headers["Clear-Site-Data"] = ", ".join(f'"{name}"' for name in _LEAVES)
        return response

    async def open_link(self, request: Request) -> Response:
        """The button of the page before a link: a session that opens this one result."""
        token = request.path_params["token"]
        form = await _read_form(request)
        wanted = local_path(form.get("next", ""))
        if link_token(wanted.partition("?")[0]) != token:
            wanted = f"/v/r/{token}"
        principal = principal_of(request)
        if principal is not None and principal.may_read(token):
            return RedirectResponse(local_path(wanted), 303)
        if not self._sessions.open_links:
            return problem(405, "http")
        if not self._sessions.form_is_ours(request, form.get("token", "")):
            return await self._before_link(request, token, wanted, status=403)
        wait = self._limits.hit(SIGN_IN_ADDRESS, f"link:{address_of(request)}")
        if wait is not None:
            return wait.problem()
        ends = await run_in_threadpool(self._sessions.link_ends, token)
        if ends is None or ends <= self._now():
            return self._message(request, "unknown" if ends is None else "expired")
        response = RedirectResponse(wanted, 303)
        await run_in_threadpool(
            lambda: self._record(AuditEvent.LINK_OPENED, actor="link", reason=f"from {address_of(request)}")
        )
        await run_in_threadpool(self._sessions.begin_link, request, response, token, ends)
        return response

    async def _before_link(self, request: Request, token: str, wanted: str, status: int = 401) -> Response:
        ends = await run_in_threadpool(self._sessions.link_ends, token)
        if ends is None or ends <= self._now():
            return self._message(request, "unknown" if ends is None else "expired")
        cookie: list[str] = []
        form_token = self._sessions.form_token(request, cookie)
        response = self._page(
            request, "sign_in_link.html", "link", status, token=form_token, action=f"/v/r/{token}", next_path=wanted
        )
        return self._with_cookie(response, cookie)

    async def _form(
        self,
        request: Request,
        wanted: str,
        name: str = "",
        *,
        error: str = "",
        status: int = 200,
        wait: Wait | None = None,
    ) -> Response:
        cookie: list[str] = []
        token = self._sessions.form_token(request, cookie)
        response = self._page(
            request,
            "sign_in.html",
            "sign_in",
            status,
            token=token,
            next_path=wanted,
            name=name[:64],
            error=error,
            seconds=wait.seconds if wait else 0,
            nobody=await run_in_threadpool(self._users.none_yet),
        )
        if wait is not None:
            response.headers["Retry-After"] = str(wait.seconds)
        return self._with_cookie(response, cookie)

    def _with_cookie(self, response: Response, cookie: list[str]) -> Response:
        for value in cookie:
            self._sessions.set_form_cookie(response, value)
        return response

    def _message(self, request: Request, name: str) -> Response:
        language = self._language(request)
        status = {"unknown": 404, "expired": 410}[name]
        return _html(self._pages.message(name, language), language, status)

    def _page(self, request: Request, template: str, kind: str, status: int = 200, **values: Any) -> Response:
        language = self._language(request)
        response = _html(self._pages.form(template, kind, language, **values), language, status)
        # Under "no-referrer" a browser sends a form with "Origin: null" (Fetch, "append a request Origin header").
        response.headers["Referrer-Policy"] = "same-origin"
        return response

    def _language(self, request: Request) -> Language:
        accept = request.headers.get("accept-language", "")
        return choose_language(request.query_params.get("lang"), accept, self._options.language)


def doorway(options: WebOptions, sign_in: SignIn | None, pages: Pages) -> tuple[list[BaseRoute], Middleware]:
    """The routes of sign-in, to be tried first, and the middleware that finds who asks; for ``create_app``.

    Raises
    ------
    SettingsError
        ``[web] auth`` asks for sign-in and there is nothing to sign in with.
    """
    limits = Limits()
    if not options.auth.method:
        return [], Middleware(SessionGate, sessions=None, entry=None, limits=limits)
    if sign_in is None:
        raise SettingsError("pages are not served without the sign-in that is asked for", place="[web] auth")
    sessions = Sessions(options, sign_in)
    entry = SignInPages(options, sessions, pages, limits)
    return list(entry.routes), Middleware(SessionGate, sessions=sessions, entry=entry, limits=limits)


def local_path(asked: str) -> str:
    """``asked`` where it is a page of the viewer on this node, else the viewer's first page (open redirects)."""
    plain = _LOCAL_PATH.fullmatch(asked) is not None
    path = asked.partition("?")[0]
    return asked if plain and "//" not in path and ".." not in path and "%" not in path else HOME


async def _read_form(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form, the first of each name."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415)
    body = b""
    try:
        async with asyncio.timeout(FORM_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM:
                    raise HTTPException(413)
    except TimeoutError:
        raise HTTPException(408) from None
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=10, errors="strict")
    except ValueError:
        raise HTTPException(400) from None
    return {name: values[0] for name, values in fields.items()}


def _html(html: str, language: Language, status: int) -> Response:
    headers = {"Content-Language": language, "Vary": "Accept-Language, Cookie", "Cache-Control": "no-store"}
    return HTMLResponse(html, status, headers)
