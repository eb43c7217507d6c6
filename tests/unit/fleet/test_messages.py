"""What travels to workers and back: complete, and no more than one step needs."""

import dagster as dg
import pytest
from dagster import DagsterRun
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.storage.tags import PRIORITY_TAG

from mloc_dagster.fleet.dagster.messages import (
    StepMessage,
    StepRequest,
    run_from_text,
    run_to_text,
    state_for_step,
)
from mloc_dagster.fleet.dagster.tickets import (
    fleet_tags,
    requirements_of_step,
    run_ticket,
    run_ticket_id,
    ticket_for,
)
from mloc_dagster.fleet.engine import RUNS_QUEUE
from mloc_dagster.fleet.hardware import Requirements

SHARDS = 256


@dg.op(out=dg.DynamicOut(int))
def plan() -> object:
    yield dg.DynamicOutput(1, "k1")


@dg.op(tags=fleet_tags(Requirements(cpus=2, gpus=1, gpu_type="h200"), "engine:model"))
def shard(number: int) -> int:
    return number


@dg.job
def work() -> None:
    plan().map(shard)


def full_state(shards: int = SHARDS) -> KnownExecutionState:
    keys = [f"{each:04d}" for each in range(shards)]
    outputs = {StepOutputHandle("plan", "result", key) for key in keys}
    others = {StepOutputHandle(f"shard[{key}]", "result") for key in keys}
    return KnownExecutionState(
        previous_retry_attempts={f"shard[{key}]": 1 for key in keys},
        dynamic_mappings={"plan": {"result": keys}, "other": {"result": ["a"]}},
        ready_outputs=outputs | others,
    )


def test_a_shard_gets_its_own_part_of_the_state() -> None:
    state = state_for_step(full_state(), "shard[0007]", ["plan"])
    assert state.previous_retry_attempts == {"shard[0007]": 1}
    assert state.dynamic_mappings == {"plan": {"result": ["0007"]}}
    assert state.ready_outputs == {StepOutputHandle("plan", "result", "0007")}


def test_what_a_shard_gets_does_not_grow_with_their_number() -> None:
    few, many = (
        StepRequest("shard[0001]", state_for_step(full_state(n), "shard[0001]", ["plan"])).to_text()
        for n in (2, SHARDS)
    )
    assert len(few) == len(many)


def test_an_upstream_that_was_skipped_has_nothing_for_the_shard() -> None:
    state = KnownExecutionState({}, {"plan": {"result": None}})
    assert state_for_step(state, "shard[0001]", ["plan"]).dynamic_mappings == {
        "plan": {"result": []}
    }


def test_a_step_that_collects_gets_every_mapping() -> None:
    state = state_for_step(full_state(3), "collect", [f"shard[000{n}]" for n in range(3)])
    assert state.dynamic_mappings["plan"] == {"result": ["0000", "0001", "0002"]}
    assert {each.step_key for each in state.ready_outputs} == {
        "shard[0000]",
        "shard[0001]",
        "shard[0002]",
    }


def test_requests_runs_and_messages_arrive_as_they_were_sent() -> None:
    request = StepRequest("shard[0001]", state_for_step(full_state(), "shard[0001]", ["plan"]))
    assert StepRequest.from_text(request.to_text()) == request
    run = DagsterRun(job_name="work", tags={"größe": "groß"})
    assert run_from_text(run_to_text(run)) == run
    with dg.DagsterInstance.ephemeral() as instance:
        done = work.execute_in_process(instance=instance)
        events = tuple(instance.all_logs(done.run_id))
    message = StepMessage("run:shard[0001]:1", events, final=True, error="no such model")
    assert StepMessage.from_text(message.to_text()) == message


def test_the_ticket_of_a_step_says_where_it_belongs() -> None:
    known = KnownExecutionState({}, {"plan": {"result": ["k1"]}})
    steps = create_execution_plan(work, known_state=known)
    step = steps.get_step_by_key("shard[k1]")
    assert isinstance(step, ExecutionStep)
    requirements = requirements_of_step(step.tags or {})
    assert requirements is not None
    assert requirements == Requirements(cpus=2, gpus=1, gpu_type="h200")
    run = DagsterRun(job_name="work", tags={PRIORITY_TAG: "7"})
    request = StepRequest(step.key, known)
    ticket = ticket_for(run, step, request, 2, requirements)
    assert ticket.ticket_id == f"{run.run_id}:shard[k1]:2"
    assert (ticket.run_id, ticket.queue, ticket.priority) == (run.run_id, "gpu.h200", 7)
    assert (ticket.model_key, ticket.payload) == ("engine:model", request.to_text())
    assert ticket_for(run, step, request, 2, requirements) == ticket


def test_a_step_without_tags_belongs_to_the_run_itself() -> None:
    assert requirements_of_step({"mloc/other": "x"}) is None
    tags = fleet_tags(Requirements(), None)
    assert requirements_of_step(tags) == Requirements()
    assert len(tags) == 1


@pytest.mark.parametrize(
    ("text", "priority"),
    [("3", 3), ("-2", -2), ("high", 0), ("1" + "0" * 30, 100_000), ("-" + "9" * 30, -100_000)],
)
def test_a_run_keeps_its_priority_within_reason(text: str, priority: int) -> None:
    ticket = run_ticket(DagsterRun(job_name="work", run_id="r1", tags={PRIORITY_TAG: text}))
    assert (ticket.queue, ticket.priority) == (RUNS_QUEUE, priority)
    assert ticket.ticket_id == run_ticket_id("r1") == "r1:run"
