"""Dagster's runs and the fleet's Redis, opened when somebody first asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING

from redis import RedisError

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.events.recall import LastNews, last_training_news
from mloc_dagster.events.stream import open_redis
from mloc_dagster.fleet.redis_client import redis_url, require_redis
from mloc_dagster.fleet.registry import WORKER_IDS, WorkerRegistry

if TYPE_CHECKING:
    import dagster as dg
    import redis

    from mloc_dagster.fleet.engine import WorkerInfo
    from mloc_dagster.fleet.redis_engine import RedisFleetEngine

_READY_KEY = "mloc:ready"


class FleetAccess:
    """What the API asks about runs and workers; each call may wait, so it belongs into a thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open = ExitStack()
        self._instance: dg.DagsterInstance | None = None

    def close(self) -> None:
        """Closes what was opened."""
        with self._lock:
            self._open.close()
            self._instance = None

    def instance(self) -> dg.DagsterInstance:
        """Returns Dagster's instance, its connections pooled."""
        from mloc_dagster.services.instance import open_instance

        with self._lock:
            if self._instance is None:
                self._instance = self._open.enter_context(open_instance())
            return self._instance

    def engine(self) -> RedisFleetEngine:
        """Returns the fleet's engine.

        Raises:
            TransientError: If no Redis is configured, or it does not answer, which its clients
                would wait for, for minutes.
        """
        from mloc_dagster.fleet.redis_engine import open_engine

        try:
            require_redis()
        except InputError as error:  # whoever asks over HTTP cannot start one
            raise TransientError(str(error)) from error
        return open_engine()

    def check_writable(self) -> None:
        """Returns if Redis takes what is written.

        Raises:
            TransientError: If it does not answer.
            redis.ResponseError: If it answers, and refuses: it is full, or a replica.
        """
        self._redis().set(_READY_KEY, "", px=1_000)

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the live workers."""
        return WorkerRegistry(self._redis()).live()

    def worker(self, worker_id: str) -> tuple[WorkerInfo | None, bool]:
        """Returns a worker as it was last heard of, and whether it lives."""
        registry = WorkerRegistry(self._redis())
        info = registry.get(worker_id)
        return info, any(each.worker_id == worker_id for each in registry.live())

    def silent_workers(self) -> Sequence[str]:
        """Returns the ids of registered workers whose heartbeat has lapsed."""
        client = self._redis()
        registered = {str(each) for each in client.smembers(WORKER_IDS)}  # type: ignore[union-attr]
        return sorted(registered - {each.worker_id for each in WorkerRegistry(client).live()})

    def strike_off(self) -> Sequence[str]:
        """Takes the silent workers out of the registry."""
        return WorkerRegistry(self._redis()).lost()

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by queue."""
        return self.engine().queue_depths()

    def last_word(self, task_id: str, since: datetime) -> LastNews | None:
        """Returns how far a training said it was; None where nobody can tell."""
        try:
            with open_redis(redis_url()) as client:
                return last_training_news(client, task_id, since)
        except (InputError, RedisError):  # its checkpoints still tell
            return None

    def _redis(self) -> redis.Redis:
        return self.engine().client
