"""What a batch is at this moment, told from its task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from mloc_dagster.api.openai.objects import (
    Batch,
    BatchError,
    BatchErrors,
    BatchStatus,
    BatchUsage,
    Endpoint,
    InputTokens,
    OutputTokens,
    RequestCounts,
    window_s,
)
from mloc_dagster.api.state import ApiState
from mloc_dagster.api.task_detail import task_reply, task_view
from mloc_dagster.errors import DamagedFileError, InputError
from mloc_dagster.ledger import BatchEntry, FileEntry, TaskEntry
from mloc_dagster.results import (
    BUFFER_BYTES,
    BatchFiles,
    Folder,
    TaskSummary,
    plan_of,
    read_record,
    read_rows,
    whole_requests,
)
from mloc_dagster.schema import BATCH_ERRORS_NAME, BATCH_OUTPUT_NAME
from mloc_dagster.tasks import summary_of
from mloc_dagster.wire import TaskState, TaskView

_log = logging.getLogger(__name__)

BATCH = "batch"
"""The purpose of files that batches read."""

_ENDS: dict[TaskState, BatchStatus] = {
    TaskState.DONE: "completed",
    TaskState.CANCELLED: "cancelled",
    TaskState.FAILED: "failed",
    TaskState.DEAD: "failed",
}


def status_of(task: TaskView) -> BatchStatus:
    """Returns a batch's status for the state of its task."""
    if task.status in _ENDS:
        return _ENDS[task.status]
    if task.cancelling:
        return "cancelling"
    if task.status is not TaskState.RUNNING and task.started_at is None:
        return "validating"
    all_there = task.rows is not None and task.rows_finished == task.rows
    return "finalizing" if all_there else "in_progress"


