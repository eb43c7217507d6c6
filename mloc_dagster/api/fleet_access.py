"""Lazy access to Dagster and the fleet, for a process that may never need either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING

from mloc_dagster.errors import InputError, MlocError, TransientError
from mloc_dagster.events import (
    STREAM_AWAY,
    LastProgress,
    last_counts,
    last_training_progress,
    open_redis,
)
from mloc_dagster.fleet import FleetEngine, WorkerInfo, fleet_url, open_engine, require_fleet

if TYPE_CHECKING:
    import dagster as dg


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
        from mloc_dagster.services import open_instance

        with self._lock:
            if self._instance is None:
                self._instance = self._open.enter_context(open_instance())
            return self._instance

    def engine_if_any(self) -> FleetEngine | None:
        """Returns the fleet's engine; None without one, and while it does not answer."""
        try:
            return self.engine()
        except MlocError:  # what Dagster and the store know still holds
            return None

    def engine(self) -> FleetEngine:
        """Returns the fleet's engine.

        Raises:
            TransientError: If none is configured, or it does not answer, which its clients would
                wait for, for minutes.
        """
        try:
            require_fleet()
        except InputError as error:  # whoever asks over HTTP cannot start one
            raise TransientError(str(error)) from error
        return open_engine()

    def check_writable(self) -> None:
        """Returns if the fleet takes what is written.

        Raises:
            TransientError: If it does not answer, or refuses: it is full, or read-only.
        """
        self.engine().check_writable()

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the live workers."""
        return self.engine().workers()

    def worker(self, worker_id: str) -> tuple[WorkerInfo | None, bool]:
        """Returns a worker as it was last heard of, and whether it lives."""
        engine = self.engine()
        live = {each.worker_id for each in engine.workers()}
        return engine.worker(worker_id), worker_id in live

    def silent_workers(self) -> Sequence[str]:
        """Returns the ids of registered workers whose heartbeat has lapsed."""
        return self.engine().silent_workers()

    def strike_off(self) -> Sequence[str]:
        """Takes the silent workers out of the registry."""
        engine = self.engine()
        return [each for each in engine.silent_workers() if engine.strike_off(each)]

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by queue."""
        return self.engine().queue_depths()

    def last_progress(self, task_id: str, since: datetime) -> LastProgress | None:
        """Returns how far a training said it was; None where nobody can tell."""
        try:
            with open_redis(fleet_url()) as client:
                return last_training_progress(client, task_id, since)
        except (InputError, *STREAM_AWAY):  # its checkpoints still tell
            return None

    def last_counts(self, task_id: str, since: datetime) -> Mapping[str, int]:
        """Returns what the shards of a task said that they have counted."""
        try:
            with open_redis(fleet_url()) as client:
                return last_counts(client, task_id, since)
        except (InputError, *STREAM_AWAY):
            return {}
