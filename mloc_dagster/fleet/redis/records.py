"""How a fleet lies in Redis: its keys, the scripts that change several at once, the connection."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, wraps
from importlib import resources
from types import FunctionType

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.commands.core import Script
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from mloc_dagster.errors import FleetUnavailableError

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


def without_retries(client: redis.Redis, read_timeout_s: float) -> redis.Redis:
    """Opens another client of the same Redis, which tells of a lost connection at once.

    Args:
        client: As `connect` returns it.
        read_timeout_s: Seconds that an answer may take; more than any command blocks.
    """
    pool = client.connection_pool
    changes = {
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "socket_timeout": read_timeout_s,
    }
    options = {**pool.connection_kwargs, **changes}
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


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
