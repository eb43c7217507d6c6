"""What entries of Dagster's event log, and the runs they belong to, say about tasks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster import DagsterEventType, EventLogEntry

from mloc_dagster.events import Payload, ShardPlace, TaskEvent, TaskEventType
from mloc_dagster.fleet import requeue_in
from mloc_dagster.ops import RunTask, run_tasks, workflow_id
from mloc_dagster.services import EventRow, SerializableErrorInfo, SqlEventLogStorage, rows_of_type

OF_STEPS = frozenset(
    {
        DagsterEventType.STEP_START,
        DagsterEventType.STEP_RESTARTED,
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_UP_FOR_RETRY,
        DagsterEventType.ENGINE_EVENT,
    }
)
ENDS_BADLY = frozenset({DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED})
RELEVANT = OF_STEPS | ENDS_BADLY | {DagsterEventType.RUN_ENQUEUED}

_SHARD = re.compile(r"\.run_shard\[(\d+)\]$")
_PLAN = ".plan"

# An interruption ends steps, too; that is no failure of the task.
_INTERRUPTIONS = {"TaskCancelled", "DagsterExecutionInterruptedError", "KeyboardInterrupt"}


@dataclass(frozen=True, slots=True)
class RunView:
    """What has to be known of a run to read its entries.

    Attributes:
        run_id: The run.
        tasks: Its tasks.
        ended_steps: Once it has ended badly: steps that succeeded.
        failed_attempts: Ids of entries that ended an attempt at a step, by step.
        retried: Whether Dagster starts the failed run once more by itself; None when it has not
            decided that yet.
    """

    run_id: str
    tasks: Sequence[RunTask]
    ended_steps: Collection[str] = ()
    failed_attempts: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    retried: bool | None = False

    def unfinished(self) -> list[RunTask]:
        """Returns the tasks that were not exported."""
        return [each for each in self.tasks if each.last_step not in self.ended_steps]


def is_noise(row: EventRow) -> bool:
    """Returns whether a row is an engine event without a note of ours, as nearly all are."""
    return row.type is DagsterEventType.ENGINE_EVENT and row.text is None


def task_events(rows: Iterable[EventRow], runs: Mapping[str, RunView]) -> list[TaskEvent]:
    """Returns the events that entries of the log amount to, in order.

    Args:
        rows: Entries of any kind, of any run.
        runs: What is known of the runs; entries of other runs say nothing about tasks.
    """
    found: list[TaskEvent] = []
    for row in rows:
        run = runs.get(row.run_id)
        if run is None or row.type is None:
            continue
        if row.type in OF_STEPS:
            found += _of_step(row, run)
        elif (read := _OF_RUNS.get(row.type)) is not None:
            found += read(row, run)
    return found


def dead_letters(rows: Iterable[EventRow], runs: Mapping[str, RunView]) -> dict[str, list[str]]:
    """Returns the tasks that failed for good, by run."""
    found: dict[str, list[str]] = {}
    for row in rows:
        run = runs.get(row.run_id)
        if run is not None and row.type is DagsterEventType.RUN_FAILURE and not run.retried:
            found[row.run_id] = [each.task_id for each in run.unfinished()]
    return {run_id: tasks for run_id, tasks in found.items() if tasks}


def _event(row: EventRow, task: RunTask, kind: TaskEventType) -> TaskEvent:
    return TaskEvent(type=kind, task_id=task.task_id, run_id=row.run_id, node=task.node, ts=row.ts)


def _of_step(row: EventRow, run: RunView) -> list[TaskEvent]:
    key = row.step_key or ""
    task = next((each for each in run.tasks if each.owns(key)), None)
    if task is None:
        return []
    shard = _SHARD.search(key)
    if shard is not None:
        return _of_shard(row, run, task, int(shard[1]))
    if row.type is DagsterEventType.STEP_FAILURE:
        return _failed(row, task)
    if row.type is DagsterEventType.STEP_SUCCESS and key.endswith(_PLAN):
        return [_event(row, task, TaskEventType.TASK_STARTED)]
    if row.type is DagsterEventType.STEP_SUCCESS and key == task.last_step:
        return [_event(row, task, TaskEventType.TASK_SUCCEEDED)]
    return []


_OF_SHARDS = {
    DagsterEventType.STEP_START: TaskEventType.SHARD_STARTED,
    DagsterEventType.STEP_RESTARTED: TaskEventType.SHARD_STARTED,
    DagsterEventType.STEP_SUCCESS: TaskEventType.SHARD_SUCCEEDED,
    DagsterEventType.STEP_FAILURE: TaskEventType.SHARD_FAILED,
    DagsterEventType.STEP_UP_FOR_RETRY: TaskEventType.SHARD_FAILED,
}


def _of_shard(row: EventRow, run: RunView, task: RunTask, index: int) -> list[TaskEvent]:
    if row.type is DagsterEventType.ENGINE_EVENT:
        return _requeued(row, run, task, index)
    kind = None if row.type is None else _OF_SHARDS.get(row.type)
    if kind is None:
        return []
    failure = _failed(row, task) if row.type is DagsterEventType.STEP_FAILURE else []
    if row.type is DagsterEventType.STEP_FAILURE and not failure:
        return []
    about = _event(row, task, kind).model_copy(
        update={
            "attempt": _attempt(row, run),
            # How many there are stands in the task's plan; whoever runs the shard says it.
            "shard": ShardPlace(index=index, total=0),
            "error": _error(row),
        }
    )
    return [about, *failure]


def _requeued(row: EventRow, run: RunView, task: RunTask, index: int) -> list[TaskEvent]:
    entry = row.entry()
    event = None if entry is None else entry.dagster_event
    requeue = None if event is None else requeue_in(event)
    if event is None or requeue is None:
        return []
    known = {
        "attempt": _attempt(row, run),
        "shard": ShardPlace(index=index, total=0),
        "worker_id": requeue.lost_worker,
        "payload": Payload(losses=requeue.losses, reason=event.message),
    }
    return [_event(row, task, TaskEventType.TASK_REQUEUED).model_copy(update=known)]


def _attempt(row: EventRow, run: RunView) -> int:
    earlier = [each for each in run.failed_attempts.get(row.step_key or "", ()) if each < row.id]
    return len(earlier) + 1


def _failed(row: EventRow, task: RunTask) -> list[TaskEvent]:
    if _INTERRUPTIONS & {each.cls_name for each in _causes(row.entry())}:
        return []
    failed = _event(row, task, TaskEventType.TASK_FAILED)
    reason = f"step {row.step_key} failed"
    return [failed.model_copy(update={"error": _error(row), "payload": Payload(reason=reason)})]


def _submitted(row: EventRow, run: RunView) -> list[TaskEvent]:
    return [_event(row, each, TaskEventType.TASK_SUBMITTED) for each in run.tasks]


def _cancelled(row: EventRow, run: RunView) -> list[TaskEvent]:
    return [_event(row, each, TaskEventType.TASK_CANCELLED) for each in run.unfinished()]


def _run_failed(row: EventRow, run: RunView) -> list[TaskEvent]:
    """Whatever was submitted ends: what the failed steps kept from running, too."""
    found: list[TaskEvent] = []
    for task in run.unfinished():
        reason = Payload(reason="its run failed before it was done")
        failed = _event(row, task, TaskEventType.TASK_FAILED)
        found.append(failed.model_copy(update={"error": _error(row), "payload": reason}))
        if not run.retried:
            letter = _event(row, task, TaskEventType.TASK_DEAD_LETTERED)
            found.append(letter.model_copy(update={"error": _error(row), "payload": reason}))
    return found


_OF_RUNS: Mapping[DagsterEventType, Callable[[EventRow, RunView], list[TaskEvent]]] = {
    DagsterEventType.RUN_ENQUEUED: _submitted,
    DagsterEventType.RUN_CANCELED: _cancelled,
    DagsterEventType.RUN_FAILURE: _run_failed,
}


def _error(row: EventRow) -> str | None:
    """Returns what went wrong in the words of whoever raised it, without Dagster around it."""
    entry = row.entry()
    if entry is None:
        return None
    event = entry.dagster_event
    if event is not None and event.is_step_failure:
        given = event.step_failure_data.user_failure_data
        if given is not None and given.description:
            return given.description
    causes = _causes(entry)
    return causes[-1].message.strip() if causes else entry.message or entry.user_message


def _causes(entry: EventLogEntry | None) -> list[SerializableErrorInfo]:
    """Returns the error of an entry and what lies below it, the first cause last."""
    event = None if entry is None else entry.dagster_event
    data = None if event is None else event.event_specific_data
    error: SerializableErrorInfo | None = getattr(data, "error", None)
    found: list[SerializableErrorInfo] = []
    while error is not None:
        found.append(error)
        error = error.cause
    return found


def attempts_by_step(rows: Iterable[EventRow]) -> dict[str, dict[str, list[int]]]:
    """Returns, by run and step, the ids of entries that ended an attempt."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        found.setdefault(row.run_id, {}).setdefault(row.step_key or "", []).append(row.id)
    return found


