"""The workers as they lie in Redis, each under a heartbeat that expires."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import cast

import redis
from pydantic import ValidationError
from redis.typing import EncodableT, FieldT

from mloc_dagster.fleet.engine import WorkerInfo, WorkerStatus
from mloc_dagster.fleet.redis.records import (
    WORKER_IDS,
    heartbeat_key,
    raising_fleet_errors,
    script,
    worker_key,
)
from mloc_dagster.settings import settings

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
