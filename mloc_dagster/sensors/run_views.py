"""What the entries of a batch need to know of their runs, read in a few queries."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import dagster as dg
from dagster import DagsterEventType
from dagster._core.storage.event_log import SqlEventLogStorage

from mloc_dagster.ops.plan import workflow_id
from mloc_dagster.ops.run_tags import RunTask, run_tasks
from mloc_dagster.sensors.task_facts import (
    ENDS_BADLY,
    OF_STEPS,
    RELEVANT,
    RunView,
    attempts_by_step,
    is_noise,
)
from mloc_dagster.services.event_rows import EventRow, rows_of_type

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
