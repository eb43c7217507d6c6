"""The seam between Dagster's executor and whatever carries steps to workers.

A *ticket* asks for one attempt at one Dagster step (or for one run). The engine's record of a
ticket is the truth: what wakes idle workers only tells them to look at their queues.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from mloc_dagster.fleet.hardware import Hardware, Requirements

RUNS_QUEUE = "runs"
"""The queue of run workers; shard workers take the queues that their hardware names."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class StepTicket(_Record):
    """One attempt at one step.

    Attributes:
        ticket_id: `run:step:attempt`; submitting it twice runs it once.
        run_id: The Dagster run.
        queue: Which workers may take it: `cpu`, `gpu`, `gpu.nvidia-h200`, `runs`.
        requirements: What the worker must have.
        priority: Higher goes first, whatever else waits.
        model_key: The model it needs; workers that have it warm are preferred.
        payload: What the worker needs to run it; opaque to the engine.
    """

    ticket_id: str
    run_id: str
    queue: str
    requirements: Requirements = Requirements()
    priority: int = 0
    model_key: str | None = None
    payload: str = ""


class TicketState(StrEnum):
    """Where a ticket stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    LOST = "lost"


class TicketStatus(_Record):
    """What the engine knows of a ticket.

    Attributes:
        ticket_id: Which ticket.
        state: `lost` when its worker's lease lapsed, or when the record itself is gone.
        why: What it waits for, or how it was lost; empty when there is nothing to say.
        worker_id: Who runs it, or ran it last.
        losses: How many workers were lost while they ran it.
        satisfiable: Whether some live worker could take it.
    """

    ticket_id: str
    state: TicketState
    why: str = ""
    worker_id: str | None = None
    losses: int = 0
    satisfiable: bool = True


class WorkerStatus(StrEnum):
    """What a worker is doing."""

    STARTING = "STARTING"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"


class WorkerInfo(_Record):
    """A live worker, as it registered.

    Attributes:
        worker_id: Unique among the live ones; stable over restarts of the same worker.
        host: The machine's name.
        pid: The process that holds its devices.
        status: What it is doing.
        queues: Where it takes work from.
        hardware: What it owns.
        tags: Free labels, `key: value`.
        warm_models: Keys of the models it has loaded.
        running: Tickets it has claimed.
        started_at: When the process registered.
        last_seen: Its last heartbeat.
    """

    worker_id: str
    host: str
    pid: int
    status: WorkerStatus = WorkerStatus.STARTING
    queues: tuple[str, ...] = ()
    hardware: Hardware = Field(default_factory=Hardware)
    tags: Mapping[str, str] = Field(default_factory=dict)
    warm_models: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    started_at: AwareDatetime
    last_seen: AwareDatetime


class FleetEngine(Protocol):
    """Carries tickets to workers. One contract suite holds for every implementation."""

    def submit(self, ticket: StepTicket) -> None:
        """Makes sure that the ticket is queued or running; a lost one is queued again."""
        ...

    def status(self, ticket_ids: Iterable[str]) -> Mapping[str, TicketStatus]:
        """Returns where tickets stand; each is read, with its lease, at one moment."""
        ...

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when a ticket of the run has news, or after `timeout_s`."""
        ...

    def wake(self, queue: str) -> None:
        """Has an idle worker of a queue look for tickets, or the next one that will be idle.

        `submit` does so itself. Again, while a ticket waits, helps against a worker that died when
        it had been woken.
        """
        ...

    def cancel(self, ticket_id: str) -> None:
        """Takes a queued ticket out; asks the worker of a running one to stop."""
        ...

    def forget(self, ticket_id: str) -> None:
        """Drops a ticket's record, so that it may be submitted anew."""
        ...

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the live workers."""
        ...

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by queue."""
        ...
