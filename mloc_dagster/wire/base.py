"""What all requests and replies have in common: their base, their problems, and tokens."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict


def _as_text(value: object) -> object:
    # What the API describes is RFC 3339; pydantic would also take seconds since 1970.
    if not isinstance(value, datetime) and _DATE.match(str(value)) is None:
        raise ValueError("a time is written as 2026-01-02T03:04:05Z")
    return value


_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")

Moment = Annotated[AwareDatetime, BeforeValidator(_as_text)]
"""A time that somebody sends: with a date, a time of day and a zone."""


BODY_NAME = "body.yaml"
"""What findings call a template that came without a file's name."""


class Wire(BaseModel):
    """Base of all: read-only; fields that a newer server adds are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Reply(Wire):
    """Base of what succeeds."""

    ok: Literal[True] = True
    """Always true; what fails is a `Problem`."""


class Finding(Wire):
    """What is wrong with a template, or could be better; prints as the CLI prints it."""

    file: str = ""
    """`body.yaml`, or the name of the uploaded file; empty for other requests."""
    line: int = 0
    """From 1; 0 when it concerns all of it."""
    column: int = 0
    path: str = ""
    """Such as `spec.stages[0].name`, or the parameter's name."""
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        label = "warning: " if self.severity == "warning" else ""
        return ": ".join(each for each in (place, self.path, label + self.message) if each)


class Problem(Wire):
    """Why a request failed: RFC 9457, `application/problem+json`."""

    type: str = "about:blank"
    """What kind of problem: `urn:mloc:<kind>`, such as `urn:mloc:invalid-template`."""
    title: str
    status: int
    detail: str = ""
    instance: str = ""
    """The path that was asked for."""
    errors: tuple[Finding, ...] = ()
    """Every finding, in the file's order."""


def tokens_in(text: str) -> dict[str, str]:
    """Returns the tokens of `MLOC_API_TOKEN_FILE`, each with the name that the access log shows.

    Args:
        text: A token a line, and a name after it if it has one; without one it is called by the
            number of its line. Empty lines and those that begin with `#` mean nothing.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        token, _, name = line.strip().partition(" ")
        if token and not token.startswith("#"):
            tokens.setdefault(token, name.strip() or f"line-{number}")
    return tokens
