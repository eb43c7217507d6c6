"""Which fleet this process uses, and the one place that chooses its engine."""

from __future__ import annotations

from functools import cache

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.engine import FleetEngine
from mloc_dagster.settings import settings


def fleet_url() -> str:
    """Returns the Redis of the fleet and its events: `MLOC_REDIS_URL`, or that of our stack.

    Raises:
        InputError: If there is neither.
    """
    from mloc_dagster.home import stack_layout
    from mloc_dagster.services import saved_plan

    url = settings().redis_url
    if url is None:
        plan = saved_plan(stack_layout())
        url = None if plan is None else plan.redis_url
    if url is None:
        raise InputError(
            "this needs the fleet's Redis: start the system with `mloc up`, or set MLOC_REDIS_URL"
        )
    return url


def require_fleet(url: str | None = None) -> None:
    """Returns if the fleet answers now: a person at a terminal does not wait for it.

    Args:
        url: By default `fleet_url`.

    Raises:
        InputError: If none is configured, or it refuses the user.
        TransientError: If it does not answer.
    """
    from mloc_dagster.events import check_redis

    check_redis(url or fleet_url())


def open_engine(url: str | None = None) -> FleetEngine:
    """Returns this process's engine; nothing else chooses one.

    Args:
        url: By default `fleet_url`.

    Raises:
        InputError: If none is configured.
    """
    return _engine(url or fleet_url())


@cache
def _engine(url: str) -> FleetEngine:
    from mloc_dagster.fleet.redis.engine import RedisFleetEngine
    from mloc_dagster.fleet.redis.records import connect

    return RedisFleetEngine(connect(url))
