"""What a run's event log says of a run that another worker began."""

from __future__ import annotations

from collections.abc import Sequence

from dagster import DagsterEvent, EventLogEntry
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.storage.tags import PRIORITY_TAG

from mloc_dagster.fleet.pools import free_ended

Fact = tuple[str | None, str | None, float]


def fact_of(entry: EventLogEntry) -> Fact:
    """Returns what tells an event from every other one of its run."""
    return (entry.step_key, entry.message or entry.user_message, entry.timestamp)


def replayable(entries: Sequence[EventLogEntry]) -> list[DagsterEvent]:
    """Returns the events from which Dagster can rebuild the state of a run.

    Two things differ from the log. A retry that has begun since waits no longer: Dagster would
    hold the step back anew and stumble over its next event. And skipped steps are left out, which
    Dagster skips again by itself.
    """
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    last_seen = {event.step_key: position for position, event in enumerate(events)}
    return [
        _without_wait(event) if last_seen[event.step_key] > position else event
        for position, event in enumerate(events)
        if not event.is_step_skipped
    ]


def _without_wait(event: DagsterEvent) -> DagsterEvent:
    if not event.is_step_up_for_retry:
        return event
    return event._replace(event_specific_data=event.step_retry_data._replace(seconds_to_wait=None))


def rebuild(active: ActiveExecution, events: Sequence[DagsterEvent]) -> list[ExecutionStep]:
    """Brings a run's state up to the end of its log; returns the steps to go on with.

    Pools are left out of the replay: a step of the log had its slot then, and Dagster stumbles when
    it gets none now. Afterwards the steps that are still to end ask for theirs; one that has a slot
    keeps it, and one that gets none waits as any other.
    """
    slots = active._instance_concurrency_context  # noqa: SLF001
    active._instance_concurrency_context = None  # noqa: SLF001
    try:
        steps = active.rebuild_from_events(events)
    finally:
        active._instance_concurrency_context = slots  # noqa: SLF001
    if slots is not None:
        free_ended(slots, active)
    ready: list[ExecutionStep] = []
    for step in steps:
        priority = int(step.tags.get(PRIORITY_TAG, "0"))
        if slots is None or step.pool is None or slots.claim(step.pool, step.key, priority):
            ready.append(step)
        else:
            active._in_flight.remove(step.key)  # noqa: SLF001
            active._executable.append(step.key)  # noqa: SLF001
    return ready
