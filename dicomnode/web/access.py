"""Who asks, and what they may read: a person of this machine, a signed-in user, or the holder of one result's link.

Every route but health and sign-in depends on one of the ``require_*`` functions; a test lists the routes and holds
that. A principal with a ``scope`` reads that one result and nothing else, whatever the route.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request


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


def _somebody(request: Request) -> Principal:
    principal = principal_of(request)
    if principal is None:
        raise HTTPException(401)
    return principal
