"""Who is alive: workers as they lie in Redis, each under a heartbeat that expires."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from typing import cast

import redis
from pydantic import ValidationError
from redis.typing import EncodableT, FieldT

from mloc_dagster.events.model import WorkerEvent, WorkerEventType
from mloc_dagster.events.payloads import WorkerPayload, WorkerState
from mloc_dagster.fleet.engine import WorkerInfo, WorkerStatus
from mloc_dagster.fleet.records import script
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

WORKER_IDS = "workers:ids"

_STRUCTURED = frozenset({"queues", "hardware", "tags", "warm_models", "running"})
_LAST_WORDS_S = 86_400

Publish = Callable[[WorkerEvent], None]


def worker_key(worker_id: str) -> str:
    """The hash of a worker."""
    return f"worker:{worker_id}"


def heartbeat_key(worker_id: str) -> str:
    """Exists while the worker lives."""
    return f"worker:{worker_id}:heartbeat"


class WorkerRegistry:
    """The workers of one Redis; every change is one MULTI, and then an event.

    Args:
        client: Decodes responses, as `redis_client.connect` has it.
        publish: Told of each change, after it.
    """

    def __init__(self, client: redis.Redis, publish: Publish | None = None) -> None:
        self._client = client
        self._publish = publish
        self._lose = script(client, "lose")

    def register(self, info: WorkerInfo) -> None:
        """Adds a worker, or replaces what an earlier process of the same name left."""
        self._write(info)
        self._tell(WorkerEventType.REGISTER, info, since=info.started_at)

    def heartbeat(self, info: WorkerInfo) -> None:
        """Says that a worker lives and how it is; one that was struck off or forgotten is back."""
        added, status = self._write(info)
        if added:
            self._tell(WorkerEventType.REGISTER, info, since=info.last_seen)
        elif status == info.status:
            self._tell(WorkerEventType.HEARTBEAT, info)
        else:
            self._tell(WorkerEventType.STATUS, info)

    def unregister(self, worker_id: str) -> None:
        """Takes a worker out that ends as it should; unknown ones are no error."""
        known = self.get(worker_id)
        calls = self._client.pipeline(transaction=True)
        calls.srem(WORKER_IDS, worker_id)
        calls.delete(worker_key(worker_id), heartbeat_key(worker_id))
        removed, _ = calls.execute()
        if removed and known is not None:
            self._tell(
                WorkerEventType.UNREGISTER, known, WorkerState.STOPPED, since=known.started_at
            )

    def live(self) -> list[WorkerInfo]:
        """Returns the workers whose heartbeat has not lapsed, by id."""
        ids = self._ids()
        calls = self._client.pipeline(transaction=True)
        for each in ids:
            calls.exists(heartbeat_key(each))
            calls.hgetall(worker_key(each))
        answers = calls.execute()
        alive = zip(ids, answers[::2], answers[1::2], strict=True)
        infos = (_decode(each, fields) for each, beats, fields in alive if beats)
        return [info for info in infos if info is not None]

    def get(self, worker_id: str) -> WorkerInfo | None:
        """Returns a worker as it was last heard of, alive or lost within a day."""
        fields = cast("dict[str, str]", self._client.hgetall(worker_key(worker_id)))
        return _decode(worker_id, fields)

    def lost(self) -> list[str]:
        """Strikes off the workers whose heartbeat has lapsed.

        Returns:
            Their ids; each is returned to one caller only, who publishes that it was lost.
        """
        ids = self._ids()
        calls = self._client.pipeline(transaction=False)
        for each in ids:
            calls.exists(heartbeat_key(each))
        silent = [each for each, beats in zip(ids, calls.execute(), strict=True) if not beats]
        return [each for each in silent if self._strike_off(each)]

    def _strike_off(self, worker_id: str) -> bool:
        keys = [WORKER_IDS, worker_key(worker_id), heartbeat_key(worker_id)]
        if not self._lose(keys=keys, args=[worker_id, _LAST_WORDS_S]):
            return False
        known = self.get(worker_id)
        if known is not None:
            self._tell(WorkerEventType.LOST, known, WorkerState.LOST, since=known.last_seen)
        return True

    def _ids(self) -> list[str]:
        return sorted(cast("set[str]", self._client.smembers(WORKER_IDS)))

    def _write(self, info: WorkerInfo) -> tuple[bool, WorkerStatus | None]:
        """Returns whether the worker is new, and the status that it had."""
        key = worker_key(info.worker_id)
        calls = self._client.pipeline(transaction=True)
        calls.hget(key, "status")
        calls.sadd(WORKER_IDS, info.worker_id)
        calls.delete(key)  # what it may still carry of an earlier life: its expiry, old fields
        calls.hset(key, mapping=_encode(info))
        ttl_ms = int(settings().heartbeat_ttl_s * 1000)
        calls.set(heartbeat_key(info.worker_id), info.last_seen.isoformat(), px=ttl_ms)
        status, added, *_ = calls.execute()
        return bool(added), status

    def _tell(
        self,
        kind: WorkerEventType,
        info: WorkerInfo,
        state: WorkerState | None = None,
        since: datetime | None = None,
    ) -> None:
        if self._publish is None:
            return
        payload = WorkerPayload(
            host=info.host,
            pid=info.pid,
            queues=info.queues,
            warm_models=info.warm_models,
            running=info.running,
            since=since,
        )
        state = state or WorkerState(info.status.value)
        event = WorkerEvent(type=kind, worker_id=info.worker_id, status=state, payload=payload)
        self._publish(event)


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
