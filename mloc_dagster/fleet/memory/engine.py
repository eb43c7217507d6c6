"""A fleet inside one process: the same rules as on Redis, with a clock that its owner may turn.

It carries whole runs: run workers and step workers are threads. For tests of what talks to a fleet
or works for one; nothing of it outlives the process.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from mloc_dagster.fleet.calls import CALLER_TTL_S, Call, Piece
from mloc_dagster.fleet.claims import Claim, Leases, StopReason, TicketClaims, TicketState
from mloc_dagster.fleet.engine import StepTicket, TicketStatus, WorkerInfo, WorkerStatus
from mloc_dagster.fleet.hardware import Hardware
from mloc_dagster.fleet.placement import (
    Leftover,
    Standing,
    Waiting,
    choose,
    may_pass_on,
    preferred_worker,
    queue_wake,
    ticket_status,
    waits_on,
    wakes_for,
    worker_wake,
)
from mloc_dagster.settings import settings


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
        """Sorts a queue as `redis/lua/submit.lua` does."""
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
class _Run:
    """What a run keeps here."""

    details: str | None = None
    messages: list[str] = field(default_factory=list)
    notified: bool = False


class MemoryFleetEngine:
    """`FleetEngine` in dicts, under one lock.

    Args:
        clock: The time in seconds since the epoch.
        heartbeat_ttl_s: Seconds a worker may be silent; by default `MLOC_HEARTBEAT_TTL_S`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, heartbeat_ttl_s: float | None = None
    ) -> None:
        self.clock = clock
        self._heartbeat_ttl_s = heartbeat_ttl_s
        self._changed = threading.Condition()
        self._numbers = count()
        self._records: dict[str, _Record] = {}
        self._now_serving: Counter[str] = Counter()
        self._next_tags: Counter[tuple[str, str]] = Counter()
        self._wakes: set[str] = set()
        self._look_at: dict[str, float] = {}
        self._runs: defaultdict[str, _Run] = defaultdict(_Run)
        self._last_seen: dict[str, WorkerInfo] = {}
        self._alive_until: dict[str, float] = {}
        self._calls: defaultdict[str, deque[Call | None]] = defaultdict(deque)
        self._callers: dict[str, float] = {}
        self._pieces: defaultdict[str, list[Piece]] = defaultdict(list)

    def claims(self, leases: Leases) -> MemoryClaims:
        """Opens the claims of one worker, which is a thread here."""
        return MemoryClaims(self, leases)

    # Tickets

    def submit(self, *tickets: StepTicket) -> None:
        """Makes sure that tickets are queued or running; a lost one is queued again."""
        with self._changed:
            promised: set[str] = set()
            for ticket in tickets:
                prefer = preferred_worker(ticket, self.workers(), promised) or ""
                promised.add(prefer)
                self._submit(ticket, prefer)

    def _submit(self, ticket: StepTicket, prefer: str) -> None:
        known = self._records.get(ticket.ticket_id)
        if known is None:
            turn = (ticket.queue, ticket.run_id)
            tag = max(self._now_serving[ticket.queue], self._next_tags[turn])
            self._next_tags[turn] = tag + 1
            known = _Record(ticket, tag, next(self._numbers), prefer, self.clock())
            self._records[ticket.ticket_id] = known
        elif known.state is TicketState.RUNNING and not self._is_leased(known):
            known.state = TicketState.QUEUED
            known.losses += 1
        else:
            return
        for each in wakes_for(ticket.queue, known.prefer):
            self._wake(each)

    def status(self, ticket_ids: Iterable[str]) -> Mapping[str, TicketStatus]:
        """Returns where tickets stand, all at one moment."""
        with self._changed:
            return {each: self._status(each) for each in ticket_ids}

    def _status(self, ticket_id: str) -> TicketStatus:
        record = self._records.get(ticket_id)
        known = None
        if record is not None:
            known = Standing(
                state=record.state,
                leased=self._is_leased(record),
                queue=record.ticket.queue,
                requirements=record.ticket.requirements,
                worker_id=record.worker_id,
                losses=record.losses,
            )
        return ticket_status(ticket_id, known, self.workers)

    def cancel(self, ticket_id: str) -> None:
        """Takes a queued ticket out; asks the worker of a running one to stop."""
        with self._changed:
            record = self._records.get(ticket_id)
            if record is not None and record.state is TicketState.QUEUED:
                record.state = TicketState.CANCELLED
            elif record is not None:
                record.cancelled = True

    def forget(self, ticket_id: str) -> None:
        """Drops a ticket's record, so that it may be submitted anew."""
        with self._changed:
            self._records.pop(ticket_id, None)

    def wake(self, queue: str) -> None:
        """Has an idle worker of a queue look for tickets, or the next one that will be idle."""
        with self._changed:
            self._wake(queue_wake(queue))

    def waiting(self, queue: str) -> bool:
        """Returns whether any ticket waits in a queue."""
        with self._changed:
            return any(each.ticket.queue == queue for each in self._queued())

    def lapsed(self, queue: str) -> Sequence[TicketStatus]:
        """Returns the running tickets of a queue whose worker's lease lapsed."""
        with self._changed:
            in_queue = [id_ for id_, each in self._records.items() if each.ticket.queue == queue]
            return [
                status
                for each in in_queue
                if (status := self._status(each)).state is TicketState.LOST
            ]

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by the queues of the live workers and of the tickets."""
        with self._changed:
            depths = Counter({queue: 0 for each in self.workers() for queue in each.queues})
            depths.update(each.ticket.queue for each in self._queued())
            return depths

    def _queued(self) -> list[_Record]:
        queued = (each for each in self._records.values() if each.state is TicketState.QUEUED)
        return sorted(queued, key=lambda record: record.order)

    def _is_leased(self, record: _Record) -> bool:
        return self.clock() < record.lease_until

    def _wake(self, wake_list: str) -> None:
        self._wakes.add(wake_list)
        self._changed.notify_all()

    # Runs

    def describe_run(self, run_id: str, details: str) -> None:
        """Keeps what workers need to know of a run."""
        with self._changed:
            self._runs[run_id].details = details

    def run_details(self, run_id: str) -> str | None:
        """Returns what `describe_run` kept; None for a run that has ended."""
        with self._changed:
            return self._runs[run_id].details

    def messages(self, run_id: str) -> Sequence[str]:
        """Returns what workers have said to a run, oldest first."""
        with self._changed:
            return list(self._runs[run_id].messages)

    def remove_messages(self, run_id: str, messages: Sequence[str]) -> None:
        """Takes messages out of a run's mailbox that are durable elsewhere."""
        with self._changed:
            kept = self._runs[run_id].messages
            for each in messages:
                if each in kept:
                    kept.remove(each)

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when a worker has written to the run, or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._runs[run_id].notified, timeout_s)
            self._runs[run_id].notified = False

    def notify(self, run_id: str) -> None:
        """Ends the `wait` of the run, or its next one."""
        with self._changed:
            self._notify(run_id)

    def _notify(self, run_id: str) -> None:
        self._runs[run_id].notified = True
        self._changed.notify_all()

    def cancel_run(self, run_id: str) -> None:
        """Cancels every ticket of a run, its own included."""
        for each in self._tickets_of(run_id):
            self.cancel(each)

    def forget_run(self, run_id: str) -> None:
        """Drops every trace of a run that has ended, its own ticket included."""
        with self._changed:
            for each in self._tickets_of(run_id):
                del self._records[each]
            self._runs.pop(run_id, None)

    def _tickets_of(self, run_id: str) -> list[str]:
        with self._changed:
            return [id_ for id_, each in self._records.items() if each.ticket.run_id == run_id]

    # Workers

    def register(self, info: WorkerInfo) -> WorkerStatus | None:
        """Writes how a worker is now; returns how it was, None if it was not registered."""
        with self._changed:
            own = self._heartbeat_ttl_s
            ttl_s = settings().heartbeat_ttl_s if own is None else own
            was_registered = info.worker_id in self._alive_until
            before = self._last_seen.get(info.worker_id)
            self._last_seen[info.worker_id] = info
            self._alive_until[info.worker_id] = self.clock() + ttl_s
            return before.status if before is not None and was_registered else None

    def unregister(self, worker_id: str) -> WorkerInfo | None:
        """Takes a worker out that ends as it should; returns how it was."""
        with self._changed:
            known = self._last_seen.pop(worker_id, None)
            return known if self._alive_until.pop(worker_id, None) is not None else None

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the workers whose heartbeat has not lapsed, by id."""
        with self._changed:
            alive = sorted(id_ for id_, end in self._alive_until.items() if self.clock() < end)
            return [self._last_seen[each] for each in alive]

    def worker(self, worker_id: str) -> WorkerInfo | None:
        """Returns a worker as it was last heard of, alive or lost."""
        with self._changed:
            return self._last_seen.get(worker_id)

    def silent_workers(self) -> Sequence[str]:
        """Returns the ids of registered workers whose heartbeat has lapsed."""
        with self._changed:
            return sorted(id_ for id_, end in self._alive_until.items() if self.clock() >= end)

    def strike_off(self, worker_id: str) -> bool:
        """Takes a worker out whose heartbeat has lapsed; true for the one caller who did."""
        with self._changed:
            if worker_id not in self.silent_workers():
                return False
            del self._alive_until[worker_id]
            return True

    # Calls

    def send_call(self, worker_id: str, call: Call) -> None:
        """Hands a call to a worker."""
        with self._changed:
            self._callers[call.call_id] = self.clock() + CALLER_TTL_S
            self._calls[worker_id].append(call)
            self._changed.notify_all()

    def next_call(self, worker_id: str, timeout_s: float) -> Call | None:
        """Takes the oldest call for a worker that somebody still waits for."""
        waiting = self._calls[worker_id]

        with self._changed:
            self._changed.wait_for(lambda: any(map(self._is_wanted, waiting)), timeout_s)
            while waiting:
                call = waiting.popleft()
                if self._is_wanted(call):
                    return call
            return None

    def end_wait_for_calls(self, worker_id: str) -> None:
        """Ends a wait of this worker from another thread."""
        with self._changed:
            self._calls[worker_id].append(None)
            self._changed.notify_all()

    def give_pieces(self, pieces: Mapping[str, Sequence[Piece]]) -> Collection[str]:
        """Sends pieces of answers; returns the calls that nobody waits for any longer."""
        with self._changed:
            gone = [each for each in pieces if not self._waits(each)]
            for call_id in pieces.keys() - set(gone):
                self._pieces[call_id] += pieces[call_id]
            self._changed.notify_all()
            return gone

    def take_pieces(self, call_id: str, timeout_s: float) -> Sequence[Piece]:
        """Takes what has come for a caller; waits for something."""
        with self._changed:
            self._callers[call_id] = self.clock() + CALLER_TTL_S
            self._changed.wait_for(lambda: self._pieces[call_id], timeout_s)
            return tuple(self._pieces.pop(call_id))

    def hang_up(self, call_id: str) -> None:
        """Ends a call: its worker stops at its next piece."""
        with self._changed:
            self._callers.pop(call_id, None)
            self._pieces.pop(call_id, None)

    def _is_wanted(self, call: Call | None) -> bool:
        return call is None or self._waits(call.call_id)

    def _waits(self, call_id: str) -> bool:
        return self.clock() < self._callers.get(call_id, -inf)

    def check_writable(self) -> None:
        """Returns: memory takes what is written."""

    def close(self) -> None:
        """Has nothing to end."""

    # What the claims of a worker ask

    def claim_best(
        self,
        queues: Sequence[str],
        worker_id: str,
        hardware: Hardware,
        warm: Collection[str],
        ttl_s: float,
    ) -> Claim | None:
        """Gives a worker the best ticket of its queues, under a lease; see `placement.choose`."""
        with self._changed:
            waiting = [each.waiting() for each in self._queued() if each.ticket.queue in queues]
            for each in choose(waiting, worker_id, hardware, warm, self.clock()):
                record = self._records[each.ticket_id]
                record.state, record.worker_id = TicketState.RUNNING, worker_id
                record.fence = next(self._numbers)
                record.lease_until = self.clock() + ttl_s
                asked = record.ticket
                self._now_serving[asked.queue] = max(self._now_serving[asked.queue], record.tag)
                if self.waiting(asked.queue):
                    self._wake(queue_wake(asked.queue))
                return Claim(
                    asked.ticket_id,
                    asked.run_id,
                    asked.queue,
                    asked.payload,
                    record.fence,
                    self._hear,
                )
            left = Leftover()
            left.add(waiting, worker_id, hardware, self.clock())
            self._look_at[worker_id] = self.clock() + left.kept_s
            for other in left.takers(self.workers()):
                self._wake(worker_wake(other))
            return None

    def wait_for_wake(
        self, queues: Sequence[str], worker_id: str, timeout_s: float
    ) -> tuple[bool, str]:
        """Blocks until `claim_best` may find something.

        Returns:
            Whether it may, and the wake list that ended the wait; empty when time did.
        """
        lists = waits_on(worker_id, queues)

        def woken() -> str | None:
            return next((each for each in lists if each in self._wakes), None)

        with self._changed:
            look_at = self._look_at.get(worker_id, inf)
            end = self.clock() + timeout_s
            left_s = min(look_at, end) - self.clock()
            wake_list = self._changed.wait_for(woken, left_s) if left_s > 0 else None
            if wake_list is None:
                return look_at < end, ""
            self._wakes.remove(wake_list)
            return True, wake_list

    def put_wake(self, wake_list: str) -> None:
        """Puts an entry on a wake list."""
        with self._changed:
            self._wake(wake_list)

    def renew(self, claim: Claim, ttl_s: float) -> StopReason | None:
        """Keeps a claim's lease alive; returns why it should end, if it should."""
        with self._changed:
            record = self._held_by(claim)
            if record is None:
                return StopReason.LOST
            record.lease_until = self.clock() + ttl_s
            return StopReason.CANCELLED if record.cancelled else None

    def _hear(self, claim: Claim, message: str, state: TicketState) -> bool:
        with self._changed:
            record = self._held_by(claim)
            if record is None:
                return False
            if message:
                self._runs[claim.run_id].messages.append(message)
            record.state = state
            if state is TicketState.QUEUED:
                self._wake(queue_wake(record.ticket.queue))
            self._notify(claim.run_id)
            return True

    def _held_by(self, claim: Claim) -> _Record | None:
        record = self._records.get(claim.ticket_id)
        if record is None or record.state is not TicketState.RUNNING:
            return None
        return record if record.fence == claim.fence else None


