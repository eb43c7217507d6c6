"""A task as the API returns it, from the ledger, its run, the fleet and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mloc_dagster.api.state import ApiState
from mloc_dagster.ledger import TaskEntry
from mloc_dagster.results import Folder, plan_of
from mloc_dagster.schema import task_types
from mloc_dagster.tasks import summary_of
from mloc_dagster.wire import (
    ProgressReply,
    Shards,
    TaskDetail,
    TaskReply,
    TaskState,
    TaskView,
    TrainingView,
)

if TYPE_CHECKING:
    from mloc_dagster.ops import RunTask
    from mloc_dagster.tasks import Workflow


_WORST_FIRST = (
    TaskState.DEAD,
    TaskState.FAILED,
    TaskState.CANCELLED,
    TaskState.RUNNING,
    TaskState.DISPATCHED,
    TaskState.PENDING,
    TaskState.WAITING,
)


def task_fields(entry: TaskEntry) -> dict[str, object]:
    """Returns the fields of a `TaskView`."""
    return {
        "task_id": entry.task_id,
        "workflow_id": entry.workflow_id,
        "node": entry.node,
        "task_type": entry.task_type,
        "template": entry.template,
        "owner": entry.owner,
        "origin": entry.origin,
        "labels": dict(entry.labels),
        "depends_on": entry.depends_on,
        "status": entry.state,
        "waiting_for": "" if entry.state.ended else entry.waiting_for,
        "run_id": entry.run_id,
        "runs": entry.runs,
        "due": entry.due,
        "submitted_at": entry.submitted_at,
        "started_at": entry.started_at,
        "ended_at": entry.ended_at,
        "worker_id": entry.worker_id,
        "rows": entry.rows,
        "rows_finished": entry.rows_finished,
        "errors": entry.errors,
        "error": entry.error,
        "cancelling": entry.cancelling,
    }


def task_view(entry: TaskEntry) -> TaskView:
    """Returns a task as lists show it."""
    return TaskView.model_validate(task_fields(entry))


def workflow_state(entries: Sequence[TaskEntry]) -> TaskState:
    """Returns one word for all tasks of a workflow."""
    states = {each.state for each in entries}
    return next((each for each in _WORST_FIRST if each in states), TaskState.DONE)


def task_reply(api: ApiState, entry: TaskEntry) -> TaskReply:
    """Returns all that is known of a task."""
    fields = task_fields(entry)
    folder = api.store.task(entry.task_id)
    fields["folder"] = folder.url
    fields["training"] = _training(api, entry)
    if entry.state is not TaskState.DONE:
        fields["counts"] = _counts(api, entry)
    status = live_status(api, entry)
    if status is not None:
        fields |= _of_status(status)
        return TaskReply.model_validate(fields)
    if entry.state is TaskState.DONE:
        plan = plan_of(folder)
        if plan is not None:
            fields["shards"] = Shards(done=len(plan.shards))
            fields["rows"] = fields["rows"] or plan.rows
        fields |= _of_summary(folder)
    if entry.state.ended:
        fields |= _of_its_run(api, entry)
    return TaskReply.model_validate(fields)


def _of_summary(folder: Folder) -> dict[str, object]:
    summary = summary_of(folder)
    if summary is None:
        return {}
    return {
        "metrics": {} if summary.scores is None else summary.scores.metrics,
        "budget": "" if summary.budget is None else str(summary.budget),
        "counts": summary.counts,
    }


def _training(api: ApiState, entry: TaskEntry) -> TrainingView | None:
    known = task_types().get(entry.task_type)
    if known is None or not known.trains:
        return None
    from mloc_dagster.tasks import training_status

    runs = entry.state is TaskState.RUNNING
    return training_status(entry.task_id, entry.submitted_at, api.fleet.last_progress, runs=runs)


def _counts(api: ApiState, entry: TaskEntry) -> Mapping[str, int]:
    """Returns what its shards have counted, as they told last."""
    known = task_types().get(entry.task_type)
    if known is None or not known.counts:
        return {}
    return api.fleet.last_counts(entry.task_id, entry.submitted_at)


def _of_status(status: TaskDetail) -> dict[str, object]:
    # That a task has ended is the ledger's to say: before, it can be neither stopped nor retried.
    ended = status.status.ended
    fields: dict[str, object] = {
        "status": TaskState.RUNNING if ended else status.status,
        "waiting_for": status.waiting_for,
        "shards": status.shards,
        "retries": status.retries,
        "losses": status.losses,
        "workers": dict(status.workers),
    }
    known = {
        "rows": status.rows,
        "rows_finished": status.rows_finished,
        "errors": status.errors,
        "error": None if ended else status.error or None,
    }
    return fields | {name: value for name, value in known.items() if value is not None}


def live_status(api: ApiState, entry: TaskEntry) -> TaskDetail | None:
    """Returns how a task is this moment.

    Returns:
        None for one that has ended or waits, which the ledger knows, and for one of a batch, whose
        run is that of many tasks.
    """
    found = None if entry.state.ended else _in_dagster(api, entry)
    if found is None:
        return None
    from mloc_dagster.tasks import status_of

    workflow, task = found
    return status_of(api.fleet.instance(), api.fleet.engine_if_any(), workflow, task)


def _of_its_run(api: ApiState, entry: TaskEntry) -> dict[str, object]:
    """Returns what became of the shards of a task that has ended, if its run is still there."""
    found = _in_dagster(api, entry)
    if found is None:
        return {}
    from mloc_dagster.tasks import status_of

    workflow, task = found
    status = status_of(api.fleet.instance(), None, workflow, task, count_rows=False)
    return {"shards": status.shards, "retries": status.retries, "losses": status.losses}


def _in_dagster(api: ApiState, entry: TaskEntry) -> tuple[Workflow, RunTask] | None:
    """Returns a task as its newest run has it; None without one, and for one of a batch."""
    if entry.run_id is None or entry.batch_key is not None:
        return None
    from mloc_dagster.tasks import find_workflows

    workflow = find_workflows(api.fleet.instance(), [entry.workflow_id]).get(entry.workflow_id)
    if workflow is None or workflow.latest.run_id != entry.run_id:
        return None  # its run is about to be created
    task = next((each for each in workflow.tasks() if each.task_id == entry.task_id), None)
    return None if task is None else (workflow, task)


def progress_reply(api: ApiState, entry: TaskEntry) -> ProgressReply:
    """Returns how far a task is."""
    task = task_reply(api, entry)
    rows, finished, errors = task.rows, task.rows_finished, task.errors
    if entry.state is TaskState.DONE and (rows is None or finished is None):
        summary = summary_of(api.store.task(entry.task_id))
        if summary is not None:
            rows, finished, errors = summary.rows, summary.rows, summary.errors
    rate = _rate(task, finished)
    missing = None if rows is None or finished is None else max(0, rows - finished)
    return ProgressReply(
        task_id=task.task_id,
        status=task.status,
        rows=rows,
        rows_finished=finished,
        errors=errors,
        shards=task.shards,
        counts=task.counts,
        fraction=_fraction(task.status, rows, finished),
        rows_per_s=rate,
        eta_s=missing / rate if missing is not None and rate else None,
        waiting_for=task.waiting_for,
    )


def _fraction(state: TaskState, rows: int | None, finished: int | None) -> float | None:
    if state is TaskState.DONE:
        return 1.0
    if not rows:
        return None
    return min(1.0, (finished or 0) / rows)


def _rate(task: TaskReply, finished: int | None) -> float | None:
    if task.started_at is None or not finished:
        return None
    seconds = ((task.ended_at or datetime.now(UTC)) - task.started_at).total_seconds()
    return finished / seconds if seconds > 0 else None
