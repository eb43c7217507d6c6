"""What the API answers when it does not do as it was asked.

    MlocError
    ├── ApiError                   the API failed, or its answer means nothing to this client
    │   ├── ApiRefusedError        also an InputError: the request is wrong; carries the problem
    │   │   └── NotFoundError      there is no such task, file or worker
    │   └── ApiAwayError           also a TransientError: it did not answer, or not now
    └── errors.TemplateError       the template is wrong; carries every finding with its place

Neither messages nor attributes hold the token.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpx
from pydantic import BaseModel, ValidationError

from mloc_dagster.errors import InputError, MlocError, TemplateError, TransientError
from mloc_dagster.wire import BODY_NAME, Finding, Problem

_INVALID_TEMPLATE = "urn:mloc:invalid-template"
_UNAUTHORIZED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_AWAY = (
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)
_LONGEST_WAIT_S = 60.0


class ApiError(MlocError):
    """The API failed, or its answer means nothing to this client.

    Args:
        message: What went wrong.
        status: The HTTP status; None without an answer.
        problem: What the API said; None if that was no problem document.
    """

    def __init__(
        self, message: str, *, status: int | None = None, problem: Problem | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


class ApiRefusedError(ApiError, InputError):
    """The request is wrong, or asks for what cannot be done."""


class NotFoundError(ApiRefusedError):
    """There is no such task, file or worker."""


class ApiAwayError(ApiError, TransientError):
    """The API did not answer, or said that it cannot now.

    Args:
        message: What went wrong.
        status: The HTTP status; None without an answer.
        problem: What the API said.
        perhaps_done: Whether it may have done what it was asked.
        retry_after_s: How long it asked to be left alone.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        problem: Problem | None = None,
        perhaps_done: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, status=status, problem=problem)
        self.perhaps_done = perhaps_done
        self.retry_after_s = retry_after_s


class OpenaiError(BaseModel):
    """What is wrong, below `/v1`."""

    message: str


class OpenaiFailure(BaseModel):
    """How the routes below `/v1` fail."""

    error: OpenaiError


def error_of(response: httpx.Response, shown_file: str = "") -> MlocError:
    """Returns what an answer that is no success means.

    Args:
        response: The answer, read.
        shown_file: How the user calls the template that the request carried.
    """
    status, problem = response.status_code, _problem(response)
    message = _message(response, problem)
    if problem is not None and problem.type == _INVALID_TEMPLATE and problem.errors:
        errors = [each for each in problem.errors if each.severity == "error"]
        return TemplateError(renamed(errors or problem.errors, shown_file))
    if status in _AWAY or status == httpx.codes.TOO_MANY_REQUESTS:
        return ApiAwayError(
            message,
            status=status,
            problem=problem,
            perhaps_done=status in _AWAY,
            retry_after_s=_retry_after_s(response),
        )
    if status in _UNAUTHORIZED:
        return ApiError(f"{message}; set MLOC_API_TOKEN", status=status, problem=problem)
    if status == httpx.codes.NOT_FOUND:
        return NotFoundError(message, status=status, problem=problem)
    if response.is_client_error and status != httpx.codes.REQUEST_TIMEOUT:
        return ApiRefusedError(message, status=status, problem=problem)
    return ApiError(message, status=status, problem=problem)


def renamed(findings: Sequence[Finding], shown_file: str) -> tuple[Finding, ...]:
    """Returns findings about a template with its file as the user calls it."""
    return tuple(
        each.model_copy(update={"file": shown_file})
        if shown_file and each.file == BODY_NAME
        else each
        for each in findings
    )


def _problem(response: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _message(response: httpx.Response, problem: Problem | None) -> str:
    if problem is not None and problem.detail:
        return problem.detail
    try:
        return OpenaiFailure.model_validate_json(response.content).error.message
    except ValidationError:
        pass  # it is neither's
    where = f"{response.request.method} {response.request.url.path}"
    if response.is_redirect:
        return f"{where} was redirected, and that is not followed: name the API's final address"
    return f"{where}: HTTP {response.status_code} {response.reason_phrase}".rstrip()


def _retry_after_s(response: httpx.Response) -> float | None:
    asked = response.headers.get("Retry-After", "")
    return min(float(asked[:9]), _LONGEST_WAIT_S) if asked.isdecimal() else None
