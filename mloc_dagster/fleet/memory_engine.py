"""A fleet inside one process: the same rules as on Redis, with a clock that its owner may turn.

For tests of whatever talks to a fleet or works for one. Nothing of it outlives the process.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from mloc_dagster.fleet.claim import Claim, StopReason
from mloc_dagster.fleet.engine import StepTicket, TicketState, TicketStatus, WorkerInfo
from mloc_dagster.fleet.hardware import Hardware
from mloc_dagster.fleet.placement import (
    Leftover,
    Waiting,
    choose,
    preferred_worker,
    why_waiting,
)


@dataclass(slots=True)
class _Record:
    ticket: StepTicket
    tag: int
    place: int
    prefer: str
    submitted_at: float
    state: TicketState = TicketState.QUEUED
    worker_id: str | None = None
    losses: int = 0
    fence: int = 0
    lease_until: float = 0
    cancelled: bool = False

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts a queue as `lua/submit.lua` does."""
        return (-self.ticket.priority, self.tag, self.place)

    def waiting(self) -> Waiting:
        """The ticket as a worker sees it."""
        asked = self.ticket
        return Waiting(
            ticket_id=asked.ticket_id,
            queue=asked.queue,
            requirements=asked.requirements,
            model_key=asked.model_key or "",
            prefer=self.prefer,
            priority=asked.priority,
            submitted_at=self.submitted_at,
        )


@dataclass(slots=True)
class MemoryFleetEngine:
    """`FleetEngine` in a dict.

    Args:
        lease_ttl_s: Seconds a worker may be silent before its ticket counts as lost.
        clock: The time in seconds since the epoch.
    """

    lease_ttl_s: float = 10.0
    clock: Callable[[], float] = time.time
    _records: dict[str, _Record] = field(default_factory=dict)
    _inboxes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _workers: dict[str, WorkerInfo] = field(default_factory=dict)
    _now_serving: Counter[str] = field(default_factory=Counter)
    _next_tags: Counter[tuple[str, str]] = field(default_factory=Counter)
    _numbers: count[int] = field(default_factory=count)
    _wakes: set[str] = field(default_factory=set)
    _look_at: dict[str, float] = field(default_factory=dict)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def submit(self, ticket: StepTicket) -> None:
        """Makes sure that the ticket is queued or running; a lost one is queued again."""
        with self._news:
            known = self._records.get(ticket.ticket_id)
            if known is None:
                known = self._records[ticket.ticket_id] = self._new(ticket)
            elif known.state is TicketState.RUNNING and self._lapsed(known):
                known.state = TicketState.QUEUED
                known.losses += 1
            else:
                return
            if known.prefer:
                self._wake(_of_worker(known.prefer))
            self._wake(ticket.queue)

    def _new(self, ticket: StepTicket) -> _Record:
        turn = (ticket.queue, ticket.run_id)
        tag = max(self._now_serving[ticket.queue], self._next_tags[turn])
        self._next_tags[turn] = tag + 1
        prefer = preferred_worker(ticket, self.workers(), promised=()) or ""
        return _Record(ticket, tag, next(self._numbers), prefer, self.clock())

    def _lapsed(self, record: _Record) -> bool:
        return self.clock() >= record.lease_until

    def status(self, ticket_ids: Iterable[str]) -> Mapping[str, TicketStatus]:
        """Returns where tickets stand, all at one moment."""
        with self._news:
            return {each: self._status(each) for each in ticket_ids}

    def _status(self, ticket_id: str) -> TicketStatus:
        record = self._records.get(ticket_id)
        if record is None:
            why = "its record is gone"
            return TicketStatus(ticket_id=ticket_id, state=TicketState.LOST, why=why)
        known = TicketStatus(
            ticket_id=ticket_id,
            state=record.state,
            worker_id=record.worker_id,
            losses=record.losses,
        )
        if record.state is TicketState.RUNNING and self._lapsed(record):
            why = f"worker {record.worker_id} fell silent"
            return known.model_copy(update={"state": TicketState.LOST, "why": why})
        if record.state is TicketState.QUEUED:
            asked = record.ticket
            why, satisfiable = why_waiting(asked.queue, asked.requirements, self.workers())
            return known.model_copy(update={"why": why, "satisfiable": satisfiable})
        return known

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when a ticket of any run has news, or after `timeout_s`."""
        with self._news:
            self._news.wait(timeout_s)

    def wake(self, queue: str) -> None:
        """Has an idle worker of a queue look for tickets, or the next one that will be idle."""
        with self._news:
            self._wake(queue)

    def _wake(self, place: str) -> None:
        self._wakes.add(place)
        self._news.notify_all()

    def wait_for_wake(self, queues: Sequence[str], worker_id: str, timeout_s: float) -> bool:
        """Blocks until `claim_best` may find something; false when nothing came in time."""
        places = (_of_worker(worker_id), *queues)

        def woken() -> str | None:
            return next((each for each in places if each in self._wakes), None)

        with self._news:
            look_at = self._look_at.get(worker_id, inf)
            end = self.clock() + timeout_s
            left_s = min(look_at, end) - self.clock()
            place = self._news.wait_for(woken, left_s) if left_s > 0 else None
            if place is not None:
                self._wakes.remove(place)
            return place is not None or look_at < end

    def cancel(self, ticket_id: str) -> None:
        """Takes a queued ticket out; asks the worker of a running one to stop."""
        with self._news:
            record = self._records.get(ticket_id)
            if record is not None and record.state is TicketState.QUEUED:
                record.state = TicketState.CANCELLED
            elif record is not None:
                record.cancelled = True

    def forget(self, ticket_id: str) -> None:
        """Drops a ticket's record, so that it may be submitted anew."""
        with self._news:
            self._records.pop(ticket_id, None)

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the workers that `register` brought and `unregister` did not take away."""
        return tuple(self._workers.values())

    def register(self, info: WorkerInfo) -> None:
        """Adds a worker, or says how it is now."""
        self._workers[info.worker_id] = info

    def unregister(self, worker_id: str) -> None:
        """Takes a worker out; what it claimed lapses."""
        self._workers.pop(worker_id, None)

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by the queues of the live workers and of the tickets."""
        with self._news:
            depths = Counter({queue: 0 for each in self.workers() for queue in each.queues})
            depths.update(each.ticket.queue for each in self._queued())
            return depths

    def _queued(self) -> list[_Record]:
        queued = (each for each in self._records.values() if each.state is TicketState.QUEUED)
        return sorted(queued, key=lambda record: record.order)

    def messages(self, run_id: str) -> Sequence[str]:
        """Returns what workers have said to a run, oldest first."""
        with self._news:
            return tuple(self._inboxes[run_id])

    def claim_best(
        self, queues: Sequence[str], worker_id: str, hardware: Hardware, warm: Collection[str]
    ) -> Claim | None:
        """Gives a worker the best ticket of its queues; see `placement.choose`."""
        with self._news:
            waiting = [each.waiting() for each in self._queued() if each.ticket.queue in queues]
            for each in choose(waiting, worker_id, hardware, warm, self.clock()):
                record = self._records[each.ticket_id]
                record.state, record.worker_id = TicketState.RUNNING, worker_id
                record.fence = next(self._numbers)
                record.lease_until = self.clock() + self.lease_ttl_s
                asked = record.ticket
                self._now_serving[asked.queue] = max(self._now_serving[asked.queue], record.tag)
                if any(other.queue == asked.queue for other in waiting if other is not each):
                    self._wake(asked.queue)
                return Claim(each, asked.run_id, asked.payload, record.fence, self._hear)
            left = Leftover()
            left.add(waiting, worker_id, hardware, self.clock())
            self._look_at[worker_id] = self.clock() + left.kept_s
            for other in left.takers(self.workers()):
                self._wake(_of_worker(other))
            return None

    def _hear(self, claim: Claim, message: str, state: TicketState) -> bool:
        with self._news:
            record = self._held_by(claim)
            if record is None:
                return False
            if message:
                self._inboxes[claim.run_id].append(message)
            record.state = state
            if state is TicketState.QUEUED:
                self._wake(record.ticket.queue)
            self._news.notify_all()
            return True

    def renew(self, claim: Claim) -> StopReason | None:
        """Keeps a claim's lease alive; returns why it should end, if it should."""
        with self._news:
            record = self._held_by(claim)
            if record is None:
                return StopReason.LOST
            record.lease_until = self.clock() + self.lease_ttl_s
            return StopReason.CANCELLED if record.cancelled else None

    def _held_by(self, claim: Claim) -> _Record | None:
        record = self._records.get(claim.ticket_id)
        if record is None or record.state is not TicketState.RUNNING:
            return None
        return record if record.fence == claim.fence else None