class MemoryClaims(TicketClaims):
    """`TicketClaims` on a `MemoryFleetEngine`.

    Args:
        engine: The fleet.
        leases: How claims are kept.
    """

    def __init__(self, engine: MemoryFleetEngine, leases: Leases) -> None:
        self._engine = engine
        self._woken_by = ""
        super().__init__(leases)

    def take(
        self, queues: Sequence[str], worker_id: str, hardware: Hardware, warm: Collection[str]
    ) -> Claim | None:
        """Takes the best ticket that waits, if any."""
        claim = self._engine.claim_best(queues, worker_id, hardware, warm, self._leases.ttl_s)
        return None if claim is None else self._hold(claim)

    def wait(self, queues: Sequence[str], worker_id: str, timeout_s: float) -> bool:
        """Blocks until `take` may find something; false when nothing came within `timeout_s`."""
        found, wake_list = self._engine.wait_for_wake(queues, worker_id, timeout_s)
        self._woken_by = wake_list or self._woken_by
        return found

    def end_wait(self, worker_id: str) -> None:
        """Ends a wait of this worker from another thread."""
        self._engine.put_wake(worker_wake(worker_id))

    def pass_on(self) -> None:
        """Gives what woke this worker last to another one, if it was meant for any."""
        if may_pass_on(self._woken_by):
            self._engine.put_wake(self._woken_by)

    def _renew(self, claims: Sequence[Claim]) -> Sequence[StopReason | None]:
        return [self._engine.renew(each, self._leases.ttl_s) for each in claims]
