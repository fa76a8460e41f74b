"""Who asks, and what they may read: a person of this machine, a signed-in user, or the holder of one result's link.

Every route but health and sign-in depends on one of the ``require_*`` functions; a test lists the routes and holds
that. A principal with a ``scope`` reads that one result and nothing else, whatever the route.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

CSRF_HEADER = "X-Dicomnode-CSRF"


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who asks.

    Attributes
    ----------
    name : str
        "local" without sign-in, else the user's name; "link" for the holder of a link.
    admin : bool
    scope : str or None
        The one result that may be read; None: all.
    """

    name: str
    admin: bool = False
    scope: str | None = None

    def may_read(self, result_id: str) -> bool:
        """Whether a result is within the scope."""
        return self.scope is None or self.scope == result_id


LOCAL = Principal("local", admin=True)


def principal_of(request: Request) -> Principal | None:
    """Who asks, as the middleware found; None: nobody is signed in."""
    found = getattr(request.state, "principal", None)
    return found if isinstance(found, Principal) else None


def require_result(request: Request) -> Principal:
    """For routes below ``/results/{result_id}``: 401 for nobody, 404 outside the scope (not 403: it would confirm)."""
    principal = _somebody(request)
    if not principal.may_read(request.path_params["result_id"]):
        raise HTTPException(404)
    return principal


def require_user(request: Request) -> Principal:
    """For everything that is not one result: 401 for nobody, 403 for the holder of a link."""
    principal = _somebody(request)
    if principal.scope is not None:
        raise HTTPException(403)
    return principal


def require_admin(request: Request) -> Principal:
    """As ``require_user``, and 403 for a user who is no administrator."""
    principal = require_user(request)
    if not principal.admin:
        raise HTTPException(403)
    return principal


def require_anybody(request: Request) -> Principal:
    """For what tells nothing but who asks: 401 for nobody."""
    return _somebody(request)


def require_csrf(request: Request) -> None:
    """For everything that changes something: 403 without the secret of the session in its header."""
    if not csrf_matches(request):
        raise HTTPException(403, f"the header {CSRF_HEADER} is missing or not the one of the session")


def csrf_of(request: Request) -> str:
    """The secret that changes must carry, as the middleware found; empty for nobody."""
    return str(getattr(request.state, "csrf", ""))


def csrf_matches(request: Request, value: str | None = None) -> bool:
    """Whether the header, or a value of a form, is the session's secret; compared in constant time."""
    expected = csrf_of(request)
    given = request.headers.get(CSRF_HEADER, "") if value is None else value
    return bool(expected) and hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


def _somebody(request: Request) -> Principal:
    principal = principal_of(request)
    if principal is None:
        raise HTTPException(401)
    return principal
