"""Polling once a second from sensors that Dagster evaluates every five, on one instance.

Dagster's daemon goes through its sensors every five seconds, whatever interval they ask for. A tick
that is short of that and looks several times is as good as one a second, and costs less: the daemon
writes down each tick, and a look is one query.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from functools import lru_cache
from time import monotonic, sleep

import dagster as dg
from dagster import deserialize_value, serialize_value

from mloc_dagster.services import InstanceRef, pool_connections


def instance_of(context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
    """Returns the context's instance.

    Dagster opens one for each tick, which asks the database for its tables three times over; a
    sensor that looks once a second keeps one, with a pooled connection.
    """
    if context.instance_ref is None:
        return context.instance
    return _opened(serialize_value(context.instance_ref))


@lru_cache(maxsize=1)
def _opened(ref: str) -> dg.DagsterInstance:
    instance = dg.DagsterInstance.from_ref(deserialize_value(ref, InstanceRef))
    pool_connections(instance)
    atexit.register(instance.dispose)
    return instance


EVERY_S = 1.0
_LOOKS = 5


def polls(instance: dg.DagsterInstance) -> Iterator[int]:
    """Yields once a second until the daemon is about to come again.

    Where the daemon evaluates sensors one after the other it yields once: others would wait.
    """
    threads = instance.get_sensor_settings().get("use_threads")
    began = monotonic()
    yield 0
    for number in range(1, _LOOKS if threads else 1):
        sleep(max(0.0, began + number * EVERY_S - monotonic()))
        yield number
