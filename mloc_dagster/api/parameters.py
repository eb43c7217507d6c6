"""Parameters of requests: lists, filters, times, labels, safe file names."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Header, Path, Query, Request

from mloc_dagster.api.problems import Refusal
from mloc_dagster.errors import InputError, nearest_hint
from mloc_dagster.ledger import TaskFilter
from mloc_dagster.results import check_name, check_task_id
from mloc_dagster.wire import Finding, Moment, TaskOrigin, TaskState

MAX_NAME_BYTES = 1_000
_MAX_PART_BYTES = 240

# Control and format characters, private use, halves of pairs, line and paragraph separators: what
# shows as nothing, turns the text around, or is no character at all.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def safe_name(name: str) -> str:
    """Returns a file's name below a task's folder.

    Raises:
        Refusal: 422, if it could mean something outside, or something else than it shows.
    """
    why = _why_unsafe(name)
    if why is None:
        try:
            return check_name(name)
        except InputError as error:
            why = str(error)
    raise Refusal(422, "invalid-name", why)


def _why_unsafe(name: str) -> str | None:
    shown = ascii(name[:200])
    if not name or name.endswith("/"):
        return f"{shown} is no name of a file"
    if any(unicodedata.category(each) in _REFUSED_CATEGORIES for each in name):
        return f"{shown} has a character that does not show"
    parts = name.split("/")
    if len(name.encode()) > MAX_NAME_BYTES or any(
        len(each.encode()) > _MAX_PART_BYTES for each in parts
    ):
        return (
            f"{shown} is too long: at most {MAX_NAME_BYTES} bytes, and {_MAX_PART_BYTES} between "
            "slashes"
        )
    if unicodedata.normalize("NFC", name) != name:
        return f"{shown} is not in Unicode's composed form (NFC), and would be two names"
    for each in parts:
        plain = unicodedata.normalize("NFKC", each)
        if plain != each and (set(plain) & set("/\\") or not plain.strip(". ")):
            return f"{shown} looks like another path: some of its characters stand for '.' or '/'"
        if each != each.strip() or (each and not each.strip(".")):
            return f"{shown} has a part that begins or ends with a space, or is only dots"
    return None


def safe_task_id(task_id: str) -> str:
    """Returns a task's id; raises a 404 `Refusal` for what can be none."""
    try:
        return check_task_id(task_id)
    except InputError as error:
        raise Refusal(404, "unknown-task", str(error)) from None


MAX_PAGE = 1_000

# What a database can hold and a URL can carry; exact matches only.
_TEXT = r"^[^\x00-\x1f\x7f]+$"

TaskId = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$",
        description="Of a task, as the submission's answer has it.",
        examples=["0b0f6f0e-6a4f-4b0c-9a55-2f1d6f0a7c11"],
    ),
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Entries on a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=4_000, description="`next_cursor` of the page before."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
        description="The same key gives the same answer, and nothing runs twice.",
    ),
]
_Exact = Annotated[str | None, Query(min_length=1, max_length=200, pattern=_TEXT)]


async def task_filter(
    status: Annotated[
        list[TaskState] | None, Query(description="Any of these; repeat it.", max_length=16)
    ] = None,
    owner: _Exact = None,
    origin: Annotated[TaskOrigin | None, Query(description="What made it.")] = None,
    name: Annotated[
        str | None,
        Query(min_length=1, max_length=200, pattern=_TEXT, description="Of the template."),
    ] = None,
    type: _Exact = None,
    workflow_id: _Exact = None,
    worker: _Exact = None,
    label: Annotated[
        list[
            Annotated[
                str,
                Query(max_length=500, pattern=r"^[^\x00=]+=[^\x00]*$"),
            ]
        ]
        | None,
        Query(description="`key=value`; repeat it, all must hold.", max_length=20),
    ] = None,
    since: Annotated[Moment | None, Query(description="Submitted at this time or later.")] = None,
    until: Annotated[Moment | None, Query(description="Submitted before this time.")] = None,
) -> TaskFilter:
    """Reads which tasks a list shows."""
    return TaskFilter(
        states=tuple(dict.fromkeys(status)) if status else None,
        owner=owner,
        origin=origin,
        template=name,
        task_type=type,
        workflow_id=workflow_id,
        worker_id=worker,
        labels=_labels(label or ()),
        submitted_after=_in_range(since, "since"),
        submitted_before=_in_range(until, "until"),
    )


def _labels(given: Sequence[str]) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    for each in given:
        key, _, value = each.partition("=")
        labels[key] = value
    return labels or None


def _in_range(moment: datetime | None, name: str) -> datetime | None:
    # Beyond these, turning it into another time zone overflows, here or in the database.
    if moment is not None and not 1900 <= moment.year <= 9000:
        raise _invalid(name, f"{moment.isoformat()} is no time at which a task was submitted")
    return moment


def no_other_parameters(*known: str) -> Callable[[Request], Awaitable[None]]:
    """Returns a dependency that refuses parameters that mean nothing: they are mistyped."""

    async def check(request: Request) -> None:
        for name in request.query_params:
            if name not in known:
                hint = nearest_hint(name, known)
                raise _invalid(name[:100], f"unknown parameter {name[:100]!r}{hint}")

    return check


FILTERS = (
    "status",
    "owner",
    "origin",
    "name",
    "type",
    "workflow_id",
    "worker",
    "label",
    "since",
    "until",
    "limit",
    "cursor",
)


def _invalid(name: str, message: str) -> Refusal:
    return Refusal(
        422, "invalid-request", message, errors=[Finding(path=f"query.{name}", message=message)]
    )
