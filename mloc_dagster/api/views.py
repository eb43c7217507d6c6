"""The ledger's records as they travel."""

from __future__ import annotations

from collections.abc import Sequence

from mloc_dagster.ledger.model import TaskEntry
from mloc_dagster.wire import TaskState, TaskView

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
