"""The fleet's keys and scripts in Redis, its connection, and the registry of workers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import resources
from types import FunctionType
from typing import cast

import redis
from pydantic import ValidationError
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.commands.core import Script
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry
from redis.typing import EncodableT, FieldT

from mloc_dagster.errors import FleetUnavailableError
from mloc_dagster.fleet.engine import WorkerInfo, WorkerStatus
from mloc_dagster.settings import settings

# Together with the backoff below about three minutes: a restarted Redis reads its file in seconds,
# and a caller that still gets an error can only give up.
_RETRIES = 200

INBOX_CHANNEL = "inbox"
"""Says to which run a worker has written; the message itself lies in the inbox."""

WORKER_IDS = "workers:ids"
"""The ids of the registered workers."""

_WAKE_TTL_S = 60


def ticket_key(ticket_id: str) -> str:
    """The hash of a ticket."""
    return f"ticket:{ticket_id}"


def lease_key(ticket_id: str) -> str:
    """The lease on a running ticket; it expires when its worker falls silent."""
    return f"lease:{ticket_id}"


def queue_key(queue: str) -> str:
    """The waiting tickets of a queue, in the order they are taken."""
    return f"queue:{queue}"


def score_priority(score: float) -> int:
    """Returns the priority in a waiting ticket's score; see `lua/submit.lua`."""
    return math.ceil(-score / 1e10)


def clock_key(queue: str) -> str:
    """The virtual time of a queue; see `lua/submit.lua`."""
    return f"queue:{queue}:clock"


def fair_key(queue: str, run_id: str) -> str:
    """The tag that a run's next ticket gets in a queue."""
    return f"queue:{queue}:next:{run_id}"


def running_key(queue: str) -> str:
    """The tickets of a queue that somebody has claimed."""
    return f"queue:{queue}:running"


def members_key(run_id: str) -> str:
    """All tickets of a run."""
    return f"run:{run_id}:tickets"


def inbox_key(run_id: str) -> str:
    """What workers have said to a run, oldest first."""
    return f"run:{run_id}:inbox"


def details_key(run_id: str) -> str:
    """What workers need to know of a run, whichever of its steps they take."""
    return f"run:{run_id}:details"


def worker_key(worker_id: str) -> str:
    """The hash of a worker."""
    return f"worker:{worker_id}"


def heartbeat_key(worker_id: str) -> str:
    """Exists while the worker lives."""
    return f"worker:{worker_id}:heartbeat"


def calls_key(worker_id: str) -> str:
    """The calls that wait for a worker, oldest first."""
    return f"calls:{worker_id}"


def caller_key(call_id: str) -> str:
    """Exists while somebody waits for an answer."""
    return f"call:{call_id}"


def pieces_key(call_id: str) -> str:
    """The pieces of an answer that its caller has not taken yet."""
    return f"call:{call_id}:pieces"


@cache
def _source(name: str) -> str:
    return (resources.files("mloc_dagster.fleet.redis") / "lua" / f"{name}.lua").read_text()


def push_wake(client: redis.Redis, key: str) -> None:
    """Puts an entry on a wake list; see `placement.wakes_for`. The scripts of `lua/` do the same.

    It expires, because a worker that does not wait now looks before it does.
    """
    calls = client.pipeline(transaction=True)
    calls.rpush(key, "")
    calls.ltrim(key, -1, -1)
    calls.expire(key, _WAKE_TTL_S)
    calls.execute()


def script(client: redis.Redis, name: str) -> Script:
    """Returns the named script of `lua/`, bound to a client."""
    return client.register_script(_source(name))


# The connection


def connect(url: str) -> redis.Redis:
    """Opens a client that waits, with backoff, for a Redis that is away or loading its file."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=2,
        socket_timeout=10,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=1, base=0.02), _RETRIES),
        retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError],
    )


# A connection that dies silently, as with a host that loses power, is noticed after both together.
_LONGEST_POP_S, _ANSWER_S = 10.0, 5.0
_SHORTEST_POP_S = 0.01  # 0 would be for ever


def blocking_client(client: redis.Redis) -> redis.Redis:
    """Opens another client of the same Redis, for `pop`: a lost connection is told at once.

    One that sent a pop again after a lost connection would hide the loss from who waits.
    """
    pool = client.connection_pool
    changes = {
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "socket_timeout": _LONGEST_POP_S + _ANSWER_S,
    }
    options = {**pool.connection_kwargs, **changes}
    return redis.Redis.from_pool(
        redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


def pop(client: redis.Redis, keys: Sequence[str], timeout_s: float) -> tuple[str, str] | None:
    """Takes the first entry of the first list that has one; waits for it, some seconds at most.

    Returns:
        The list's key, and the entry; None if there was none in time.
    """
    within_s = max(_SHORTEST_POP_S, min(timeout_s, _LONGEST_POP_S))
    popped = cast("list[str] | None", client.blpop(keys, within_s))
    return None if popped is None else (popped[0], popped[1])


def raising_fleet_errors[T: type](engine_class: T) -> T:
    """Makes every method of a class raise `FleetUnavailableError` and no error of Redis'."""
    for name, member in list(vars(engine_class).items()):
        if isinstance(member, FunctionType) and not name.startswith("__"):
            setattr(engine_class, name, _raising_fleet_errors(member))
    return engine_class


