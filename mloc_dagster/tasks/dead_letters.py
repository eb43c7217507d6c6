"""Tasks that failed for good and wait for somebody to decide."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunRecord
from dagster._core.storage.runs import SqlRunStorage
from pydantic import BaseModel, ConfigDict

from mloc_dagster.errors import TerminalError
from mloc_dagster.ops.plan import WORKFLOW_TAG, workflow_id
from mloc_dagster.ops.run_tags import DEAD_LETTER_TAG, RunTask
from mloc_dagster.results.store import open_store
from mloc_dagster.services.run_rows import runs_tagged
from mloc_dagster.tasks.progress import last_log_lines, plan_of, rows_finished, summary_of
from mloc_dagster.tasks.steps import failures_of, shard_of, steps_of
from mloc_dagster.tasks.workflows import Workflow, workflows

LOG_LINES = 10


class DeadLetter(BaseModel):
    """A task that failed for good.

    Attributes:
        task_id: The task.
        run_id: The Dagster run in which it failed last.
        template: The template's name.
        node: Its stage or node.
        failed_at: When.
        reason: What went wrong, in the words of whoever raised it.
        failed_shards: The shards that were given up.
        attempts: Attempts at the step that failed, in that run; 0 if none of its own did.
        rows: Rows of its input; None if it was not read.
        rows_finished: Rows that are there and stay.
        errors: How many of them ended with an error; None if they were not aggregated.
        logs: The last lines of each failed shard's log.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    run_id: str
    template: str
    node: str
    failed_at: datetime
    reason: str
    failed_shards: tuple[int, ...] = ()
    attempts: int = 0
    rows: int | None = None
    rows_finished: int = 0
    errors: int | None = None
    logs: Mapping[int, tuple[str, ...]] = {}

    @property
    def rows_missing(self) -> int | None:
        """Rows that a retry has to compute; None if the input was not read."""
        return None if self.rows is None else self.rows - self.rows_finished


def dead_letters(instance: dg.DagsterInstance) -> list[DeadLetter]:
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
    known = workflows(instance, {workflow_id(each) for each in marked})
    letters = [letter for each in known.values() for letter in _of_workflow(instance, each)]
    return sorted(letters, key=lambda each: each.failed_at, reverse=True)


def _of_workflow(instance: dg.DagsterInstance, workflow: Workflow) -> list[DeadLetter]:
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
) -> DeadLetter:
    run = record.dagster_run
    failures = failures_of(instance, run.run_id, task)
    steps = steps_of(instance, [each.dagster_run for each in workflow.runs])
    failed = sorted({index for each in failures if (index := shard_of(each.step_key)) is not None})
    folder = open_store().task(task.task_id)
    plan, summary = plan_of(folder), summary_of(folder)
    complete = {
        index
        for key, step in steps.items()
        if task.owns(key) and step.succeeded and (index := shard_of(key)) is not None
    }
    logs = {
        index: last_log_lines(folder, plan.shards[index], LOG_LINES)
        for index in failed
        if plan is not None
    }
    return DeadLetter(
        task_id=task.task_id,
        run_id=run.run_id,
        template=workflow.template,
        node=task.node,
        failed_at=datetime.fromtimestamp(
            record.end_time or record.update_timestamp.timestamp(), UTC
        ),
        reason=failures[-1].message if failures else _run_failure(instance, run.run_id),
        failed_shards=tuple(failed),
        attempts=max((steps[each.step_key].attempts for each in failures), default=0),
        rows=None if plan is None else plan.rows,
        rows_finished=0 if plan is None else rows_finished(folder, plan, complete),
        errors=None if summary is None else summary.errors,
        logs=logs,
    )


def _run_failure(instance: dg.DagsterInstance, run_id: str) -> str:
    """Returns why a run ended before a task of it could begin."""
    others = instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
    if others:
        return f"not begun: {others[0].step_key} failed before it"
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        return entry.message or entry.user_message
    return "its run failed"
