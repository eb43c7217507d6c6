"""The ticket that asks for one attempt at one step."""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.storage.tags import PRIORITY_TAG

from mloc_dagster.fleet.engine import RUNS_QUEUE, StepTicket
from mloc_dagster.fleet.hardware import Requirements, queue_of
from mloc_dagster.fleet.messages import StepRequest
from mloc_dagster.fleet.step_tags import MODEL_TAG, tags_of_step

# Beyond this the places within a priority would blur in Redis' floating-point scores.
_MAX_PRIORITY = 100_000


def ticket_for(
    run: DagsterRun,
    step: ExecutionStep,
    request: StepRequest,
    attempt: int,
    requirements: Requirements,
) -> StepTicket:
    """Returns the ticket of an attempt at a step; the same attempt has the same id."""
    return StepTicket(
        ticket_id=f"{run.run_id}:{step.key}:{attempt}",
        run_id=run.run_id,
        queue=queue_of(requirements),
        requirements=requirements,
        priority=priority_of(run),
        model_key=tags_of_step(step.tags, run.tags).get(MODEL_TAG),
        payload=request.to_text(),
    )


def run_ticket(run: DagsterRun) -> StepTicket:
    """Returns the ticket of a run itself, for run workers."""
    return StepTicket(
        ticket_id=run_ticket_id(run.run_id),
        run_id=run.run_id,
        queue=RUNS_QUEUE,
        priority=priority_of(run),
    )


def priority_of(run: DagsterRun) -> int:
    """Returns `dagster/priority` of a run: what let it leave Dagster's queue early counts on."""
    try:
        priority = int(run.tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        return 0
    return max(-_MAX_PRIORITY, min(priority, _MAX_PRIORITY))


def run_ticket_id(run_id: str) -> str:
    """Returns the id of a run's own ticket."""
    return f"{run_id}:run"
