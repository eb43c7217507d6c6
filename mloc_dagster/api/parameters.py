"""Parameters of requests: lists, filters, times, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Path, Query, Request

from mloc_dagster.api.problems import Refusal
from mloc_dagster.errors import nearest_hint
from mloc_dagster.ledger.model import TaskFilter
from mloc_dagster.wire import Finding, Moment, TaskState

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
_Exact = Annotated[str | None, Query(min_length=1, max_length=200, pattern=_TEXT)]


def task_filter(
    status: Annotated[
        list[TaskState] | None, Query(description="Any of these; repeat it.", max_length=16)
    ] = None,
    owner: _Exact = None,
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


def no_other_parameters(*known: str) -> Callable[[Request], None]:
    """Returns a dependency that refuses parameters that mean nothing: they are mistyped."""

    def check(request: Request) -> None:
        for name in request.query_params:
            if name not in known:
                hint = nearest_hint(name, known)
                raise _invalid(name[:100], f"unknown parameter {name[:100]!r}{hint}")

    return check


FILTERS = (
    "status",
    "owner",
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
