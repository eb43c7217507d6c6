"""What is told of tasks that failed for good and wait for somebody to decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import dagster as dg
from dagster import DagsterEventType

from mloc_dagster.results import Folder, plan_of
from mloc_dagster.tasks.steps import StepFailure, Steps, shard_of
from mloc_dagster.tasks.task_status import last_log_lines

_LOG_LINES = 10


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


def why_not_begun(instance: dg.DagsterInstance, run_id: str) -> str:
    """Returns why a run ended before a task of it could begin."""
    others = instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
    if others:
        return f"not begun: {others[0].step_key} failed before it"
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        return entry.message or entry.user_message
    return "its run failed"
