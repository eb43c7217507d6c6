"""What became of runs, written into the ledger; events of tasks that no run reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus, RunRecord

from mloc_dagster.events import TaskEvent, TaskEventType, publish
from mloc_dagster.fleet import FleetEngine
from mloc_dagster.ledger import Ledger, PlannedRun, TaskChange, TaskEntry
from mloc_dagster.ops import step_error
from mloc_dagster.results import MemberOutcome, open_store, read_outcome
from mloc_dagster.tasks import Workflow, find_workflows, status_of, summary_of
from mloc_dagster.wire import TaskDetail, TaskState

_MARKED_WITHIN = timedelta(seconds=30)
"""How long a failed run may be without the mark of a dead letter, which a sensor sets."""


def changes_of_workflow(
    instance: dg.DagsterInstance, engine: FleetEngine | None, planned: PlannedRun
) -> list[TaskChange]:
    """Returns how the tasks of a workflow's run are; `engine` is None where there is no fleet."""
    if planned.workflow_id is None:
        return []
    workflow = find_workflows(instance, [planned.workflow_id]).get(planned.workflow_id)
    if workflow is None:
        return []
    return [
        _change(instance, planned, status_of(instance, engine, workflow, task), workflow)
        for task in workflow.tasks()
        if task.task_id in planned.task_ids
    ]


def _change(
    instance: dg.DagsterInstance, planned: PlannedRun, status: TaskDetail, workflow: Workflow
) -> TaskChange:
    record = workflow.runs[-1]
    state = _for_good(instance, status, record)
    return TaskChange(
        task_id=status.task_id,
        run_id=planned.run_id,
        state=state,
        waiting_for=status.waiting_for,
        started_at=_moment(record.start_time),
        ended_at=(status.ended_at or datetime.now(UTC)) if state.ended else None,
        worker_id=_worker(status),
        rows=status.rows,
        rows_finished=status.rows_finished,
        errors=status.errors,
        error=status.error,
    )


def _for_good(instance: dg.DagsterInstance, status: TaskDetail, record: RunRecord) -> TaskState:
    """Takes a run's failure for final, unless Dagster may be about to start it once more.

    A task that failed is at work until its run has ended: before, it can be neither retried nor
    called dead, and whoever waits for its end would have missed it.
    """
    if status.status is not TaskState.FAILED:
        return status.status
    if not record.dagster_run.is_finished:
        return TaskState.RUNNING
    if instance.run_retries_enabled and is_fresh(record):
        return TaskState.FAILED
    return TaskState.DEAD


def _worker(status: TaskDetail) -> str | None:
    if status.status is TaskState.DONE:
        summary = summary_of(open_store().task(status.task_id))
        return None if summary is None else next(iter(summary.workers), None)
    return next(iter(status.workers.values()), None)


def is_fresh(record: RunRecord) -> bool:
    """Tells whether a run ended so recently that more may be said of it."""
    ended = _moment(record.end_time)
    return ended is None or datetime.now(UTC) - ended < _MARKED_WITHIN


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def changes_of_batch(
    instance: dg.DagsterInstance, planned: PlannedRun, record: RunRecord
) -> list[TaskChange]:
    """Returns how the members of a batch are."""
    outcome = read_outcome(open_store(), planned.run_id)
    if outcome is None:
        return _changes_without_outcome(instance, planned, record)
    now, began = datetime.now(UTC), _moment(record.start_time)
    return [_of_member(planned, each, began, now) for each in outcome.tasks]


def _of_member(
    planned: PlannedRun, outcome: MemberOutcome, began: datetime | None, now: datetime
) -> TaskChange:
    return TaskChange(
        task_id=outcome.task_id,
        run_id=planned.run_id,
        state=TaskState(outcome.state),
        started_at=began,
        ended_at=now,
        worker_id=outcome.worker_id,
        rows=outcome.rows or None,
        rows_finished=outcome.rows,
        errors=outcome.errors,
        error=outcome.error,
    )


def _changes_without_outcome(
    instance: dg.DagsterInstance, planned: PlannedRun, record: RunRecord
) -> list[TaskChange]:
    run = record.dagster_run
    if not run.is_finished:
        running = run.status is DagsterRunStatus.STARTED
        state = TaskState.RUNNING if running else TaskState.DISPATCHED
        began = _moment(record.start_time)
        return [
            TaskChange(task_id=each, run_id=planned.run_id, state=state, started_at=began)
            for each in planned.task_ids
        ]
    if run.status is DagsterRunStatus.CANCELED:
        return refused(planned, "", TaskState.CANCELLED)
    return refused(planned, _why_failed(instance, run.run_id))


def _why_failed(instance: dg.DagsterInstance, run_id: str) -> str:
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE):
        if entry.dagster_event is not None:
            return step_error(entry.dagster_event)
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        return entry.message or entry.user_message
    return "its run failed"


def refused(
    planned: PlannedRun,
    why: str,
    state: TaskState = TaskState.DEAD,
    *,
    but: Collection[str] = (),
) -> list[TaskChange]:
    """Returns that nothing comes of the tasks of a run.

    Args:
        planned: The run.
        why: The reason.
        state: How they are then.
        but: Tasks of which something came.
    """
    now = datetime.now(UTC)
    return [
        TaskChange(task_id=each, run_id=planned.run_id, state=state, ended_at=now, error=why)
        for each in planned.task_ids
        if each not in but
    ]


def run_records(
    instance: dg.DagsterInstance, planned: Sequence[PlannedRun]
) -> dict[str, RunRecord]:
    """Returns the runs that there are, by id, in one query."""
    if not planned:
        return {}
    wanted = dg.RunsFilter(run_ids=[each.run_id for each in planned])
    return {each.dagster_run.run_id: each for each in instance.get_run_records(wanted)}


def has_members_left(run: DagsterRun, planned: PlannedRun) -> bool:
    """Tells whether the members of a failed batch deserve a try of their own."""
    failed = run.status is DagsterRunStatus.FAILURE
    return failed and len(planned.task_ids) > 1 and read_outcome(open_store(), run.run_id) is None


_ENDS = {
    TaskState.CANCELLED: TaskEventType.TASK_CANCELLED,
    TaskState.DEAD: TaskEventType.TASK_DEAD_LETTERED,
}

_AT_ONCE = 1_000


def publish_submitted(ledger: Ledger, planned: Sequence[PlannedRun]) -> None:
    """Says that tasks were submitted: their runs never stand in Dagster's queue."""
    for task in ledger.tasks([task for each in planned for task in each.task_ids]).values():
        publish(_submitted(task))


def publish_cancelled(ledger: Ledger) -> None:
    """Says which tasks were cancelled before they had a run; again, if this is interrupted."""
    untold = ledger.untold(_AT_ONCE)
    for task in untold:
        if not task.runs:
            publish(_submitted(task))
        publish(_event(task, TaskEventType.TASK_CANCELLED))
    if untold:
        ledger.told([each.task_id for each in untold])


def publish_ended(ledger: Ledger, changes: Iterable[TaskChange]) -> None:
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
