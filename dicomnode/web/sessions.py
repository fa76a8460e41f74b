"""Finds who asks, by cookie, before any route; and refuses what that person may not ask for.

A user's session and the sessions of links are rows in the catalogue; a cookie holds random bits and means nothing by
itself. A cookie of a link opens its one result on the server, whatever the path. Routes ask again (``access``): this
is the door, not the only lock. Sources: RFC 6265bis (SameSite, __Host-), OWASP session management.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dicomnode.archive.users import Users
from dicomnode.telemetry.audit import AuditEvent
from dicomnode.web.access import CSRF_HEADER, LOCAL, Principal, csrf_matches
from dicomnode.web.limits import Limits, address_of
from dicomnode.web.options import WebOptions, is_loopback
from dicomnode.web.problems import problem

SESSION_COOKIE = "dicomnode_session"
LINK_COOKIE = "dicomnode_link_"  # and the first 8 digits of SHA-256 of the token
FORM_COOKIE = "dicomnode_form"
HOST_PREFIX = "__Host-"  # of cookies over https: no other host, path or plain http can set them
MAX_LINKS = 16  # links open at once in one browser
DAY_S = 86400.0
RESULT_ID = re.compile(r"[0-9a-f]{32}")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What shows nothing of anybody. "/" redirects.
PUBLIC = frozenset({"/", "/healthz", "/readyz", "/sign-in", "/sign-out", "/continue", "/favicon.ico"})
PUBLIC_BELOW = ("/static/", "/v/assets/")
FORMS = frozenset({"/sign-in", "/sign-out"})  # they check the token of their form instead of the header
_BELOW_RESULT = re.compile(r"/(?:v/r|api/v1/results)/([^/]*)(?:/.*)?")
_LINK_PAGE = re.compile(r"/v/r/([^/]+)(?:/plain)?")


class Record(Protocol):
    """Writes the audit trail."""

    def __call__(self, event: AuditEvent, *, actor: str, reason: str = "", row: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class SignIn:
    """What sign-in needs of the node.

    Attributes
    ----------
    users : Users
    form_key : bytes
        Secret that the tokens of forms are made with; the same in every web process.
    link_created : callable
        When the answer behind a link was made, seconds since the epoch; None: there is none.
    record : callable
        The audit trail.
    link_days : int
        ``[web] link_days``.
    clock : callable
        Seconds since the epoch.
    """

    users: Users
    form_key: bytes = field(repr=False)
    link_created: Callable[[str], float | None]
    record: Record
    link_days: int = 30
    clock: Callable[[], float] = time.time


class Sessions:
    """Cookies and what they stand for."""

    def __init__(self, options: WebOptions, sign_in: SignIn) -> None:
        self.sign_in = sign_in
        self.open_links = options.auth.links == "open"
        self._users = sign_in.users
        self._idle_s = options.auth.session_hours * 3600
        self._secure = options.public_url.startswith("https://")
        prefix = HOST_PREFIX if self._secure else ""
        self._session, self._form, self._link = (prefix + n for n in (SESSION_COOKIE, FORM_COOKIE, LINK_COOKIE))

    def find(self, request: Request) -> tuple[Principal, str] | None:
        """Who asks, and the secret that changes must carry; None: nobody. Reads the database."""
        value = request.cookies.get(self._session)
        session = self._users.session(value, self._idle_s) if value else None
        if session is not None and session.user is not None:
            return Principal(session.user, session.admin), session.csrf
        return self._find_link(request) if self.open_links else None

    def _find_link(self, request: Request) -> tuple[Principal, str] | None:
        """The link of the result that is asked for; else any, which then opens nothing but itself."""
        links = self._links(request)
        asked = result_asked(request)
        own = self._link_name(asked) if asked else ""
        for name in [*([own] if own in links else []), *(n for n in links if n != own)]:
            session = self._users.session(links[name], self._idle_s, use=name == own)
            if session is not None and session.scope and name == self._link_name(session.scope):
                return Principal("link", scope=session.scope), session.csrf
        return None

    def _links(self, request: Request) -> dict[str, str]:
        found = {n: v for n, v in request.cookies.items() if n.startswith(self._link)}
        return dict(list(found.items())[: 2 * MAX_LINKS])

    def _link_name(self, token: str) -> str:
        return self._link + hashlib.sha256(token.encode()).hexdigest()[:8]

    def begin(self, request: Request, response: Response, user: str) -> None:
        """Sign a user in: a new cookie always, whatever the browser sent (session fixation)."""
        former = request.cookies.get(self._session)
        if former:
            self._users.end(former)
        value = secrets.token_urlsafe(32)
        self._users.begin(value, user=user, scope=None)
        self._set(response, self._session, value)
        self._drop(response, self._form)

    def begin_link(self, request: Request, response: Response, token: str, until: float) -> None:
        """Open one result for the holder of its link; the link used longest ago makes room."""
        links = self._links(request)
        used = self._users.last_used(list(links.values()))
        by_use = sorted(links, key=lambda n: used.get(links[n], 0.0))
        room = [n for n in by_use if links[n] not in used]
        kept = [n for n in by_use if links[n] in used and n != self._link_name(token)]
        room += kept[: max(0, len(kept) - MAX_LINKS + 1)]
        for name in {*room, *([self._link_name(token)] if self._link_name(token) in links else [])}:
            self._users.end(links[name])
            if name != self._link_name(token):
                self._drop(response, name)
        value = secrets.token_urlsafe(32)
        self._users.begin(value, user=None, scope=token, until=until)
        self._set(response, self._link_name(token), value)

    def end(self, request: Request, response: Response) -> None:
        """Sign out."""
        value = request.cookies.get(self._session)
        if value:
            self._users.end(value)
        self._drop(response, self._session)

    def form_token(self, request: Request, response_cookie: list[str]) -> str:
        """The hidden token of a form, bound to a cookie of this browser.

        Parameters
        ----------
        request : Request
            Its cookie is used again where it is one of ours, so that two tabs both work.
        response_cookie : list
            Gets the value of a cookie that is to be set, where there was none.
        """
        value = request.cookies.get(self._form, "")
        if not re.fullmatch(r"[0-9a-f]{32}", value):
            value = secrets.token_hex(16)
            response_cookie.append(value)
        return self._form_mac(value)

    def set_form_cookie(self, response: Response, value: str) -> None:
        """Set the cookie that ``form_token`` asked for."""
        self._set(response, self._form, value)

    def form_is_ours(self, request: Request, token: str) -> bool:
        """Whether a form was made for this browser by this node."""
        value = request.cookies.get(self._form, "")
        return bool(value) and hmac.compare_digest(self._form_mac(value).encode(), token.encode("utf-8", "replace"))

    def link_ends(self, token: str) -> float | None:
        """When a link ends, seconds since the epoch; None: there is no such link. Reads the database."""
        created = self.sign_in.link_created(token) if RESULT_ID.fullmatch(token) else None
        return None if created is None else created + self.sign_in.link_days * DAY_S

    def _form_mac(self, value: str) -> str:
        return hmac.new(self.sign_in.form_key, b"form:" + value.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _set(self, response: Response, name: str, value: str) -> None:
        response.set_cookie(name, value, path="/", httponly=True, samesite="strict", secure=self._secure)

    def _drop(self, response: Response, name: str) -> None:
        response.delete_cookie(name, path="/", httponly=True, samesite="strict", secure=self._secure)


class Entry(Protocol):
    """Answers a request for a page by somebody who may not see it: sign-in, or the page before a link."""

    async def ask(self, request: Request) -> Response: ...


class SessionGate:
    """ASGI middleware: sets ``request.state.principal`` and ``request.state.csrf``; refuses what is out of scope.

    Parameters
    ----------
    app : ASGI application
    sessions : Sessions or None
        None without sign-in: everybody is the local administrator.
    entry : Entry or None
        Asks for sign-in; given with ``sessions``.
    limits : Limits
    """

    def __init__(self, app: ASGIApp, sessions: Sessions | None, entry: Entry | None, limits: Limits) -> None:
        self._app = app
        self._sessions = sessions
        self._entry = entry
        self._limits = limits
        self._local_csrf = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # none is offered; what is not looked at here is not let through
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        state = scope.setdefault("state", {})
        if self._sessions is None:
            found: tuple[Principal, str] | None = (LOCAL, self._local_csrf)
        else:
            asks = request.cookies and (not is_public(request.scope["path"]) or request.scope["path"] in FORMS)
            found = await run_in_threadpool(self._sessions.find, request) if asks else None
        state["principal"], state["csrf"] = found or (None, "")
        refusal = self._too_often(request, state["principal"]) or await self._refuse(request, state["principal"])
        if refusal is None and self._lacks_csrf(request):
            refusal = problem(403, "csrf", f"the header {CSRF_HEADER} is missing or not the one of the session")
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _too_often(self, request: Request, principal: Principal | None) -> Response | None:
        if not request.scope["path"].startswith(("/api/", "/dicom-web/", "/fhir/")):
            return None
        if principal is None or principal is LOCAL:
            who = f"address:{address_of(request)}"
        else:
            who = f"link:{principal.scope}" if principal.scope else f"user:{principal.name}"
        wait = self._limits.api(request, who)
        return None if wait is None else wait.problem()

    async def _refuse(self, request: Request, principal: Principal | None) -> Response | None:
        path = request.scope["path"]
        if is_public(path) or (principal is not None and principal.scope is None):
            return None
        if self._opens_link(request) or (path == "/metrics" and _is_from_this_machine(request)):
            return None
        within = principal is not None and (path == "/api/v1/session" or result_in(path) == principal.scope)
        if within:
            return None
        if is_page(path) and self._entry is not None:
            return await self._entry.ask(request)
        if principal is None:
            return problem(401, "not-signed-in", "sign in first")
        return problem(404 if result_in(path) else 403, "not-found" if result_in(path) else "out-of-scope")

    def _opens_link(self, request: Request) -> bool:
        """The form of the page before a link; its route checks the form's own token."""
        open_links = self._sessions is not None and self._sessions.open_links
        return open_links and request.method == "POST" and link_token(request.scope["path"]) is not None

    def _lacks_csrf(self, request: Request) -> bool:
        path = request.scope["path"]
        is_form = path in FORMS or link_token(path) is not None
        changes = request.method not in SAFE_METHODS and not is_form and not is_public(path)
        return changes and not csrf_matches(request)


def is_public(path: str) -> bool:
    """Whether a path is for everybody."""
    return path in PUBLIC or (path.startswith(PUBLIC_BELOW) and ".." not in path)


def is_page(path: str) -> bool:
    """Whether a path is looked at by a person: asked to sign in rather than told a problem."""
    return (path == "/v" or path.startswith("/v/")) and not path.endswith((".png", ".webp"))


def result_in(path: str) -> str | None:
    """The result that a path is below, if it is."""
    match = _BELOW_RESULT.fullmatch(path)
    return match[1] if match else None


def result_asked(request: Request) -> str | None:
    """The result that a request is about: of its path, or ``?result=`` of the session's own."""
    path = request.scope["path"]
    return request.query_params.get("result") if path == "/api/v1/session" else result_in(path)


def link_token(path: str) -> str | None:
    """The token of a path that is the page of a link."""
    match = _LINK_PAGE.fullmatch(path)
    return match[1] if match else None


def _is_from_this_machine(request: Request) -> bool:
    """A direct call on loopback, as a monitor on this machine makes; nothing that a proxy passed on."""
    host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    passed_on = any(request.headers.get(n) for n in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    return request.client is not None and is_loopback(request.client.host) and is_loopback(host) and not passed_on
