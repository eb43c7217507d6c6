"""Every endpoint about tasks, once. Each function returns the call; a client makes it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import JsonValue

from mloc_dagster.client.call import Call, FilePart, reading
from mloc_dagster.client.errors import renamed
from mloc_dagster.client.template_body import TemplateBody, body_of
from mloc_dagster.client.walk import is_workflow_id
from mloc_dagster.wire import (
    BODY_NAME,
    ChangeReply,
    LogLevel,
    LogPage,
    ProgressReply,
    RetryRequest,
    SubmitReply,
    TaskPage,
    TaskReply,
    TaskState,
    TaskView,
    WorkflowReply,
)

TASKS = "/api/v1/tasks"
MAX_PAGE = 1_000
"""On a page; the API allows no more."""
JSON_BODY = {"Content-Type": "application/json"}

Query = Sequence[tuple[str, str]]


def below(*parts: str) -> str:
    """Returns the path of something below another; what users named is quoted."""
    return "/".join([parts[0], *(quote(each, safe="") for each in parts[1:])])


def submit(
    template: Path | str | Mapping[str, JsonValue] | TemplateBody,
    *,
    files: Mapping[str, Path | bytes] | None = None,
    idempotency_key: str | None = None,
) -> Call[SubmitReply]:
    """Submits templates; when it returns they are durable, and each is going to run once.

    Args:
        template: A file (`Path`), YAML (`str`) or a template as a mapping. Data files and images
            that a file names relative to its folder are uploaded with it.
        files: More data files, by the names that the template calls them.
        idempotency_key: The same key gives the same answer, and nothing runs twice; by default a
            new one, so that attempts at this call cannot submit twice.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
    """
    body = body_of(template, files or {})
    key = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}

    def read(answer: bytes) -> SubmitReply:
        reply = SubmitReply.model_validate_json(answer)
        return reply.model_copy(update={"warnings": renamed(reply.warnings, body.shown)})

    if not body.files:
        headers = {"Content-Type": "application/yaml", **key}
        return Call(
            method="POST", path=TASKS, headers=headers, content=body.text, read=read,
            shown_file=body.shown,
        )  # fmt: skip
    parts = [FilePart(field="template", name=BODY_NAME, content=body.text)]
    parts += [FilePart(field="file", name=n, content=each) for n, each in body.files.items()]
    return Call(
        method="POST", path=TASKS, headers=key, parts=parts, read=read, shown_file=body.shown
    )


def show(task_id: str) -> Call[TaskReply]:
    """Returns all that is known of a task."""
    return Call(method="GET", path=below(TASKS, task_id), read=reading(TaskReply))


def workflow(workflow_id: str) -> Call[WorkflowReply]:
    """Returns the tasks of one submitted document, in its order."""
    path = below("/api/v1/workflows", workflow_id)
    return Call(method="GET", path=path, read=reading(WorkflowReply))


def look(task_or_workflow_id: str) -> Call[Sequence[TaskView]]:
    """Returns the tasks that an id stands for: all of a workflow, or one."""
    if is_workflow_id(task_or_workflow_id):
        path = below("/api/v1/workflows", task_or_workflow_id)
        read_all = reading(WorkflowReply)
        return Call(method="GET", path=path, read=lambda body: read_all(body).tasks)
    read_one = reading(TaskReply)
    path = below(TASKS, task_or_workflow_id)
    return Call(method="GET", path=path, read=lambda body: (read_one(body),))


def task_filter(
    *,
    status: Iterable[TaskState | str] = (),
    owner: str | None = None,
    name: str | None = None,
    task_type: str | None = None,
    workflow_id: str | None = None,
    worker: str | None = None,
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Query:
    """Returns the parameters that say which tasks a list shows."""
    exact = (
        ("owner", owner),
        ("name", name),
        ("type", task_type),
        ("workflow_id", workflow_id),
        ("worker", worker),
        ("since", _moment(since)),
        ("until", _moment(until)),
    )
    return (
        *(("status", str(each)) for each in status),
        *((key, text) for key, text in exact if text is not None),
        *(("label", f"{key}={text}") for key, text in (labels or {}).items()),
    )


def task_page(chosen: Query, limit: int, cursor: str | None = None) -> Call[TaskPage]:
    """Returns a page of tasks, the newest first."""
    return Call(
        method="GET", path=TASKS, query=page_query(chosen, limit, cursor), read=reading(TaskPage)
    )


def log_page(
    task_id: str,
    cursor: str | None = None,
    limit: int = MAX_PAGE,
    level: LogLevel = "INFO",
) -> Call[LogPage]:
    """Returns a page of a task's logs."""
    path = below(TASKS, task_id, "logs")
    query = page_query((("level", level),), limit, cursor)
    return Call(method="GET", path=path, query=query, read=reading(LogPage))


def progress(task_id: str) -> Call[ProgressReply]:
    """Returns how far a task is, and when it is going to be done."""
    path = below(TASKS, task_id, "progress")
    return Call(method="GET", path=path, read=reading(ProgressReply))


def cancel(task_or_workflow_id: str) -> Call[ChangeReply]:
    """Stops a task, or all of a workflow; finished rows are kept."""
    path = below(TASKS, task_or_workflow_id, "cancel")
    return Call(method="POST", path=path, read=reading(ChangeReply))


def retry(
    task_or_workflow_id: str,
    scope: Literal["failed_shards", "failed_rows", "all"] = "failed_shards",
) -> Call[ChangeReply]:
    """Goes on with what failed or was cancelled: only what is missing is computed.

    Args:
        task_or_workflow_id: What.
        scope: `failed_rows` also computes rows that ended with an error; `all` does that for every
            task of the workflow.
    """
    path = below(TASKS, task_or_workflow_id, "retry")
    body = RetryRequest(scope=scope).model_dump_json().encode()
    # A second one would find the first one's work, and say that there is nothing to retry.
    return Call(
        method="POST", path=path, headers=JSON_BODY, content=body, read=reading(ChangeReply),
        repeatable=False,
    )  # fmt: skip


def page_query(chosen: Query, limit: int, cursor: str | None) -> Query:
    """Returns the parameters of one page of a list."""
    following = (("cursor", cursor),) if cursor is not None else ()
    return (*chosen, ("limit", str(limit)), *following)


def _moment(when: datetime | None) -> str | None:
    # Without a zone it is the user's own time.
    return None if when is None else when.astimezone().isoformat()
