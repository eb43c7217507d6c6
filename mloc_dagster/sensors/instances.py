"""The instance of a sensor, opened once per process."""

from __future__ import annotations

import atexit
from functools import lru_cache

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster_shared.serdes import deserialize_value, serialize_value

from mloc_dagster.services.instance import pool_connections


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
