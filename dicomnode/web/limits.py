"""How often somebody may ask: sign-in, uploads, reads. Counted in this process's memory, in moving windows.

The figures are far above what a person at the viewer causes and far below what copies a repository or guesses a
password. Never stores anything; a restart forgets the counts.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import Request
from starlette.responses import Response

from dicomnode.web.options import is_loopback
from dicomnode.web.problems import problem

SIGN_IN_NAME = RateLimitItemPerMinute(5, namespace="sign-in-name")
SIGN_IN_ADDRESS = RateLimitItemPerMinute(20, namespace="sign-in-address")
UPLOADS = RateLimitItemPerMinute(10, namespace="uploads")
READS = RateLimitItemPerMinute(1200, namespace="reads")
# Two panes scrolled in step, read ahead: 600 frames each in half a minute. The browser keeps what it has seen.
FRAMES = RateLimitItemPerMinute(6000, namespace="frames")
WRITES = RateLimitItemPerMinute(120, namespace="writes")


@dataclass(frozen=True, slots=True)
class Wait:
    """Too often: when to try again, in whole seconds."""

    seconds: int

    def problem(self) -> Response:
        """429 with Retry-After (RFC 9110 10.2.3)."""
        response = problem(429, "too-many-requests", f"try again in {self.seconds} seconds")
        response.headers["Retry-After"] = str(self.seconds)
        return response


class Limits:
    """Counts for one application."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def hit(self, limit: RateLimitItem, who: str) -> Wait | None:
        """Count one; what to wait where it is one too many, which is then not counted."""
        if self._limiter.hit(limit, who):
            return None
        reset = self._limiter.get_window_stats(limit, who).reset_time
        return Wait(max(1, math.ceil(reset - time.time())))

    def api(self, request: Request, who: str) -> Wait | None:
        """Count a request to the API by what it is."""
        path = request.scope["path"]
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return self.hit(FRAMES if "/frames/" in path else READS, who)
        return self.hit(UPLOADS if request.method == "POST" and path == "/api/v1/queries" else WRITES, who)


def address_of(request: Request) -> str:
    """Where a request comes from: the peer, or what a proxy on this machine says (last of X-Forwarded-For)."""
    peer = request.client.host if request.client else ""
    forwarded = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return forwarded[:45] if forwarded and is_loopback(peer) else peer
