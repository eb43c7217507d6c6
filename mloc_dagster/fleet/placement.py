"""Who should take a ticket or a call, which idle workers are woken, and why one waits; pure.

Both engines follow what is here. What Redis must decide at one moment is in `redis/lua/`, and says
the same; `tests/contract/test_fleet_engine.py` holds both to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from mloc_dagster.fleet.claims import TicketState
from mloc_dagster.fleet.engine import (
    RUNS_QUEUE,
    StepTicket,
    TicketStatus,
    WorkerInfo,
    WorkerStatus,
)
from mloc_dagster.fleet.hardware import Hardware, Requirements, misfit, queue_of

WARM_PATIENCE_S = 1.0
"""Seconds a ticket is kept for the idle worker that has its model warm."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued ticket as a worker sees it.

    Attributes:
        ticket_id: The ticket.
        queue: Where it waits.
        requirements: What it needs.
        model_key: The model it needs; empty for none.
        prefer: The warm worker that it is kept for; empty for none.
        priority: Higher goes first.
        submitted_at: When it was queued first, in seconds since the epoch.
    """

    ticket_id: str
    queue: str
    requirements: Requirements
    model_key: str
    prefer: str
    priority: int
    submitted_at: float


def preferred_worker(
    ticket: StepTicket, workers: Sequence[WorkerInfo], promised: Collection[str]
) -> str | None:
    """Returns an idle worker that fits and has the ticket's model warm, if there is one.

    Args:
        ticket: What is to be placed.
        workers: The live ones.
        promised: Workers that an earlier ticket of this moment is kept for.
    """
    if ticket.model_key is None:
        return None
    for worker in workers:
        if (
            ticket.model_key in worker.warm_models
            and worker.status is WorkerStatus.IDLE
            and worker.worker_id not in promised
            and _takes(worker, ticket.queue, ticket.requirements)
        ):
            return worker.worker_id
    return None


def choose(
    waiting: Sequence[Waiting],
    worker_id: str,
    hardware: Hardware,
    warm: Collection[str],
    now: float,
) -> list[Waiting]:
    """Returns what a worker may take, best first.

    Queue order, but for two things: a ticket that is kept for another worker is left to it for a
    moment, and among tickets that came a moment ago one whose model is warm here goes first, if no
    other has a higher priority.

    Args:
        waiting: Tickets of a queue, in its order.
        worker_id: The worker.
        hardware: What it owns.
        warm: Keys of the models that it has loaded.
        now: Seconds since the epoch.
    """
    fits = [
        each
        for each in waiting
        if misfit(each.requirements, hardware) is None and _kept_s(each, worker_id, now) <= 0
    ]
    if not fits or now - fits[0].submitted_at > WARM_PATIENCE_S:
        return fits
    return sorted(fits, key=lambda each: (-each.priority, _is_cold(each.model_key, warm)))


def _kept_s(waiting: Waiting, worker_id: str, now: float) -> float:
    """Returns for how many seconds more a ticket is kept for another worker; 0 for none."""
    if waiting.prefer in ("", worker_id):
        return 0.0
    return max(0.0, waiting.submitted_at + WARM_PATIENCE_S - now)


@dataclass(slots=True)
class Leftover:
    """What a worker finds in its queues and may not take, or not yet.

    Attributes:
        kept_s: Seconds until a ticket that is kept for another worker is anybody's.
        unfit: What those ask for, and where they wait, that need other hardware.
    """

    kept_s: float = inf
    unfit: set[tuple[str, Requirements]] = field(default_factory=set)

    def add(
        self, waiting: Sequence[Waiting], worker_id: str, hardware: Hardware, now: float
    ) -> None:
        """Adds tickets of a queue; see `choose`."""
        for each in waiting:
            if misfit(each.requirements, hardware) is not None:
                self.unfit.add((each.queue, each.requirements))
            elif kept_s := _kept_s(each, worker_id, now):
                self.kept_s = min(self.kept_s, kept_s)

    def takers(self, workers: Sequence[WorkerInfo]) -> list[str]:
        """Returns those workers, by id, that have the hardware which was lacking."""
        return [
            worker.worker_id
            for worker in workers
            if any(_takes(worker, queue, needs) for queue, needs in self.unfit)
        ]


def suited_workers(
    workers: Sequence[WorkerInfo],
    model_key: str,
    requirements: Requirements,
    open_calls: Mapping[str, int],
) -> list[str]:
    """Returns the ids of the workers that may answer a call, the best first.

    Whoever has the model loaded answers at once, also beside a shard. Among the others an idle one
    loads it without taking anything away from anybody.

    Args:
        workers: The live ones.
        model_key: The model.
        requirements: What it needs.
        open_calls: How many calls each worker has already.
    """
    queue = queue_of(requirements)
    fitting = [
        each
        for each in workers
        if each.status in (WorkerStatus.IDLE, WorkerStatus.RUNNING)
        and queue in each.queues
        and misfit(requirements, each.hardware) is None
    ]

    def rank(worker: WorkerInfo) -> tuple[bool, bool, int]:
        cold, busy = model_key not in worker.warm_models, worker.status is not WorkerStatus.IDLE
        return cold, busy, open_calls.get(worker.worker_id, 0)

    return [each.worker_id for each in sorted(fitting, key=rank)]


# Wake lists
#
# Idle workers wait on lists; an entry wakes one of the workers that wait on its list, or the next
# one that will. A list has one entry at most: it only says that there is something to look for.
#
# - A ticket that is queued, or queued again, gets an entry on each of `wakes_for`.
# - A claim that leaves tickets behind in its queue wakes the next worker of the queue.
# - A worker that finds tickets which it lacks the hardware for wakes those of `Leftover.takers`.
# - A worker that was woken and ends passes an entry on that was not for it alone.


def queue_wake(queue: str) -> str:
    """Returns the wake list of a queue."""
    return f"queue:{queue}:wake"


def worker_wake(worker_id: str) -> str:
    """Returns the wake list of one worker: for tickets that are meant for it."""
    return f"worker:{worker_id}:wake"


def wakes_for(queue: str, prefer: str) -> list[str]:
    """Returns the lists that get an entry for a ticket: its queue's, and that of a warm worker.

    Another one than the warm worker is woken, too: to wait until the ticket is anybody's.

    Args:
        queue: Where the ticket waits.
        prefer: The worker that it is kept for; empty for none.
    """
    return [*([worker_wake(prefer)] if prefer else []), queue_wake(queue)]


def waits_on(worker_id: str, queues: Sequence[str]) -> list[str]:
    """Returns the lists on which an idle worker waits, the one to look at first before others."""
    return [worker_wake(worker_id), *(queue_wake(each) for each in queues)]


def may_pass_on(wake_list: str) -> bool:
    """Returns whether what woke a worker may wake another one in its place."""
    return wake_list.startswith("queue:")


def _is_cold(model_key: str, warm: Collection[str]) -> bool:
    return model_key != "" and model_key not in warm


@dataclass(frozen=True, slots=True)
class Standing:
    """What an engine has on record of a ticket.

    Attributes:
        state: As the last change left it.
        leased: Whether its worker's lease is alive.
        queue: Where it waits or waited.
        requirements: What it needs; only looked at while it waits.
        worker_id: Who runs it, or ran it last.
        losses: How many workers were lost with it.
    """

    state: TicketState
    leased: bool
    queue: str
    requirements: Requirements
    worker_id: str | None = None
    losses: int = 0


def ticket_status(
    ticket_id: str, known: Standing | None, workers: Callable[[], Sequence[WorkerInfo]]
) -> TicketStatus:
    """Returns where a ticket stands.

    Args:
        ticket_id: The ticket.
        known: What is on record; None for a ticket without a record.
        workers: Returns the live ones; only asked for a ticket that waits.
    """
    if known is None:
        return TicketStatus(ticket_id=ticket_id, state=TicketState.LOST, why="its record is gone")
    state, why, satisfiable = known.state, "", True
    if state is TicketState.RUNNING and not known.leased:
        state, why = TicketState.LOST, f"worker {known.worker_id} fell silent"
    elif state is TicketState.QUEUED:
        why, satisfiable = why_waiting(known.queue, known.requirements, workers())
    return TicketStatus(
        ticket_id=ticket_id,
        state=state,
        why=why,
        worker_id=known.worker_id,
        losses=known.losses,
        satisfiable=satisfiable,
    )


def why_waiting(
    queue: str, requirements: Requirements, workers: Sequence[WorkerInfo]
) -> tuple[str, bool]:
    """Returns what a queued ticket waits for, and whether some live worker could take it."""
    if queue == RUNS_QUEUE:
        takers = [each for each in workers if queue in each.queues]
        return ("every run worker is busy", True) if takers else ("no run worker is alive", False)
    candidates = [each for each in workers if RUNS_QUEUE not in each.queues]
    if not candidates:
        return "no worker is alive", False
    able = [each for each in candidates if _takes(each, queue, requirements)]
    if able:
        if len(able) == 1:
            return "the worker that fits is busy", True
        return f"the {len(able)} workers that fit are busy", True
    reasons = [
        f"{each.worker_id}: {_refusal(each, queue, requirements)}" for each in candidates[:_SHOWN]
    ]
    more = len(candidates) - _SHOWN
    if more > 0:
        reasons.append(f"{more} more")
    return f"no live worker fits ({'; '.join(reasons)})", False


def _takes(worker: WorkerInfo, queue: str, requirements: Requirements) -> bool:
    return queue in worker.queues and misfit(requirements, worker.hardware) is None


def _refusal(worker: WorkerInfo, queue: str, requirements: Requirements) -> str:
    reason = misfit(requirements, worker.hardware)
    return reason or f"takes {', '.join(worker.queues)}, not {queue}"
