"""What carries runs and steps to workers: the whole protocol of a fleet's engine, and its data.

A *ticket* asks for one attempt at one Dagster step, or for one run. The engine's record of a
ticket is the truth: what wakes idle workers only tells them to look at their queues.

An engine is a package beside this module that fulfils `FleetEngine`: `redis` is the fleet's,
`memory` is one process. The contract suites in `tests/contract/test_fleet_*.py` run over each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from mloc_dagster.fleet.calls import Calls
from mloc_dagster.fleet.claims import Leases, TicketClaims, TicketState
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


class Tickets(Protocol):
    """Queues of tickets: what whoever needs work done asks of an engine."""

    def submit(self, *tickets: StepTicket) -> None:
        """Makes sure that tickets are queued or running; a lost one is queued again.

        Each that is queued wakes an idle worker, as `placement.wakes_for` says.
        """
        ...

    def status(self, ticket_ids: Iterable[str]) -> Mapping[str, TicketStatus]:
        """Returns where tickets stand; each is read, with its lease, at one moment."""
        ...

    def cancel(self, ticket_id: str) -> None:
        """Takes a queued ticket out; asks the worker of a running one to stop."""
        ...

    def forget(self, ticket_id: str) -> None:
        """Drops a ticket's record, so that it may be submitted anew."""
        ...

    def wake(self, queue: str) -> None:
        """Has an idle worker of a queue look for tickets, or the next one that will be idle.

        `submit` does so itself. Again, while a ticket waits, helps against a worker that died when
        it had been woken.
        """
        ...

    def waiting(self, queue: str) -> bool:
        """Returns whether any ticket waits in a queue."""
        ...

    def lapsed(self, queue: str) -> Sequence[TicketStatus]:
        """Returns the running tickets of a queue whose worker's lease lapsed."""
        ...

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by the queues of the live workers and of the tickets."""
        ...


class Runs(Protocol):
    """What a run keeps with an engine while its steps are on workers: its record and its mailbox.

    Workers write into the mailbox through their claims; the run alone reads it.
    """

    def describe_run(self, run_id: str, details: str) -> None:
        """Keeps what workers need to know of a run for as long as its tickets may live."""
        ...

    def run_details(self, run_id: str) -> str | None:
        """Returns what `describe_run` kept; None for a run that has ended."""
        ...

    def messages(self, run_id: str) -> Sequence[str]:
        """Returns what workers have said to a run, oldest first."""
        ...

    def remove_messages(self, run_id: str, messages: Sequence[str]) -> None:
        """Takes messages out of a run's mailbox that are durable elsewhere; no other ones."""
        ...

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when a worker has written to the run, or after `timeout_s`."""
        ...

    def notify(self, run_id: str) -> None:
        """Ends the `wait` of the run in this process, or its next one."""
        ...

    def cancel_run(self, run_id: str) -> None:
        """Cancels every ticket of a run, its own included."""
        ...

    def forget_run(self, run_id: str) -> None:
        """Drops every trace of a run that has ended, its own ticket included."""
        ...


class Registry(Protocol):
    """The workers, each under a heartbeat that lapses after `MLOC_HEARTBEAT_TTL_S`."""

    def register(self, info: WorkerInfo) -> WorkerStatus | None:
        """Writes how a worker is now, which is a heartbeat; one that was struck off is back.

        Returns:
            How it was before; None if it was not registered.
        """
        ...

    def unregister(self, worker_id: str) -> WorkerInfo | None:
        """Takes a worker out that ends as it should.

        Returns:
            How it was; None if it was not registered.
        """
        ...

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the workers whose heartbeat has not lapsed, by id."""
        ...

    def worker(self, worker_id: str) -> WorkerInfo | None:
        """Returns a worker as it was last heard of, alive or lost within a day."""
        ...

    def silent_workers(self) -> Sequence[str]:
        """Returns the ids of registered workers whose heartbeat has lapsed."""
        ...

    def strike_off(self, worker_id: str) -> bool:
        """Takes a worker out whose heartbeat has lapsed; true for the one caller who did."""
        ...


class FleetEngine(Tickets, Runs, Registry, Calls, Protocol):
    """All that run workers, step workers, the executor and the control plane need of a fleet.

    Every method raises `FleetUnavailableError`, and no error of its backend's, when the engine
    cannot be reached or refuses.
    """

    def claims(self, leases: Leases) -> TicketClaims:
        """Opens the claims of one worker process, whose leases a thread of it keeps alive."""
        ...

    def check_writable(self) -> None:
        """Returns if the engine takes what is written."""
        ...

    def close(self) -> None:
        """Ends what runs in the background, and the connection."""
        ...
