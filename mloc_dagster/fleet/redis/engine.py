"""The fleet's engine on Redis: tickets and runs as records, and the notification of a run."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import redis

from mloc_dagster.fleet.claims import Leases, TicketState
from mloc_dagster.fleet.engine import StepTicket, TicketStatus, WorkerInfo
from mloc_dagster.fleet.hardware import Requirements
from mloc_dagster.fleet.placement import Standing, preferred_worker, queue_wake, ticket_status
from mloc_dagster.fleet.redis.calls import RedisCalls
from mloc_dagster.fleet.redis.claims import RedisClaims
from mloc_dagster.fleet.redis.records import (
    INBOX_CHANNEL,
    RedisRegistry,
    clock_key,
    details_key,
    fair_key,
    inbox_key,
    lease_key,
    members_key,
    push_wake,
    queue_key,
    raising_fleet_errors,
    running_key,
    script,
    ticket_key,
)

_log = logging.getLogger(__name__)

_WORKERS_FRESH_S = 0.5
# Longer than a run: its shards would find nobody to belong to.
_DETAILS_TTL_S = 30 * 86_400
_STATUS_FIELDS = ("state", "worker_id", "losses", "queue", "requirements")
_RECONNECT_S = 0.5
_WRITABLE_KEY = "mloc:ready"


@raising_fleet_errors
class RedisFleetEngine(RedisRegistry, RedisCalls):
    """`FleetEngine` over one Redis; see `lua/` for what changes at one moment.

    Args:
        client: The Redis of the records, as `records.connect` opens it.
    """

    def __init__(self, client: redis.Redis) -> None:
        RedisRegistry.__init__(self, client)
        RedisCalls.__init__(self, client)
        self._notifications = _Notifications(client)
        self._submit = script(client, "submit")
        self._cancel = script(client, "cancel")
        self._forget = script(client, "forget")
        self._seen: tuple[float, Sequence[WorkerInfo]] = (0.0, ())

    def claims(self, leases: Leases) -> RedisClaims:
        """Opens the claims of one worker process."""
        return RedisClaims(self.client, leases, self.workers)

    # Tickets

    def submit(self, *tickets: StepTicket) -> None:
        """Makes sure that tickets are queued or running, in two round trips."""
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
        return {
            each: ticket_status(each, _standing(fields, leased), self._recent_workers)
            for each, fields, leased in pairs
        }

    def wake(self, queue: str) -> None:
        """Has an idle worker of a queue look for tickets, or the next one that will be idle."""
        push_wake(self.client, queue_wake(queue))

    def cancel(self, ticket_id: str) -> None:
        """Takes a queued ticket out; asks the worker of a running one to stop."""
        self._cancel(keys=[ticket_key(ticket_id)], args=[])

    def forget(self, ticket_id: str) -> None:
        """Drops a ticket's record, so that it may be submitted anew."""
        self._forget(keys=[ticket_key(ticket_id), lease_key(ticket_id)], args=[ticket_id])

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

    def waiting(self, queue: str) -> bool:
        """Returns whether any ticket waits in a queue."""
        return bool(self.client.exists(queue_key(queue)))

    def lapsed(self, queue: str) -> Sequence[TicketStatus]:
        """Returns the running tickets of a queue whose worker's lease lapsed."""
        running = cast("set[str]", self.client.smembers(running_key(queue)))
        lost = [each for each in self.status(running).values() if each.state is TicketState.LOST]
        for each in lost:
            if each.worker_id is None:  # its record is gone
                self.client.srem(running_key(queue), each.ticket_id)
        return [each for each in lost if each.worker_id is not None]

    # Runs

    def describe_run(self, run_id: str, details: str) -> None:
        """Keeps what workers need to know of a run for as long as its tickets may live."""
        self.client.set(details_key(run_id), details, ex=_DETAILS_TTL_S)

    def run_details(self, run_id: str) -> str | None:
        """Returns what `describe_run` kept; None for a run that has ended."""
        return cast("str | None", self.client.get(details_key(run_id)))

    def messages(self, run_id: str) -> Sequence[str]:
        """Returns what workers have said to a run, oldest first."""
        self._notifications.add(run_id)
        return cast("list[str]", self.client.lrange(inbox_key(run_id), 0, -1))

    def remove_messages(self, run_id: str, messages: Sequence[str]) -> None:
        """Takes messages out of a run's mailbox that are durable elsewhere.

        One by one and not so many from the front: a call that Redis answered just before it died
        is sent again, and must not take along what has come since.
        """
        calls = self.client.pipeline(transaction=False)
        for each in messages:
            calls.lrem(inbox_key(run_id), 1, each)
        calls.execute()

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when a ticket of the run has event, or after `timeout_s`."""
        self._notifications.wait(run_id, timeout_s)

    def notify(self, run_id: str) -> None:
        """Ends the `wait` of the run in this process, or its next one."""
        self._notifications.notify(run_id)

    def cancel_run(self, run_id: str) -> None:
        """Cancels every ticket of a run, its own included."""
        for each in self._members(run_id):
            self.cancel(each)

    def forget_run(self, run_id: str) -> None:
        """Drops every trace of a run that has ended, its own ticket included."""
        calls = self.client.pipeline(transaction=False)
        for each in self._members(run_id):
            self._forget(keys=[ticket_key(each), lease_key(each)], args=[each], client=calls)
        calls.delete(members_key(run_id), inbox_key(run_id), details_key(run_id))
        calls.execute()
        self._notifications.remove(run_id)

    def _members(self, run_id: str) -> set[str]:
        return cast("set[str]", self.client.smembers(members_key(run_id)))

    def check_writable(self) -> None:
        """Returns if Redis takes what is written: it may be full, or a replica."""
        self.client.set(_WRITABLE_KEY, "", px=1_000)

    def close(self) -> None:
        """Ends what runs in the background, and the connections."""
        self._notifications.close()
        self.close_calls()
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


def _standing(fields: Sequence[str | None], leased: int) -> Standing | None:
    state, worker_id, losses, queue, requirements = fields
    if state is None:
        return None
    needs = requirements if state == TicketState.QUEUED and requirements else "{}"
    return Standing(
        state=TicketState(state),
        leased=bool(leased),
        queue=queue or "",
        requirements=Requirements.model_validate_json(needs),
        worker_id=worker_id,
        losses=int(losses or 0),
    )


class _Notifications:
    """Tells the runs of this process that there may be something in their mailboxes.

    One subscription serves all of them. It may miss a notification: the caller looks again after
    its timeout, whether one came or not.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._events: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._lock = threading.Lock()
        self._listener: threading.Thread | None = None
        self._closed = threading.Event()

    def add(self, run_id: str) -> None:
        """Takes note of a run whose mailbox is read in this process; others need nothing."""
        self._events[run_id]

    def remove(self, run_id: str) -> None:
        """Forgets a run that has ended."""
        self._events.pop(run_id, None)

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when the run is notified, or after `timeout_s`."""
        self._start()
        event = self._events[run_id]
        event.wait(timeout_s)
        event.clear()

    def notify(self, run_id: str) -> None:
        """Ends the `wait` of a run."""
        self._events[run_id].set()

    def close(self) -> None:
        """Ends the subscription."""
        self._closed.set()
        with self._lock:
            if self._listener is not None:
                self._client.publish(INBOX_CHANNEL, "")
                self._listener.join()

    def _start(self) -> None:
        with self._lock:
            if self._listener is None:
                self._listener = threading.Thread(
                    target=self._listen, name="mloc-inbox", daemon=True
                )
                self._listener.start()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
                    subscription.subscribe(INBOX_CHANNEL)
                    while not self._closed.is_set():
                        message = subscription.get_message(timeout=5)
                        event = self._events.get(str(message["data"])) if message else None
                        if event is not None:
                            event.set()
            except redis.RedisError as error:
                _log.info("notifications of runs are interrupted: %s", error)
                self._closed.wait(_RECONNECT_S)
