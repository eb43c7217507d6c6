"""What takes several calls, or one long answer: lists, logs, waiting, results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mloc_dagster.client import calls, service_calls
from mloc_dagster.client.call import Ask
from mloc_dagster.client.download import Download
from mloc_dagster.client.flow import LogFlow, RowFlow
from mloc_dagster.client.walk import Pages, Waiting
from mloc_dagster.wire import (
    DeadLetterPage,
    DeadLetterView,
    LogLevel,
    LogLine,
    LogPage,
    SubmitReply,
    TaskPage,
    TaskState,
    TaskView,
)

_PAGE = 100


def tasks(
    *,
    limit: int | None = None,
    status: Iterable[TaskState | str] = (),
    owner: str | None = None,
    name: str | None = None,
    task_type: str | None = None,
    workflow_id: str | None = None,
    worker: str | None = None,
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Pages[TaskPage, TaskView]:
    """Yields tasks, the newest first; pages are fetched as they are needed.

    Args:
        limit: How many; None for all.
        status: Only tasks in any of these states.
        owner: Only this owner's.
        name: Only of the template of this name.
        task_type: Only of this type.
        workflow_id: Only of this workflow.
        worker: Only those whose last shard this worker computed.
        labels: Only with all of these labels.
        since: Only those submitted at this time or later.
        until: Only those submitted before.
    """
    chosen = calls.task_filter(
        status=status,
        owner=owner,
        name=name,
        task_type=task_type,
        workflow_id=workflow_id,
        worker=worker,
        labels=labels,
        since=since,
        until=until,
    )
    size = _page_size(limit, calls.MAX_PAGE)
    return Pages(
        lambda cursor: calls.task_page(chosen, size, cursor),
        lambda page: (page.tasks, page.next_cursor),
        limit,
    )


def dead_letters(*, limit: int | None = None) -> Pages[DeadLetterPage, DeadLetterView]:
    """Yields the tasks that failed for good, the newest first."""
    size = _page_size(limit, service_calls.MAX_DEAD_LETTERS)
    return Pages(
        lambda cursor: service_calls.dead_letter_page(size, cursor),
        lambda page: (page.dead_letters, page.next_cursor),
        limit,
    )


def logs(
    task_id: str, *, follow: bool = False, level: LogLevel = "INFO"
) -> Pages[LogPage, LogLine] | LogFlow:
    """Yields the lines of a task's logs, in order of time.

    Args:
        task_id: Whose.
        follow: Go on until the task has ended; a broken connection goes on where it broke.
        level: The lowest level to show; `DEBUG` has all of Dagster's events.
    """
    if follow:
        return LogFlow(calls.below(calls.TASKS, task_id, "logs"), level)
    return Pages(
        lambda cursor: calls.log_page(task_id, cursor, level=level),
        # More may come as long as the task has not ended: a page with nothing on it is the last.
        lambda page: (page.lines, page.next_cursor if page.count else None),
    )


def wait(tasks: SubmitReply | Iterable[str], *, timeout_s: float | None = None) -> Waiting:
    """Returns tasks when all of them have ended, whatever became of them.

    Args:
        tasks: What `submit` answered, or ids of tasks or workflows.
        timeout_s: How long to wait; None is endless.

    Raises:
        NotEndedError: If that was too short.
    """
    if isinstance(tasks, SubmitReply):
        tasks = [each.workflow_id for each in tasks.tasks]
    ids = [tasks] if isinstance(tasks, str) else tasks
    return Waiting(ids, calls.look, timeout_s)


def rows(task_id: str) -> RowFlow:
    """Yields the rows of a task's result, in the order of its input."""
    return RowFlow(_result(task_id, "jsonl"))


def save_result(
    task_id: str,
    target: Path,
    format: Literal["json", "jsonl", "parquet", "csv"] = "parquet",
) -> Download:
    """Saves a task's result, and returns where; the file appears whole.

    Args:
        task_id: Whose.
        target: A file, or a folder for `<task_id>.<format>`.
        format: Which one.
    """
    return Download(_result(task_id, format), target, f"{task_id}.{format}")


def save_file(task_id: str, name: str, target: Path) -> Download:
    """Saves a file that a task left, and returns where; it appears whole.

    Args:
        task_id: Whose.
        name: The file's name below the task's folder.
        target: A file, or a folder for a file of that name.
    """
    folder = calls.below(service_calls.RESULTS, task_id, "files")
    ask = Ask(method="GET", path=f"{folder}/{quote(name)}")
    return Download(ask, target, name.rsplit("/", 1)[-1])


def save_bundle(task_id: str, target: Path) -> Download:
    """Saves all files of a task as one tar archive, and returns where; it appears whole.

    Args:
        task_id: Whose.
        target: A file, or a folder for `<task_id>.tar`.
    """
    ask = Ask(
        method="GET", path=calls.below(service_calls.RESULTS, task_id), query=(("bundle", "tar"),)
    )
    return Download(ask, target, f"{task_id}.tar")


def _result(task_id: str, format: str) -> Ask:
    return Ask(
        method="GET", path=calls.below(service_calls.RESULTS, task_id), query=(("format", format),)
    )


def _page_size(limit: int | None, most: int) -> int:
    return _PAGE if limit is None else max(1, min(limit, most))
