"""What entries of the log say, in the cases that no quiet run shows."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster import DagsterEventType, EventLogEntry
from dagster._core.events import StepFailureData
from dagster_shared.error import SerializableErrorInfo
from dagster_shared.serdes import serialize_value

from mloc_dagster.fleet import Requeue, requeue_data
from mloc_dagster.ops import NODES_TAG, run_tasks
from mloc_dagster.sensors.task_facts import RunView, dead_letters, task_events, tasks_of
from mloc_dagster.services import EventRow

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def view(nodes: str = "draft,refine", **rest: object) -> RunView:
    return RunView("r", run_tasks("job", {NODES_TAG: nodes}, "w"), **rest)  # type: ignore[arg-type]


def row(
    kind: DagsterEventType, step: str | None = None, error: str | None = None, number: int = 1
) -> EventRow:
    text = None
    if error is not None:
        cause = SerializableErrorInfo("stopped", [], error)
        wrapped = SerializableErrorInfo("outer", [], "DagsterExecutionStepExecutionError", cause)
        event = dg.DagsterEvent(
            event_type_value=kind.value,
            job_name="job",
            step_key=step,
            event_specific_data=StepFailureData(error=wrapped, user_failure_data=None),
        )
        entry = EventLogEntry(
            error_info=None,
            level=40,
            user_message="",
            run_id="r",
            timestamp=NOW.timestamp(),
            step_key=step,
            job_name="job",
            dagster_event=event,
        )
        text = serialize_value(entry)
    return EventRow(number, "r", kind, step, NOW, text)


SHARD = "job__draft.run_shard[0007]"


@pytest.mark.parametrize(
    "error", ["TaskCancelled", "DagsterExecutionInterruptedError", "KeyboardInterrupt"]
)
def test_an_interrupted_step_is_no_failure(error: str) -> None:
    interrupted = row(DagsterEventType.STEP_FAILURE, SHARD, error)
    assert task_events([interrupted], {"r": view()}) == []


def test_the_last_failure_of_a_shard_fails_its_task() -> None:
    failed = row(DagsterEventType.STEP_FAILURE, SHARD, "ValueError", number=9)
    events = task_events([failed], {"r": view(failed_attempts={SHARD: [3, 5, 12]})})
    assert [(each.type, each.task_id, each.attempt) for each in events] == [
        ("SHARD_FAILED", "w-draft", 3),
        ("TASK_FAILED", "w-draft", 1),
    ]
    assert {each.error for each in events} == {"stopped"}
    assert events[0].shard is not None
    assert events[0].shard.index == 7


def test_a_run_that_is_retried_leaves_no_dead_letters() -> None:
    failed = row(DagsterEventType.RUN_FAILURE)
    views = {"r": view(retried=True, ended_steps={"job__draft.export"})}
    assert [(each.type, each.task_id) for each in task_events([failed], views)] == [
        ("TASK_FAILED", "w-refine")
    ]
    assert dead_letters([failed], views) == {}
    final = {"r": view(ended_steps={"job__draft.export"})}
    assert dead_letters([failed], final) == {"r": ["w-refine"]}


def test_runs_and_steps_of_others_say_nothing() -> None:
    start = row(DagsterEventType.STEP_START, "somebody__elses.run_shard[0001]")
    assert task_events([start], {"r": view()}) == []
    assert task_events([row(DagsterEventType.RUN_ENQUEUED)], {}) == []
    assert run_tasks("job", {}, "w") == ()


def test_a_retry_works_on_what_it_repeats() -> None:
    run = dg.DagsterRun(
        job_name="job",
        run_id="r",
        tags={NODES_TAG: "draft,refine"},
        step_keys_to_execute=["job__refine.aggregate", "job__refine.export"],
    )
    assert [each.node for each in tasks_of(run)] == ["refine"]


def test_a_lost_worker_puts_its_shard_back() -> None:
    note = requeue_data(Requeue("w9", 2))
    event = dg.DagsterEvent(
        event_type_value=DagsterEventType.ENGINE_EVENT.value,
        job_name="job",
        step_key=SHARD,
        event_specific_data=note,
    )
    entry = EventLogEntry(
        error_info=None,
        level=20,
        user_message="",
        run_id="r",
        timestamp=NOW.timestamp(),
        step_key=SHARD,
        job_name="job",
        dagster_event=event,
    )
    told = EventRow(9, "r", DagsterEventType.ENGINE_EVENT, SHARD, NOW, serialize_value(entry))
    (requeued,) = task_events([told], {"r": view(failed_attempts={SHARD: [3]})})
    assert (requeued.type, requeued.worker_id, requeued.attempt) == ("TASK_REQUEUED", "w9", 2)
    assert requeued.payload.losses == 2
    assert requeued.shard is not None
    assert requeued.shard.index == 7
    assert '"mloc/' in serialize_value(entry)  # by which the query finds it
    other = row(DagsterEventType.ENGINE_EVENT, SHARD)
    assert task_events([other], {"r": view()}) == []