def counts_of(requests: int, task: TaskView) -> RequestCounts:
    """Returns how many requests are answered, as far as rows tell.

    A request may be several rows: then it is their share.
    """
    finished, errors = task.rows_finished or 0, task.errors or 0
    if task.rows and task.rows != requests:
        finished = finished * requests // task.rows
        errors = -(-errors * requests // task.rows)
    finished = min(finished, requests)
    errors = min(errors, finished)
    return RequestCounts(total=requests, completed=finished - errors, failed=errors)


def batch_of(api: ApiState, entry: BatchEntry) -> Batch:
    """Returns a batch as it is now."""
    if entry.task_id is None:
        return _failed_file(entry)
    task = api.ledger.task(entry.task_id)
    if task is None:
        return _without_task(entry)
    if not task.state.ended:
        return _running(entry, task_reply(api, task))
    if entry.settled is None or entry.settled_for != task.ended_at:
        return settle(api, entry, task)
    return Batch.model_validate(entry.settled)


def settle_all(api: ApiState) -> None:
    """Settles every batch whose task has ended: what it came to is known from then on."""
    for entry in api.ledger.openai.unsettled():
        task = api.ledger.task(entry.task_id or "")
        if task is not None and task.state.ended:
            settle(api, entry, task)
    remove_unneeded(api)


def remove_unneeded(api: ApiState) -> None:
    """Removes the bytes of deleted files that no batch reads any more."""
    unneeded = api.ledger.openai.unneeded_files(BATCH)
    for each in unneeded:
        api.store.folder(each.folder).delete(each.name)
    if unneeded:
        api.ledger.openai.removed([each.file_id for each in unneeded])


def settle(api: ApiState, entry: BatchEntry, task: TaskEntry) -> Batch:
    """Notes what a batch came to, and its files; it outlives its task's results."""
    folder = api.store.task(task.task_id)
    view, ended_at = task_view(task), task.ended_at or datetime.now(UTC)
    if task.state is not TaskState.DONE:
        _keep_what_is_there(folder, entry)
    answers, failures = _lines(folder, BATCH_OUTPUT_NAME), _lines(folder, BATCH_ERRORS_NAME)
    outputs = _outputs(folder, entry, ended_at, answers=answers, failures=failures)
    ids = {each.name: each.file_id for each in outputs}
    summary = summary_of(folder) if task.state is TaskState.DONE else None
    batch = _running(entry, view).model_copy(
        update={
            "request_counts": RequestCounts(
                total=entry.requests, completed=answers, failed=failures
            ),
            "output_file_id": ids.get(BATCH_OUTPUT_NAME),
            "error_file_id": ids.get(BATCH_ERRORS_NAME),
            "finalizing_at": None if summary is None else _seconds(summary.finished_at),
            "usage": None if summary is None else usage_of(summary),
        }
    )
    settled = batch.model_dump(mode="json")
    api.ledger.openai.settle(entry.batch_id, ended_at, settled, outputs)
    return batch


def usage_of(summary: TaskSummary) -> BatchUsage:
    """Returns the tokens of a task."""
    usage = summary.usage
    return BatchUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokens(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokens(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _running(entry: BatchEntry, task: TaskView) -> Batch:
    status = status_of(task)
    ended = _seconds(task.ended_at)
    window = window_s(entry.completion_window)
    return _plain(entry, status).model_copy(
        update={
            "in_progress_at": _seconds(task.started_at),
            "expires_at": None if window is None else _seconds(entry.created_at, window),
            "completed_at": ended if status == "completed" else None,
            "failed_at": ended if status == "failed" else None,
            "cancelled_at": ended if status == "cancelled" else None,
            "cancelling_at": _seconds(entry.cancelling_at),
            "errors": _why(task) if status == "failed" else None,
            "request_counts": counts_of(entry.requests, task),
        }
    )


def _why(task: TaskView) -> BatchErrors:
    message = task.error or "its run failed"
    return BatchErrors(data=(BatchError(code="task_failed", message=message),))


def _failed_file(entry: BatchEntry) -> Batch:
    errors = tuple(BatchError.model_validate(each) for each in entry.errors)
    return _plain(entry, "failed").model_copy(
        update={"errors": BatchErrors(data=errors), "failed_at": _seconds(entry.created_at)}
    )


def _without_task(entry: BatchEntry) -> Batch:
    """Returns a batch whose task's results were removed."""
    if entry.settled is not None:
        return Batch.model_validate(entry.settled)
    return _plain(entry, "expired")


def _plain(entry: BatchEntry, status: BatchStatus) -> Batch:
    return Batch(
        id=entry.batch_id,
        endpoint=cast("Endpoint", entry.endpoint),
        model=entry.model,
        input_file_id=entry.input_file_id,
        completion_window=entry.completion_window,
        status=status,
        created_at=int(entry.created_at.timestamp()),
        request_counts=RequestCounts(total=entry.requests, completed=0, failed=0),
        metadata=entry.metadata,
        mloc={} if entry.task_id is None else {"task_id": entry.task_id},
    )


def _seconds(moment: datetime | None, later_s: int = 0) -> int | None:
    return None if moment is None else int(moment.timestamp()) + later_s


def _keep_what_is_there(folder: Folder, entry: BatchEntry) -> None:
    """Writes the answers of the finished requests of a task that did not come to its end."""
    plan = plan_of(folder)
    if plan is None:
        return
    rows = read_rows(folder)
    requests = (
        ([row] for row in rows) if plan.rows == entry.requests else whole_requests(rows, plan.rows)
    )
    try:
        with (
            folder.create(BATCH_OUTPUT_NAME) as answers,
            folder.create(BATCH_ERRORS_NAME) as errors,
        ):
            submitted_at = read_record(folder).submitted_at
            files = BatchFiles(answers, errors, plan, entry.model or "", submitted_at)
            for each in requests:
                files.write(each)
    except (DamagedFileError, InputError) as error:  # its batch is shown all the same
        _log.warning("batch %s has no answers of its stopped task: %s", entry.batch_id, error)


def _lines(folder: Folder, name: str) -> int:
    try:
        with folder.open(name) as file:
            blocks = iter(lambda: file.read(BUFFER_BYTES), b"")
            return sum(block.count(b"\n") for block in blocks)
    except FileNotFoundError:
        return 0


def _outputs(
    folder: Folder, entry: BatchEntry, ended_at: datetime, *, answers: int, failures: int
) -> Sequence[FileEntry]:
    """Returns the files that a batch left; one without a line is none."""
    kinds = ((BATCH_OUTPUT_NAME, "output", answers), (BATCH_ERRORS_NAME, "error", failures))
    return [
        FileEntry(
            file_id=f"file-{entry.batch_id.removeprefix('batch_')}-{kind}",
            filename=f"{entry.batch_id}_{kind}.jsonl",
            purpose="batch_output",
            bytes=folder.size(name),
            folder=folder.name,
            name=name,
            created_at=ended_at,
        )
        for name, kind, lines in kinds
        if lines
    ]