def _of_worker(worker_id: str) -> str:
    """Returns where a worker waits for what is meant for it; no queue is called so."""
    return f"worker:{worker_id}"


class MemoryClaims:
    """`TicketClaims` on a `MemoryFleetEngine`; nothing renews a lease but a call of `renew`."""

    def __init__(self, engine: MemoryFleetEngine) -> None:
        self._engine = engine
        self._held: dict[str, Claim] = {}

    def take(
        self, queues: Sequence[str], worker_id: str, hardware: Hardware, warm: Collection[str]
    ) -> Claim | None:
        """Takes the best ticket that waits, if any."""
        claim = self._engine.claim_best(queues, worker_id, hardware, warm)
        if claim is not None:
            self._held[claim.ticket_id] = claim
        return claim

    def wait(self, queues: Sequence[str], worker_id: str, timeout_s: float) -> bool:
        """Blocks until `take` may find something; false when nothing came within `timeout_s`."""
        return self._engine.wait_for_wake(queues, worker_id, timeout_s)

    def held(self) -> Sequence[Claim]:
        """Returns what this worker has taken and not dropped."""
        return tuple(self._held.values())

    def renew(self) -> None:
        """Keeps the leases alive; asks claims to stop that are lost or cancelled."""
        for claim in self.held():
            reason = self._engine.renew(claim)
            if reason is not None:
                claim.ask_to_stop(reason)

    def drop(self, claim: Claim) -> None:
        """Forgets a claim that has ended."""
        self._held.pop(claim.ticket_id, None)
