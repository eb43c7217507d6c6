"""A worker's side of tickets on Redis: taking them, waiting for them, keeping their leases."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from math import inf
from typing import cast

import redis

from mloc_dagster.fleet.claims import Claim, Leases, StopReason, TicketClaims, TicketState
from mloc_dagster.fleet.engine import WorkerInfo
from mloc_dagster.fleet.hardware import Hardware, Requirements
from mloc_dagster.fleet.placement import (
    Leftover,
    Waiting,
    choose,
    may_pass_on,
    waits_on,
    worker_wake,
)
from mloc_dagster.fleet.redis.records import (
    blocking_client,
    clock_key,
    inbox_key,
    lease_key,
    pop,
    push_wake,
    queue_key,
    raising_fleet_errors,
    running_key,
    score_priority,
    script,
    ticket_key,
)

_log = logging.getLogger(__name__)

_PAGE = 32
_PAUSE_S = 1.0
_WAITING_FIELDS = ("requirements", "model_key", "prefer", "priority", "submitted_at")


@raising_fleet_errors
class RedisClaims(TicketClaims):
    """`TicketClaims` on Redis.

    Args:
        client: The fleet's Redis.
        leases: How claims are kept.
        workers: Returns the live workers.
    """

    def __init__(
        self, client: redis.Redis, leases: Leases, workers: Callable[[], Sequence[WorkerInfo]]
    ) -> None:
        self._client = client
        self._workers = workers
        self._ttl_ms = int(leases.ttl_s * 1000)
        self._claim = script(client, "claim")
        self._extend = script(client, "renew")
        self._publish = script(client, "publish")
        self._taken_from: dict[str, float] = {}
        self._blocking = blocking_client(client)
        self._look_at = inf
        self._woken_by = ""
        self._away = False
        super().__init__(leases)

    def take(
        self, queues: Sequence[str], worker_id: str, hardware: Hardware, warm: Collection[str]
    ) -> Claim | None:
        """Takes the best ticket that waits, if any; see `placement.choose`."""
        left = Leftover()
        for queue in self._in_turn(queues):
            for page in self._pages(queue):
                now = time.time()
                for each in choose(page, worker_id, hardware, warm, now):
                    fence = self._claim(
                        keys=[
                            ticket_key(each.ticket_id),
                            lease_key(each.ticket_id),
                            queue_key(queue),
                            clock_key(queue),
                            running_key(queue),
                        ],
                        args=[each.ticket_id, worker_id, self._ttl_ms],
                    )
                    if fence is not None:
                        self._taken_from[queue] = time.monotonic()
                        return self._hold(self._read_claim(each, int(fence)))
                left.add(page, worker_id, hardware, now)
        self._look_at = time.monotonic() + left.kept_s
        if left.unfit:
            # Their wakes may have come here, or come yet.
            for other in left.takers(self._workers()):
                push_wake(self._client, worker_wake(other))
        return None

    def wait(self, queues: Sequence[str], worker_id: str, timeout_s: float) -> bool:
        """Blocks until `take` may find something; false when nothing came within `timeout_s`.

        The lists on which it waits hold what wakes it, so that nothing is lost between `take` and
        `wait`. After a lost connection it returns at once, because what woke it may have been lost
        with that.
        """
        keys = waits_on(worker_id, queues)
        end = time.monotonic() + timeout_s
        while (left_s := min(end, self._look_at) - time.monotonic()) > 0:
            try:
                popped = pop(self._blocking, keys, left_s)
            except redis.RedisError as error:
                if not self._away:
                    _log.info("the wait for tickets was cut off: %s", error)
                elif self._closed.wait(_PAUSE_S):
                    return False
                self._away = True
                return True
            self._away = False
            if popped is not None:
                self._woken_by, _ = popped
                return True
        return self._look_at < end

    def end_wait(self, worker_id: str) -> None:
        """Ends a wait of this process from another thread."""
        try:
            push_wake(self._blocking, worker_wake(worker_id))
        except redis.RedisError as error:
            # Without Redis no pop blocks for long.
            _log.info("the wait for tickets is not ended: %s", error)

    def close(self) -> None:
        """Ends the thread that keeps leases alive, and the connection that waits."""
        super().close()
        self._blocking.close()

    def pass_on(self) -> None:
        """Gives what woke this worker last to another one, if it was meant for any."""
        if may_pass_on(self._woken_by):
            try:
                push_wake(self._blocking, self._woken_by)
            except redis.RedisError as error:
                _log.info("no other worker is woken: %s", error)

    def _in_turn(self, queues: Sequence[str]) -> Sequence[str]:
        """Returns where tickets wait: the highest priority first, else each queue in its turn."""
        if len(queues) == 1:
            return queues
        calls = self._client.pipeline(transaction=False)
        for queue in queues:
            calls.zrange(queue_key(queue), 0, 0, withscores=True)
        heads = {
            queue: head[0][1] for queue, head in zip(queues, calls.execute(), strict=True) if head
        }

        def turn(queue: str) -> tuple[int, float]:
            return -score_priority(heads[queue]), self._taken_from.get(queue, 0.0)

        return sorted(heads, key=turn)

    def _read_claim(self, waiting: Waiting, fence: int) -> Claim:
        fields = self._client.hmget(ticket_key(waiting.ticket_id), ["run_id", "payload"])
        run_id, payload = cast("list[str]", fields)
        return Claim(waiting.ticket_id, run_id, waiting.queue, payload, fence, self._say)

    def _say(self, claim: Claim, message: str, state: TicketState) -> bool:
        heard = self._publish(
            keys=[
                ticket_key(claim.ticket_id),
                lease_key(claim.ticket_id),
                inbox_key(claim.run_id),
                running_key(claim.queue),
            ],
            args=[
                *(claim.ticket_id, claim.fence, claim.run_id, message, state.value),
                # Known again should the client have to send it twice.
                secrets.token_hex(8),
            ],
        )
        return bool(heard)

    def _pages(self, queue: str) -> Iterator[list[Waiting]]:
        # To the end, because what nobody can take must not hide what somebody can.
        for start in count(0, _PAGE):
            places = self._client.zrange(queue_key(queue), start, start + _PAGE - 1)
            ids = [place.split(":", 1)[1] for place in cast("list[str]", places)]
            if ids:
                yield self._read(queue, ids)
            if len(ids) < _PAGE:
                return

    def _read(self, queue: str, ids: Sequence[str]) -> list[Waiting]:
        calls = self._client.pipeline(transaction=False)
        for each in ids:
            calls.hmget(ticket_key(each), _WAITING_FIELDS)
        found = zip(ids, calls.execute(), strict=True)
        return [_waiting(each, queue, fields) for each, fields in found if fields[0] is not None]

    def _renew(self, claims: Sequence[Claim]) -> Sequence[StopReason | None]:
        calls = self._client.pipeline(transaction=False)
        for claim in claims:
            keys = [ticket_key(claim.ticket_id), lease_key(claim.ticket_id)]
            self._extend(keys=keys, args=[claim.fence, self._ttl_ms], client=calls)
        return [None if answer == "held" else StopReason(answer) for answer in calls.execute()]


def _waiting(ticket_id: str, queue: str, fields: list[str]) -> Waiting:
    requirements, model_key, prefer, priority, submitted_at = fields
    return Waiting(
        ticket_id=ticket_id,
        queue=queue,
        requirements=Requirements.model_validate_json(requirements),
        model_key=model_key,
        prefer=prefer,
        priority=int(priority),
        submitted_at=float(submitted_at),
    )
