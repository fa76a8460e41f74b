"""How the API describes its errors in OpenAPI: problem details (RFC 9457), and what each status means here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from dicomnode.web.problems import MEDIA_TYPE


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field("about:blank", description="Always about:blank: `code` tells which.")
    title: str = Field(description="The words of the status.")
    status: int
    code: str = Field(description="Stable word, the same in every language.")
    detail: str = Field("", description="One line for people; never anything of the data.")


_SAID = {
    400: "The request is not one that is understood.",
    401: "Nobody is signed in.",
    403: "The holder of a link may not do this, or the CSRF token is missing.",
    404: "There is no such thing, or it is not for who asks.",
    409: "The node has another model than the one this was made with.",
    410: "The link has expired.",
    413: "Larger, or more files or pixels, than is allowed.",
    415: "Not a kind of file that is read.",
    422: "A parameter is not what it may be, or what was sent cannot be read.",
    429: "Too much is asked at once; see Retry-After.",
    503: "The networks or the index cannot be loaded.",
    507: "The node's disk is full.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the problem details that a route answers with."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {s: {"description": _SAID[s], "content": content} for s in statuses}
