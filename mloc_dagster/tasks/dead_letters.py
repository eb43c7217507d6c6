"""Tasks that failed for good and wait for somebody to decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypedDict

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunRecord

from mloc_dagster.errors import TerminalError
from mloc_dagster.ops import DEAD_LETTER_TAG, WORKFLOW_TAG, RunTask, workflow_id
from mloc_dagster.results import Folder, open_store
from mloc_dagster.services import SqlRunStorage, runs_tagged
from mloc_dagster.tasks.steps import StepFailure, Steps, failures_of, shard_of, steps_of
from mloc_dagster.tasks.task_status import last_log_lines, plan_of, rows_finished, summary_of
from mloc_dagster.tasks.workflows import Workflow, find_workflows
from mloc_dagster.wire import DeadLetterView

_LOG_LINES = 10
_NEVER = datetime.min.replace(tzinfo=UTC)


def find_dead_letters(instance: dg.DagsterInstance) -> list[DeadLetterView]:
    """Returns the tasks that failed for good, the latest first.

    A run that somebody or something retried is none any more, whatever came of the retry.

    Raises:
        TerminalError: If the runs are not in an SQL database.
    """
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        raise TerminalError("dead letters are found in an SQL database only")
    rows = runs_tagged(storage, DEAD_LETTER_TAG, (WORKFLOW_TAG,), ended_after_s=0)
    if not rows:
        return []
    marked = instance.get_runs(dg.RunsFilter(run_ids=[each.run_id for each in rows]))
    known = find_workflows(instance, {workflow_id(each) for each in marked})
    letters = [letter for each in known.values() for letter in _of_workflow(instance, each)]
    return sorted(letters, key=lambda each: each.failed_at or _NEVER, reverse=True)


def _of_workflow(instance: dg.DagsterInstance, workflow: Workflow) -> list[DeadLetterView]:
    record = workflow.runs[-1]
    if record.dagster_run.status is not DagsterRunStatus.FAILURE:
        return []
    dead = record.dagster_run.tags.get(DEAD_LETTER_TAG, "").split(",")
    return [
        _letter(instance, workflow, record, each)
        for each in workflow.tasks()
        if each.task_id in dead
    ]


def _letter(
    instance: dg.DagsterInstance, workflow: Workflow, record: RunRecord, task: RunTask
) -> DeadLetterView:
    run = record.dagster_run
    failures = failures_of(instance, run.run_id, task)
    steps = steps_of(instance, [each.dagster_run for each in workflow.runs])
    folder = open_store().task(task.task_id)
    plan, summary = plan_of(folder), summary_of(folder)
    complete = {
        index
        for key, step in steps.items()
        if task.owns(key) and step.succeeded and (index := shard_of(key)) is not None
    }
    finished = 0 if plan is None else rows_finished(folder, plan, complete)
    return DeadLetterView(
        task_id=task.task_id,
        workflow_id=workflow.workflow_id,
        run_id=run.run_id,
        template=workflow.template,
        node=task.node,
        failed_at=datetime.fromtimestamp(
            record.end_time or record.update_timestamp.timestamp(), UTC
        ),
        reason=failures[-1].message if failures else _run_failure(instance, run.run_id),
        rows=None if plan is None else plan.rows,
        rows_finished=finished,
        rows_missing=None if plan is None else plan.rows - finished,
        errors=None if summary is None else summary.errors,
        **failed_steps(failures, steps, folder),
    )


class FailedSteps(TypedDict):
    """The fields of a `DeadLetterView` that Dagster and the shards' logs know."""

    failed_shards: tuple[int, ...]
    attempts: int
    logs: Mapping[int, tuple[str, ...]]


def failed_steps(failures: Sequence[StepFailure], steps: Steps, folder: Folder) -> FailedSteps:
    """Returns which shards of a task failed, how often, and what they logged last.

    Args:
        failures: The task's steps that failed in its last run.
        steps: What became of its steps.
        folder: The task's folder.
    """
    plan = plan_of(folder)
    shards = () if plan is None else plan.shards
    failed = sorted({index for each in failures if (index := shard_of(each.step_key)) is not None})
    attempts = [steps[each.step_key].attempts for each in failures if each.step_key in steps]
    return {
        "failed_shards": tuple(failed),
        "attempts": max(attempts, default=0),
        "logs": {
            index: last_log_lines(folder, shards[index], _LOG_LINES)
            for index in failed
            if index < len(shards)
        },
    }


def _run_failure(instance: dg.DagsterInstance, run_id: str) -> str:
    """Returns why a run ended before a task of it could begin."""
    others = instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
    if others:
        return f"not begun: {others[0].step_key} failed before it"
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        return entry.message or entry.user_message
    return "its run failed"
