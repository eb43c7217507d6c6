"""What a run's log says of a shard that lost its worker, for whoever reads it as data."""

from __future__ import annotations

from dataclasses import dataclass

from dagster import DagsterEvent, IntMetadataValue, TextMetadataValue
from dagster._core.events import EngineEventData

_WORKER = "mloc/lost_worker"
_LOSSES = "mloc/losses"


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
