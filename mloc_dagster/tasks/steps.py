"""What became of the steps of a task, over all the runs that worked on it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterEventType, DagsterRun
from dagster._core.execution.stats import StepEventStatus

from mloc_dagster.ops.failures import step_error
from mloc_dagster.ops.run_tags import RunTask

_SHARD = re.compile(r"\.run_shard\[(\d+)\]$")
_KEY = re.compile(r"\[[^\]]*\]$")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step.

    Attributes:
        status: As Dagster has it.
        attempts: How often it was begun in its last run.
    """

    status: StepEventStatus
    attempts: int

    @property
    def succeeded(self) -> bool:
        """Whether it need not run again."""
        return self.status is StepEventStatus.SUCCESS


Steps = Mapping[str, StepResult]


def shard_of(step_key: str) -> int | None:
    """Returns the shard that a step computes; None for any other step."""
    found = _SHARD.search(step_key)
    return None if found is None else int(found[1])


def unresolved(step_key: str) -> str:
    """Returns a shard's step as a plan has it that does not know the shards yet."""
    return _KEY.sub("[?]", step_key)


def steps_of(instance: dg.DagsterInstance, runs: Iterable[DagsterRun]) -> Steps:
    """Returns what became of the steps of runs that went on with one another, oldest first."""
    known: Steps = {}
    for run in runs:
        own = {
            each.step_key: StepResult(each.status, each.attempts or 0)
            for each in instance.get_run_step_stats(run.run_id)
            if each.status is not None
        }
        known = gone_on(known, run.step_keys_to_execute, own)
    return known


def gone_on(before: Steps, again: Collection[str] | None, own: Steps) -> Steps:
    """Returns what is known of steps after one more run.

    Args:
        before: What was known. Of it only successes count, and not those that are to run again.
        again: The steps that the run executes; None for all.
        own: What became of them so far.
    """
    kept = {
        key: step
        for key, step in before.items()
        if again is not None and step.succeeded and not {key, unresolved(key)} & set(again)
    }
    return {**kept, **own}


@dataclass(frozen=True, slots=True)
class StepFailure:
    """How a step failed for good.

    Attributes:
        step_key: The step.
        message: What went wrong, in the words of whoever raised it.
        at: When, in seconds since 1970.
    """

    step_key: str
    message: str
    at: float


def failures_of(instance: dg.DagsterInstance, run_id: str, task: RunTask) -> Sequence[StepFailure]:
    """Returns the steps of a task that failed in a run, the first one first."""
    entries = instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
    return [
        StepFailure(event.step_key or "", step_error(event), entry.timestamp)
        for entry in entries
        if (event := entry.dagster_event) is not None and task.owns(event.step_key or "")
    ]