def kinds(events: Iterable[TaskEvent]) -> str:
    """Returns how many events there are of which kind, for the tick's log."""
    counts = Counter(each.type for each in events)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


WILL_RETRY_TAG = "dagster/will_retry"


def run_views(
    instance: dg.DagsterInstance, storage: SqlEventLogStorage, rows: Sequence[EventRow]
) -> dict[str, RunView]:
    """Returns the runs of templates that the entries are about."""
    relevant = [each for each in rows if each.type in RELEVANT and not is_noise(each)]
    if not relevant:
        return {}
    runs = instance.get_runs(dg.RunsFilter(run_ids=sorted({each.run_id for each in relevant})))
    attempts = attempts_by_step(
        rows_of_type(
            storage,
            {each.run_id for each in relevant if each.type in OF_STEPS},
            [DagsterEventType.STEP_UP_FOR_RETRY],
        )
    )
    ended: dict[str, set[str]] = {}
    bad_ends = {each.run_id for each in relevant if each.type in ENDS_BADLY}
    for row in rows_of_type(storage, bad_ends, [DagsterEventType.STEP_SUCCESS]):
        ended.setdefault(row.run_id, set()).add(row.step_key or "")
    views = [
        RunView(
            run_id=run.run_id,
            tasks=tasks_of(run),
            ended_steps=ended.get(run.run_id, ()),
            failed_attempts=attempts.get(run.run_id, {}),
            retried=_retried(instance, run),
        )
        for run in runs
    ]
    return {each.run_id: each for each in views if each.tasks}


def tasks_of(run: dg.DagsterRun) -> list[RunTask]:
    """Returns the tasks that a run works on: of a retry only those that it repeats."""
    tasks = run_tasks(run.job_name, run.tags, workflow_id(run))
    chosen: Collection[str] | None = run.step_keys_to_execute
    if chosen is None:
        return list(tasks)
    return [task for task in tasks if any(task.owns(each) for each in chosen)]


def _retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool | None:
    """Returns whether Dagster starts a failed run once more: it says so in a tag, afterwards."""
    if instance.run_retries_enabled and WILL_RETRY_TAG not in run.tags:
        return None
    return run.tags.get(WILL_RETRY_TAG) == "true"
