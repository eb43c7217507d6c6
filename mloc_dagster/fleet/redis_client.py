"""The connection to Redis that outlives Redis."""

from __future__ import annotations

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.services.stack.layout import stack_layout
from mloc_dagster.services.stack.plan import saved_plan
from mloc_dagster.settings import settings

# Together with the backoff below about three minutes: a restarted Redis reads its file in seconds,
# and a caller that still gets an error can only give up.
_RETRIES = 200


def redis_url() -> str:
    """Returns the fleet's Redis: `MLOC_REDIS_URL`, or that of the stack of this home.

    Raises:
        InputError: If there is neither.
    """
    url = settings().redis_url
    if url is None:
        plan = saved_plan(stack_layout())
        url = None if plan is None else plan.redis_url
    if url is None:
        raise InputError(
            "this needs the fleet's Redis: start the system with `mloc up`, or set MLOC_REDIS_URL"
        )
    return url


def connect(url: str | None = None) -> redis.Redis:
    """Opens a client that waits, with backoff, for a Redis that is away or loading its file."""
    return redis.Redis.from_url(
        url or redis_url(),
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


def require_redis(url: str | None = None) -> None:
    """Returns if the fleet's Redis answers now: a person at a terminal does not wait for it.

    Raises:
        InputError: If none is configured.
        TransientError: If it does not answer.
    """
    with redis.Redis.from_url(
        url or redis_url(), socket_connect_timeout=2, socket_timeout=5, retry=None
    ) as client:
        try:
            client.ping()
        except (redis.RedisError, OSError) as error:
            known = client.get_connection_kwargs()
            place = known.get("path") or f"{known.get('host')}:{known.get('port')}"
            raise TransientError(
                f"the fleet's Redis at {place} does not answer: {error}"
            ) from error
