"""Headers of every response, and the check of Host and Origin before any route.

The policy allows nothing from elsewhere and no inline script or style. Links hold a secret token: no referrer is sent
and nothing is cached by others. Sources: CSP level 3, Fetch, RFC 9110 7.2.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicomnode.web.options import WebOptions
from dicomnode.web.problems import problem

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex, nofollow",
}
PRIVATE = "private, no-cache"


class Guard:
    """ASGI middleware: refuses foreign hosts and origins, adds the security headers."""

    def __init__(self, app: ASGIApp, options: WebOptions) -> None:
        self._app = app
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure(MutableHeaders(scope=message))
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._options.allows_host(host):
            refusal = problem(421, "host-not-allowed", "this name is not one the node is called by")
            await refusal(scope, receive, send_secured)
        elif (origin is not None and not self._options.allows_origin(origin, host)) or _is_foreign(scope, headers):
            refusal = problem(403, "origin-not-allowed", "requests from other sites are not answered")
            await refusal(scope, receive, send_secured)
        else:
            await self._app(scope, receive, send_secured)


def _is_foreign(scope: Scope, headers: Headers) -> bool:
    """Whether another site asks for anything but to show a page of ours in a tab (Fetch metadata, W3C).

    A link leads to a page by GET; whatever is embedded, fetched or sent by another site is not answered. Browsers that
    do not send these headers are held by the Origin check and by SameSite cookies.
    """
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
    return not navigates or scope["method"] not in ("GET", "HEAD")


def secure(headers: MutableHeaders) -> None:
    """Add the security headers; a response keeps its own Cache-Control and Referrer-Policy."""
    for name, value in SECURITY_HEADERS.items():
        if name != "Referrer-Policy":
            headers[name] = value
    headers.setdefault("Referrer-Policy", SECURITY_HEADERS["Referrer-Policy"])
    headers.setdefault("Cache-Control", PRIVATE)
