"""What travels between a run and the workers of its steps, and what a run says of a lost worker.

The engine sees only text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dagster import (
    DagsterEvent,
    DagsterRun,
    EventLogEntry,
    IntMetadataValue,
    TextMetadataValue,
    deserialize_value,
    serialize_value,
)

from mloc_dagster.fleet.dagster.internals import KnownExecutionState
from mloc_dagster.services import EngineEventData

_WORKER = "mloc/lost_worker"
_LOSSES = "mloc/losses"


@dataclass(frozen=True, slots=True)
class StepRequest:
    """What a worker needs to run a step, besides the run itself.

    Attributes:
        step_key: The step.
        known_state: What the run knows of the steps before it.
    """

    step_key: str
    known_state: KnownExecutionState

    def to_text(self) -> str:
        """Returns the payload of a ticket."""
        return json.dumps([self.step_key, serialize_value(self.known_state)])

    @classmethod
    def from_text(cls, text: str) -> StepRequest:
        """Reads the payload of a ticket."""
        step_key, state = json.loads(text)
        return cls(step_key, deserialize_value(state, KnownExecutionState))


@dataclass(frozen=True, slots=True)
class StepMessage:
    """What a worker says to a run.

    Attributes:
        ticket_id: The ticket it speaks of.
        events: What Dagster logged, in order.
        final: Whether the step has ended.
        error: Why it could not be run at all; empty for a step that Dagster ran.
    """

    ticket_id: str
    events: tuple[EventLogEntry, ...]
    final: bool
    error: str = ""

    def to_text(self) -> str:
        """Returns the message for an inbox."""
        return json.dumps(
            [
                self.ticket_id,
                [serialize_value(each) for each in self.events],
                self.final,
                self.error,
            ]
        )

    @classmethod
    def from_text(cls, text: str) -> StepMessage:
        """Reads a message of an inbox."""
        ticket_id, events, final, error = json.loads(text)
        entries = tuple(deserialize_value(each, EventLogEntry) for each in events)
        return cls(ticket_id, entries, final, error)


def run_to_text(run: DagsterRun) -> str:
    """Returns a run as workers read it."""
    return serialize_value(run)


def run_from_text(text: str) -> DagsterRun:
    """Reads what `run_to_text` wrote."""
    return deserialize_value(text, DagsterRun)


def state_for_step(
    state: KnownExecutionState, step_key: str, upstream: Iterable[str]
) -> KnownExecutionState:
    """Returns the part of a run's state that one step needs.

    The whole of it grows with the number of shards, and so would each of their messages.

    Args:
        state: What the run knows.
        step_key: The step that is sent away.
        upstream: The steps whose outputs it reads.
    """
    own_key = step_key[step_key.index("[") + 1 : -1] if step_key.endswith("]") else None
    near = set(upstream)
    return state._replace(
        previous_retry_attempts=_only(state.previous_retry_attempts, {step_key}),
        dynamic_mappings=(
            state.dynamic_mappings
            if own_key is None
            else {
                step: {
                    output: [own_key] if keys and own_key in keys else []
                    for output, keys in outputs.items()
                }
                for step, outputs in state.dynamic_mappings.items()
                if step in near
            }
        ),
        ready_outputs={
            each
            for each in state.ready_outputs
            if each.step_key in near and each.mapping_key in (None, own_key)
        },
    )


def _only(attempts: Mapping[str, int], keys: set[str]) -> dict[str, int]:
    return {key: value for key, value in attempts.items() if key in keys}


@dataclass(frozen=True, slots=True)
class Requeue:
    """A shard that goes to another worker.

    Attributes:
        lost_worker: Who had it.
        losses: How many workers this attempt at the shard has lost, this one included.
    """

    lost_worker: str
    losses: int


def requeue_data(requeue: Requeue) -> EngineEventData:
    """Returns what to log with the engine event that tells people."""
    return EngineEventData(
        metadata={
            _WORKER: TextMetadataValue(requeue.lost_worker),
            _LOSSES: IntMetadataValue(requeue.losses),
        }
    )


def requeue_in(event: DagsterEvent) -> Requeue | None:
    """Reads what `requeue_data` wrote; None for any other event."""
    if not event.is_engine_event:
        return None
    known = event.engine_event_data.metadata
    worker, losses = known.get(_WORKER), known.get(_LOSSES)
    if not isinstance(worker, TextMetadataValue) or not isinstance(losses, IntMetadataValue):
        return None
    return Requeue(worker.text or "", losses.value or 0)
