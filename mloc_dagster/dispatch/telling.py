"""Events of tasks about which no Dagster run says anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mloc_dagster.events.bus import publish
from mloc_dagster.events.model import TaskEvent, TaskEventType
from mloc_dagster.ledger.ledger import Ledger
from mloc_dagster.ledger.model import PlannedRun, TaskChange, TaskEntry
from mloc_dagster.wire import TaskState

_ENDS = {
    TaskState.CANCELLED: TaskEventType.TASK_CANCELLED,
    TaskState.DEAD: TaskEventType.TASK_DEAD_LETTERED,
}

_AT_ONCE = 1_000


def tell_submitted(ledger: Ledger, planned: Sequence[PlannedRun]) -> None:
    """Says that tasks were submitted: their runs never stand in Dagster's queue."""
    for task in ledger.tasks([task for each in planned for task in each.task_ids]).values():
        publish(_submitted(task))


def tell_cancelled(ledger: Ledger) -> None:
    """Says which tasks were cancelled before they had a run; again, if this is interrupted."""
    untold = ledger.untold(_AT_ONCE)
    for task in untold:
        if not task.runs:
            publish(_submitted(task))
        publish(_event(task, TaskEventType.TASK_CANCELLED))
    if untold:
        ledger.told([each.task_id for each in untold])


def tell_ended(ledger: Ledger, changes: Iterable[TaskChange]) -> None:
    """Says how tasks end whose run does not say so: it was never made, or it is a batch's."""
    ends = {each.task_id: each for each in changes if each.state in _ENDS}
    for task in ledger.tasks(list(ends)).values() if ends else ():
        change = ends[task.task_id]
        if not task.state.ended and change.state is not None:
            publish(_event(task, _ENDS[change.state], change.error or None))


def _submitted(task: TaskEntry) -> TaskEvent:
    event = _event(task, TaskEventType.TASK_SUBMITTED)
    return event.model_copy(update={"ts": task.submitted_at})


def _event(task: TaskEntry, kind: TaskEventType, error: str | None = None) -> TaskEvent:
    return TaskEvent(
        type=kind, task_id=task.task_id, run_id=task.run_id or "", node=task.node, error=error
    )
