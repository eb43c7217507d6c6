"""The fleet's engine on Redis: records, leases that expire, lists that wake workers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import cast

import redis

from mloc_dagster.fleet.engine import StepTicket, TicketState, TicketStatus, WorkerInfo
from mloc_dagster.fleet.hardware import Requirements
from mloc_dagster.fleet.inbox import Inbox
from mloc_dagster.fleet.placement import preferred_worker, why_waiting
from mloc_dagster.fleet.records import (
    clock_key,
    details_key,
    fair_key,
    inbox_key,
    lease_key,
    members_key,
    push_wake,
    queue_key,
    script,
    ticket_key,
    wake_key,
)
from mloc_dagster.fleet.redis_client import connect, redis_url
from mloc_dagster.fleet.registry import WorkerRegistry

_WORKERS_FRESH_S = 0.5
# Longer than a run: its shards would find nobody to belong to.
_DETAILS_TTL_S = 30 * 86_400
_STATUS_FIELDS = ("state", "worker_id", "losses", "queue", "requirements")


class RedisFleetEngine:
    """`FleetEngine` over one Redis; see `lua/` for what changes at one moment.

    Args:
        client: The Redis of the records.
        url: The address of the same Redis.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client = client
        self.url = url
        self.inbox = Inbox(client)
        self._registry = WorkerRegistry(client)
        self._submit = script(client, "submit")
        self._cancel = script(client, "cancel")
        self._forget = script(client, "forget")
        self._seen: tuple[float, Sequence[WorkerInfo]] = (0.0, ())

    def submit(self, ticket: StepTicket) -> None:
        """Makes sure that the ticket is queued or running; a lost one is queued again."""
        self.submit_all([ticket])

    def submit_all(self, tickets: Sequence[StepTicket]) -> None:
        """Submits several at once, in two round trips; each wakes an idle worker that waits."""
        live = self._recent_workers()
        promised: set[str] = set()
        calls = self.client.pipeline(transaction=False)
        # A script that the server does not know yet is loaded by the pipeline itself.
        for ticket in tickets:
            warm = preferred_worker(ticket, live, promised)
            if warm is not None:
                promised.add(warm)
            self._submit(
                keys=[
                    ticket_key(ticket.ticket_id),
                    lease_key(ticket.ticket_id),
                    queue_key(ticket.queue),
                    fair_key(ticket.queue, ticket.run_id),
                    clock_key(ticket.queue),
                    members_key(ticket.run_id),
                ],
                args=[ticket.ticket_id, ticket.priority, *_fields(ticket, warm)],
                client=calls,
            )
        calls.execute()

    def status(self, ticket_ids: Iterable[str]) -> Mapping[str, TicketStatus]:
        """Returns where tickets stand; each is read, with its lease, at one moment."""
        ids = list(ticket_ids)
        calls = self.client.pipeline(transaction=True)
        for each in ids:
            calls.hmget(ticket_key(each), _STATUS_FIELDS)
            calls.exists(lease_key(each))
        answers = calls.execute()
        pairs = zip(ids, answers[::2], answers[1::2], strict=True)
        return {each: self._status(each, fields, leased) for each, fields, leased in pairs}

    def _status(self, ticket_id: str, fields: list[str | None], leased: int) -> TicketStatus:
        state, worker_id, losses, queue, requirements = fields
        if state is None:
            return TicketStatus(
                ticket_id=ticket_id, state=TicketState.LOST, why="its record is gone"
            )
        known = TicketStatus(
            ticket_id=ticket_id,
            state=TicketState(state),
            worker_id=worker_id,
            losses=int(losses or 0),
        )
        if known.state is TicketState.RUNNING and not leased:
            why = f"worker {worker_id} fell silent"
            return known.model_copy(update={"state": TicketState.LOST, "why": why})
        if known.state is TicketState.QUEUED:
            needs = Requirements.model_validate_json(requirements or "{}")
            why, satisfiable = why_waiting(queue or "", needs, self._recent_workers())
            return known.model_copy(update={"why": why, "satisfiable": satisfiable})
        return known

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when a ticket of the run has news, or after `timeout_s`."""
        self.inbox.wait(run_id, timeout_s)

    def wake(self, queue: str) -> None:
        """Has an idle worker of a queue look for tickets, or the next one that will be idle."""
        push_wake(self.client, wake_key(queue))

    def cancel(self, ticket_id: str) -> None:
        """Takes a queued ticket out; asks the worker of a running one to stop."""
        self._cancel(keys=[ticket_key(ticket_id)], args=[])

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the live workers."""
        return self._registry.live()

    def _recent_workers(self) -> Sequence[WorkerInfo]:
        moment, known = self._seen
        if time.monotonic() - moment > _WORKERS_FRESH_S:
            known = self.workers()
            self._seen = (time.monotonic(), known)
        return known

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by the queues of the live workers and of the tickets."""
        queues = {queue for worker in self.workers() for queue in worker.queues}
        queues |= {
            key.removeprefix("queue:")
            for key in self.client.scan_iter("queue:*", count=1000, _type="zset")
        }
        calls = self.client.pipeline(transaction=False)
        for queue in sorted(queues):
            calls.zcard(queue_key(queue))
        return dict(zip(sorted(queues), calls.execute(), strict=True))

    def waiting(self, queues: Iterable[str]) -> bool:
        """Returns whether any ticket waits in one of the queues."""
        return any(self.client.exists(queue_key(queue)) for queue in queues)

    def describe_run(self, run_id: str, details: str) -> None:
        """Keeps what workers need to know of a run for as long as its tickets may live."""
        self.client.set(details_key(run_id), details, ex=_DETAILS_TTL_S)

    def cancel_run(self, run_id: str) -> None:
        """Cancels every ticket of a run's steps."""
        for each in self._members(run_id):
            self.cancel(each)

    def forget_run(self, run_id: str) -> None:
        """Drops every trace of a run that has ended, but for its own ticket."""
        calls = self.client.pipeline(transaction=False)
        for each in self._members(run_id):
            self._forget(keys=[ticket_key(each), lease_key(each)], args=[each], client=calls)
        calls.delete(members_key(run_id), inbox_key(run_id), details_key(run_id))
        calls.execute()
        self.inbox.forget(run_id)

    def _members(self, run_id: str) -> set[str]:
        return cast("set[str]", self.client.smembers(members_key(run_id)))

    def forget(self, ticket_id: str) -> None:
        """Drops a ticket's record, so that it may be submitted anew."""
        self._forget(keys=[ticket_key(ticket_id), lease_key(ticket_id)], args=[ticket_id])

    def close(self) -> None:
        """Ends what runs in the background, and the connection."""
        self.inbox.close()
        self.client.close()


def _fields(ticket: StepTicket, warm: str | None) -> list[str | int | float]:
    fields: dict[str, str | int | float] = {
        "run_id": ticket.run_id,
        "queue": ticket.queue,
        "requirements": ticket.requirements.model_dump_json(),
        "model_key": ticket.model_key or "",
        "payload": ticket.payload,
        "prefer": warm or "",
        "priority": ticket.priority,
        "submitted_at": time.time(),
    }
    return [part for pair in fields.items() for part in pair]


@cache
def _engine(url: str) -> RedisFleetEngine:
    return RedisFleetEngine(connect(url), url)


def open_engine(url: str | None = None) -> RedisFleetEngine:
    """Returns this process's engine on `url`, or on `MLOC_REDIS_URL`.

    Raises:
        InputError: If neither is given.
    """
    return _engine(url or redis_url())
