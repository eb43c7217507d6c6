"""Failure as RFC 9457 problem details, with the same texts as the CLI.

Paths below `/v1` fail in the form of `openai.errors`, with the same texts.
"""

from __future__ import annotations

import difflib
import errno
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from mloc_dagster.api.openai.errors import error_response, is_openai
from mloc_dagster.compile import Diagnostic
from mloc_dagster.errors import (
    IncompleteResultsError,
    InputError,
    MlocError,
    TemplateError,
    TransientError,
    UnknownNameError,
)
from mloc_dagster.wire import Finding, Problem

_log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
_RETRY_AFTER_S = "2"
_MOST_ERRORS = 1_000

_NOT_WRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
)
"""What a disk says that is full, read-only, taken away or broken: it may be mended."""


class Refusal(Exception):
    """A request that is answered with a problem.

    Args:
        status: The HTTP status.
        kind: In a word or two with dashes; the problem's type is `urn:mloc:<kind>`.
        detail: What was wrong, what was expected, what to do next.
        errors: Findings, where there are several or they have a place.
        headers: More headers.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Finding] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def invalid_template(findings: Sequence[Diagnostic]) -> Refusal:
    """Returns the refusal of a template, with every finding."""
    errors = [each for each in findings if each.severity == "error"]
    more = len(errors) - 1
    detail = str(errors[0]) + (f" (and {more} more)" if more > 0 else "")
    return Refusal(422, "invalid-template", detail, errors=[finding(each) for each in findings])


def finding(diagnostic: Diagnostic) -> Finding:
    """Returns a compiler's finding as it travels."""
    return Finding.model_validate(diagnostic.to_json())


def no_such_task(task_id: str, known: Sequence[str] = ()) -> Refusal:
    """Returns the refusal of an id that nobody knows.

    Args:
        task_id: The id.
        known: Ids of which the nearest is named.
    """
    near = difflib.get_close_matches(task_id, known, n=1, cutoff=0.8)  # of ids most are a bit alike
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return Refusal(404, "unknown-task", f"there is no task or workflow {_shown(task_id)}{hint}")


def problem_response(refusal: Refusal, path: str) -> Response:
    """Returns the answer to a request that is refused, in the form of its path."""
    # Nobody reads the rest of a body that is too large or too slow.
    closing = {"Connection": "close"} if refusal.status in (408, 413) else {}
    headers = {**refusal.headers, **closing}
    if is_openai(path):
        place = refusal.errors[0].path if refusal.errors else ""
        return error_response(refusal.status, refusal.kind, refusal.detail, place, headers)
    problem = Problem(
        type=f"urn:mloc:{refusal.kind}",
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        detail=refusal.detail,
        instance=path,
        errors=refusal.errors[:_MOST_ERRORS],
    )
    return Response(
        problem.model_dump_json(),
        status_code=refusal.status,
        media_type=PROBLEM_TYPE,
        headers=headers,
    )


def refusal_of(error: Exception) -> Refusal:
    """Returns how an error is answered; what nobody foresaw is not shown: the server logs it."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return Refusal(error.status_code, kind, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return _invalid_request(error)
    if isinstance(error, TransientError | DBAPIError | TimeoutError):
        return _away(error)
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return _not_writable(error)
    if isinstance(error, MlocError):
        return _foreseen(error)
    return Refusal(500, "internal-error", "this is a defect; the API's log says more")


def _foreseen(error: MlocError) -> Refusal:
    if isinstance(error, TemplateError):
        return invalid_template(
            [each for each in error.diagnostics if isinstance(each, Diagnostic)]
        )
    if isinstance(error, UnknownNameError):
        return Refusal(404, "unknown-name", str(error))
    if isinstance(error, InputError):
        return Refusal(422, "invalid-input", str(error))
    if isinstance(error, IncompleteResultsError):
        return Refusal(409, "incomplete-results", str(error))
    return Refusal(409, "cannot-be-done", str(error))


def _away(error: Exception) -> Refusal:
    _log.warning("something that the API needs is away: %s", error)
    detail = "the database does not answer now; the same request may be sent again"
    if isinstance(error, TransientError):
        detail = str(error)
    return Refusal(503, "unavailable", detail, headers={"Retry-After": _RETRY_AFTER_S})


def _not_writable(error: OSError) -> Refusal:
    _log.warning("a file cannot be read or written: %s", error)
    detail = (
        f"the results store, or the API's own disk, does not work now: {error.strerror}; "
        "send the same request again when its operator has seen to it"
    )
    return Refusal(503, "storage-unavailable", detail, headers={"Retry-After": _RETRY_AFTER_S})


def _invalid_request(error: RequestValidationError) -> Refusal:
    found = [
        Finding(path=".".join(str(part) for part in each["loc"]), message=str(each["msg"]))
        for each in error.errors()
    ]
    return Refusal(422, "invalid-request", "; ".join(str(each) for each in found[:5]), errors=found)


def install(app: FastAPI) -> None:
    """Makes every error of an app a problem."""

    async def answer(request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        if refusal.status == 404 and isinstance(error, HTTPException):  # the framework's own
            refusal.detail = f"there is no {request.url.path[:200]!a}: /docs lists what there is"
        if refusal.status == 405:
            refusal.headers["Allow"] = ", ".join(_methods(app, request))
        return problem_response(refusal, request.url.path)

    for kind in (Refusal, HTTPException, RequestValidationError, MlocError, Exception):
        app.add_exception_handler(kind, answer)
    for kind in (DBAPIError, OSError):
        app.add_exception_handler(kind, answer)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Returns what a path understands; the framework names only its first route's."""
    routes = [each for each in app.routes if isinstance(each, Route)]
    fitting = [each for each in routes if each.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for each in fitting for method in each.methods or ()})


def _shown(text: str) -> str:
    return ascii(text[:200])
