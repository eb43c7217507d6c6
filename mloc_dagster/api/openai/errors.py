"""Failure below `/v1` in OpenAI's form, from which its clients make their own exceptions.

Every refusal of the API passes `problems.problem_response`, whoever refuses: a route, the token's
check, the limit of bodies. That asks here for the form of the paths below `/v1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

PREFIX = "/v1"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "invalid-request": None,
    "invalid-input": None,
    "unauthorized": "invalid_api_key",
    "internal-error": None,
}
_STATUSES = {422: 400}
"""Where OpenAI answers with another status than the rest of the API."""

_PLACES = ("body", "query", "path", "header")


class ErrorObject(BaseModel):
    """What is wrong with a request."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    message: str
    type: str
    """Such as `invalid_request_error` or `server_error`."""
    param: str | None = None
    """The parameter that is wrong, if it is one."""
    code: str | None = None
    """Which error it is, for programs."""


class ErrorReply(BaseModel):
    """How the routes below `/v1` answer when they fail."""

    model_config = ConfigDict(frozen=True)

    error: ErrorObject


def is_openai(path: str) -> bool:
    """Tells whether a path's errors have OpenAI's form."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def error_text(status: int, kind: str, message: str, place: str = "") -> str:
    """Returns what is wrong as JSON; see `error_response`."""
    first, _, rest = place.partition(".")
    error = ErrorObject(
        message=message,
        type=_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        param=(rest if first in _PLACES else place) or None,
        code=_CODES[kind] if kind in _CODES else kind.replace("-", "_"),
    )
    return ErrorReply(error=error).model_dump_json()


def error_response(
    status: int, kind: str, message: str, place: str, headers: Mapping[str, str]
) -> Response:
    """Returns the answer to a request that is refused.

    Args:
        status: As the rest of the API answers.
        kind: What kind of problem, in words with dashes.
        message: What is wrong, and what to do.
        place: Where it is wrong, such as `body.purpose`; empty where it is no parameter.
        headers: More headers.
    """
    status = _STATUSES.get(status, status)
    # Clients send a 409 again by themselves; here it stays what it is.
    final = {"x-should-retry": "false"} if status == 409 else {}
    return Response(
        error_text(status, kind, message, place),
        status_code=status,
        media_type="application/json",
        headers={**final, **headers},
    )


_REASONS = {
    400: "The request is wrong; `error.param` says which parameter.",
    401: "A token is needed, and there is none or a wrong one.",
    403: "A web page of another origin asked.",
    404: "There is no such object.",
    408: "The body did not arrive in time.",
    409: "What is there stands against it.",
    413: "The body is too large.",
    415: "A browser may send this content type for any page, and there is no token.",
    416: "The range lies outside of the file.",
    421: "The host is not one of the API's names.",
    429: "Too much at a time.",
    500: "The engine broke down over the request.",
    503: "The database or the results store is away; send the same request again.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns what a route below `/v1` says of the errors that it answers with."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorReply, "description": _REASONS[status]}
        for status in sorted({400, 401, 403, 415, 421, 503, *statuses})
    }
    # Without it FastAPI would add a 422 of its own form.
    found["default"] = {"model": ErrorReply, "description": "Any other error."}
    return found