def _raising_fleet_errors[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    @wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except redis.ResponseError as error:
            raise FleetUnavailableError(
                f"the fleet's Redis refuses: {error}", reply=str(error)
            ) from error
        except redis.RedisError as error:
            raise FleetUnavailableError(f"the fleet's Redis does not answer: {error}") from error

    return translated


_log = logging.getLogger(__name__)

_STRUCTURED = frozenset({"queues", "hardware", "tags", "warm_models", "running"})
_LAST_WORDS_S = 86_400


@raising_fleet_errors
class RedisRegistry:
    """`Registry` on one Redis; every change is one MULTI.

    Args:
        client: Decodes responses, as `records.connect` has it.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._lose = script(client, "lose")

    def register(self, info: WorkerInfo) -> WorkerStatus | None:
        """Writes how a worker is now; returns how it was, None if it was not registered."""
        key = worker_key(info.worker_id)
        calls = self.client.pipeline(transaction=True)
        calls.hget(key, "status")
        calls.sadd(WORKER_IDS, info.worker_id)
        calls.delete(key)  # what it may still carry of an earlier life: its expiry, old fields
        calls.hset(key, mapping=_encode(info))
        ttl_ms = int(settings().heartbeat_ttl_s * 1000)
        calls.set(heartbeat_key(info.worker_id), info.last_seen.isoformat(), px=ttl_ms)
        status, added, *_ = calls.execute()
        return None if added or status not in WorkerStatus else WorkerStatus(status)

    def unregister(self, worker_id: str) -> WorkerInfo | None:
        """Takes a worker out that ends as it should; returns how it was."""
        known = self.worker(worker_id)
        calls = self.client.pipeline(transaction=True)
        calls.srem(WORKER_IDS, worker_id)
        calls.delete(worker_key(worker_id), heartbeat_key(worker_id))
        removed, _ = calls.execute()
        return known if removed else None

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the workers whose heartbeat has not lapsed, by id."""
        ids = self._ids()
        calls = self.client.pipeline(transaction=True)
        for each in ids:
            calls.exists(heartbeat_key(each))
            calls.hgetall(worker_key(each))
        answers = calls.execute()
        alive = zip(ids, answers[::2], answers[1::2], strict=True)
        infos = (_decode(each, fields) for each, beats, fields in alive if beats)
        return [info for info in infos if info is not None]

    def worker(self, worker_id: str) -> WorkerInfo | None:
        """Returns a worker as it was last heard of, alive or lost within a day."""
        fields = cast("dict[str, str]", self.client.hgetall(worker_key(worker_id)))
        return _decode(worker_id, fields)

    def silent_workers(self) -> Sequence[str]:
        """Returns the ids of registered workers whose heartbeat has lapsed."""
        ids = self._ids()
        calls = self.client.pipeline(transaction=False)
        for each in ids:
            calls.exists(heartbeat_key(each))
        return [each for each, beats in zip(ids, calls.execute(), strict=True) if not beats]

    def strike_off(self, worker_id: str) -> bool:
        """Takes a worker out whose heartbeat has lapsed; true for the one caller who did."""
        keys = [WORKER_IDS, worker_key(worker_id), heartbeat_key(worker_id)]
        return bool(self._lose(keys=keys, args=[worker_id, _LAST_WORDS_S]))

    def _ids(self) -> list[str]:
        return sorted(cast("set[str]", self.client.smembers(WORKER_IDS)))


def _encode(info: WorkerInfo) -> dict[FieldT, EncodableT]:
    fields = info.model_dump(mode="json")
    return {
        name: json.dumps(value) if name in _STRUCTURED else value for name, value in fields.items()
    }


def _decode(worker_id: str, fields: dict[str, str]) -> WorkerInfo | None:
    """Returns None for a worker that is not there, or that this version cannot read."""
    if not fields:
        return None
    try:
        return WorkerInfo.model_validate(
            {
                name: json.loads(value) if name in _STRUCTURED else value
                for name, value in fields.items()
            }
        )
    except (ValidationError, json.JSONDecodeError) as error:
        _log.warning("worker %s is not understood and is left out: %s", worker_id, error)
        return None
