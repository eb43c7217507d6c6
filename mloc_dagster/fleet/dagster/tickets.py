"""How an op says by tags that its steps belong on the fleet, and the tickets that ask for them."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import DagsterRun

from mloc_dagster.fleet.dagster.internals import PRIORITY_TAG, ExecutionStep
from mloc_dagster.fleet.dagster.messages import StepRequest
from mloc_dagster.fleet.engine import RUNS_QUEUE, StepTicket
from mloc_dagster.fleet.hardware import Requirements, queue_of
from mloc_dagster.schema.resources import Retries

REQUIREMENTS_TAG = "mloc/requirements"
"""JSON of `Requirements`; an op without it runs inside the run worker."""

MODEL_TAG = "mloc/model_key"
"""The model that the op's steps need."""

RETRIES_TAG = "mloc/retries"
"""JSON of `Retries`, for attempts whose worker could not tell Dagster how they ended.

Not Dagster's retry policy: where an op has one, Dagster retries a step that Ctrl-C interrupted.
"""

# Beyond this the places within a priority would blur in Redis' floating-point scores.
_MAX_PRIORITY = 100_000


def fleet_tags(
    requirements: Requirements, model_key: str | None, retries: Retries | None = None
) -> dict[str, str]:
    """Returns the tags that send an op's steps to workers."""
    tags = {REQUIREMENTS_TAG: requirements.model_dump_json()}
    if retries is not None:
        tags[RETRIES_TAG] = retries.model_dump_json()
    return tags if model_key is None else {**tags, MODEL_TAG: model_key}


def tags_of_step(step: Mapping[str, str] | None, run: Mapping[str, str]) -> Mapping[str, str]:
    """Returns what holds for a step: its op's tags, or those of its run where it has the same.

    An op that belongs on the fleet and serves runs of many kinds cannot know what each needs.
    """
    own = step or {}
    if REQUIREMENTS_TAG not in own:
        return own
    known = (REQUIREMENTS_TAG, MODEL_TAG, RETRIES_TAG)
    return {**own, **{name: run[name] for name in known if name in run}}


def requirements_of_step(tags: Mapping[str, str]) -> Requirements | None:
    """Returns what a step needs of its worker; None for a step of the run itself."""
    text = tags.get(REQUIREMENTS_TAG)
    return None if text is None else Requirements.model_validate_json(text)


def retries_of_step(tags: Mapping[str, str]) -> Retries | None:
    """Returns how often a step is tried again; None where its op says nothing."""
    text = tags.get(RETRIES_TAG)
    return None if text is None else Retries.model_validate_json(text)


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
