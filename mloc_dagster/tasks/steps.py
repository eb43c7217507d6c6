"""What became of the steps of a task, over all the runs that worked on it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterEventType, DagsterRun

from mloc_dagster.fleet import requeue_in
from mloc_dagster.ops import RunTask, step_error
from mloc_dagster.services import SqlEventLogStorage, StepEventStatus, setback_rows

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
class Setbacks:
    """What shards of a task had to be begun again for, in a run.

    Attributes:
        retries: Attempts that failed and were followed by another.
        losses: Workers that were lost, which costs no attempt.
    """

    retries: int = 0
    losses: int = 0


def setbacks_of(instance: dg.DagsterInstance, run_id: str, task: RunTask) -> Setbacks:
    """Returns how often shards of a task were begun again.

    How often Dagster saw a step start does not tell: a lost worker makes it start once more, too.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return Setbacks()
    rows = [
        each
        for each in setback_rows(storage, run_id)
        if task.owns(each.step_key or "") and shard_of(each.step_key or "") is not None
    ]
    retries = sum(each.type is DagsterEventType.STEP_UP_FOR_RETRY for each in rows)
    entries = [entry for each in rows if (entry := each.entry()) is not None]
    events = [event for each in entries if (event := each.dagster_event) is not None]
    return Setbacks(retries, sum(requeue_in(each) is not None for each in events))


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
