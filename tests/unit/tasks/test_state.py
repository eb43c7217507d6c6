"""The one word for how a task is, and which steps count over several runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dagster import DagsterRunStatus
from dagster._core.execution.stats import StepEventStatus

from mloc_dagster.tasks.steps import StepResult, gone_on, shard_of, unresolved
from mloc_dagster.tasks.task_status import TaskFacts, task_state
from mloc_dagster.wire import Shards, TaskState

STARTED = TaskFacts(DagsterRunStatus.STARTED)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (TaskFacts(DagsterRunStatus.NOT_STARTED), TaskState.PENDING),
        (TaskFacts(DagsterRunStatus.QUEUED), TaskState.PENDING),
        (TaskFacts(DagsterRunStatus.STARTING, claimed=False), TaskState.PENDING),
        (TaskFacts(DagsterRunStatus.STARTING), TaskState.DISPATCHED),
        (STARTED, TaskState.DISPATCHED),
        (replace(STARTED, upstream_done=False), TaskState.WAITING),
        (replace(STARTED, shards=Shards(queued=2)), TaskState.PENDING),
        (replace(STARTED, shards=Shards(queued=1, running=1)), TaskState.RUNNING),
        (replace(STARTED, shards=Shards(queued=1, done=1)), TaskState.PENDING),
        (replace(STARTED, shards=Shards(done=2)), TaskState.RUNNING),
        (
            replace(STARTED, failed=True, shards=Shards(running=1, failed=1)),
            TaskState.RUNNING,
        ),
        (replace(STARTED, failed=True, shards=Shards(done=1, failed=1)), TaskState.FAILED),
        (replace(STARTED, exported=True), TaskState.DONE),
        (TaskFacts(DagsterRunStatus.CANCELING, shards=Shards(running=1)), TaskState.RUNNING),
        (TaskFacts(DagsterRunStatus.CANCELED), TaskState.CANCELLED),
        (TaskFacts(DagsterRunStatus.CANCELED, exported=True), TaskState.DONE),
        (TaskFacts(DagsterRunStatus.FAILURE), TaskState.FAILED),
        (TaskFacts(DagsterRunStatus.FAILURE, dead=True), TaskState.DEAD),
        # A task of a run whose other tasks failed.
        (TaskFacts(DagsterRunStatus.FAILURE, exported=True), TaskState.DONE),
        (TaskFacts(DagsterRunStatus.SUCCESS), TaskState.DONE),
    ],
)
def test_state(facts: TaskFacts, state: TaskState) -> None:
    assert task_state(facts) is state
    assert state.ended == (state in ("DONE", "FAILED", "CANCELLED", "DEAD"))


def steps(**found: StepEventStatus) -> dict[str, StepResult]:
    return {f"t.{key}": StepResult(status, attempts=1) for key, status in found.items()}


DONE, FAILED = StepEventStatus.SUCCESS, StepEventStatus.FAILURE
FIRST = {
    "t.plan": StepResult(DONE, 1),
    "t.run_shard[0000]": StepResult(DONE, 1),
    "t.run_shard[0001]": StepResult(FAILED, 4),
}


def test_a_retry_keeps_what_succeeded_and_forgets_what_failed() -> None:
    after = gone_on(FIRST, ["t.run_shard[0001]", "t.aggregate"], {})
    assert after.keys() == {"t.plan", "t.run_shard[0000]"}


def test_what_a_retry_executes_anew_counts_no_longer() -> None:
    assert gone_on(FIRST, ["t.plan", "t.run_shard[?]"], steps(plan=DONE)) == steps(plan=DONE)


def test_a_run_of_everything_starts_over() -> None:
    assert gone_on(FIRST, None, steps(plan=FAILED)) == steps(plan=FAILED)


def test_shards_are_told_by_their_steps() -> None:
    assert shard_of("echo__task.run_shard[0012]") == 12
    assert shard_of("echo__task.plan") is None
    assert unresolved("echo__task.run_shard[0012]") == "echo__task.run_shard[?]"
