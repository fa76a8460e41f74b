"""``GET /api/v1/session``: who asks, what they may read, and the secret that changes must carry."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from dicomnode.web.access import LOCAL, Principal, csrf_of, require_anybody
from dicomnode.web.api.errors import errors
from dicomnode.web.options import WebOptions
from dicomnode.web.texts import choose_language


class Session(BaseModel):
    """Who asks."""

    mode: Literal["local", "users"] = Field(description="local: no sign-in, this machine only.")
    user: str | None = Field(description="Name of the user; null for a link and without sign-in.")
    admin: bool
    scope: str | None = Field(description="The one result that may be read; null: all.")
    csrf: str = Field(description="Value of X-Dicomnode-CSRF for every request but GET.")
    language: Literal["en", "es"]


def session_router(options: WebOptions) -> APIRouter:
    """The route; ``options`` gives the mode and the language where a browser asks for neither."""
    router = APIRouter(tags=["session"])

    @router.get("/api/v1/session", summary="Who asks", responses=errors(401, 422, 429))
    def session(
        request: Request,
        response: Response,
        principal: Annotated[Principal, Depends(require_anybody)],
        result: Annotated[
            str | None, Query(description="With several open links in one browser: the result it is about.")
        ] = None,
        lang: Annotated[str | None, Query(description="en or es.")] = None,
    ) -> Session:
        del result  # the middleware has picked the link by it
        response.headers["Cache-Control"] = "no-store"
        is_user = principal is not LOCAL and principal.scope is None
        return Session(
            mode="users" if options.auth.method else "local",
            user=principal.name if is_user else None,
            admin=principal.admin,
            scope=principal.scope,
            csrf=csrf_of(request),
            language=choose_language(lang, request.headers.get("accept-language", ""), options.language),
        )

    return router
