"""Keeps a worker registered while its process lives; reports its models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from mloc_dagster.errors import FleetUnavailableError
from mloc_dagster.events import WorkerEvent, WorkerEventType, WorkerPayload, WorkerState
from mloc_dagster.fleet.engine import Registry, WorkerInfo, WorkerStatus
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

_LONGEST_PERIOD_S = 5.0
_GAP_S = 0.1
"""Changes within this time go out as one: a shard may take no longer than that."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


Publish = Callable[[WorkerEvent], None]


class WorkerRegistry:
    """The registry of an engine, with an event for each change, after it.

    Args:
        workers: The registry.
        publish: Told of each change; None publishes nothing.
    """

    def __init__(self, workers: Registry, publish: Publish | None = None) -> None:
        self._workers = workers
        self._publish = publish

    def register(self, info: WorkerInfo) -> None:
        """Adds a worker, or replaces what an earlier process of the same name left."""
        self._workers.register(info)
        self._announce(WorkerEventType.REGISTER, info, since=info.started_at)

    def heartbeat(self, info: WorkerInfo) -> None:
        """Says that a worker lives and how it is; one that was struck off or forgotten is back."""
        before = self._workers.register(info)
        if before is None:
            self._announce(WorkerEventType.REGISTER, info, since=info.last_seen)
        elif before == info.status:
            self._announce(WorkerEventType.HEARTBEAT, info)
        else:
            self._announce(WorkerEventType.STATUS, info)

    def unregister(self, worker_id: str) -> None:
        """Takes a worker out that ends as it should; unknown ones are no error."""
        known = self._workers.unregister(worker_id)
        if known is not None:
            stopped = WorkerState.STOPPED
            self._announce(WorkerEventType.UNREGISTER, known, stopped, since=known.started_at)

    def lost(self) -> list[str]:
        """Strikes off the workers whose heartbeat has lapsed.

        Returns:
            Their ids; each is returned to one caller only, who publishes that it was lost.
        """
        lost = [each for each in self._workers.silent_workers() if self._workers.strike_off(each)]
        for each in lost:
            known = self._workers.worker(each)
            if known is not None:
                self._announce(WorkerEventType.LOST, known, WorkerState.LOST, since=known.last_seen)
        return lost

    def _announce(
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


class Heartbeat:
    """Sends a worker's heartbeat from a thread of its own: at intervals, and at each change.

    An outage of the fleet's engine is logged once and outlived: the thread tries again, later and
    later, and the first heartbeat that arrives registers the worker anew if all was forgotten.

    Args:
        registry: Where to.
        info: The worker as it starts.
        period_s: Seconds between heartbeats; by default a quarter of `MLOC_HEARTBEAT_TTL_S`, at
            most 5.
    """

    def __init__(
        self, registry: WorkerRegistry, info: WorkerInfo, period_s: float | None = None
    ) -> None:
        self._registry = registry
        self._info = info
        self._period_s = period_s or min(settings().heartbeat_ttl_s / 4, _LONGEST_PERIOD_S)
        self._registered = False
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mloc-heartbeat", daemon=True)

    @property
    def info(self) -> WorkerInfo:
        """The worker as it is now."""
        with self._lock:
            return self._info

    def start(self) -> None:
        """Registers the worker, as soon as the fleet can be reached."""
        self._thread.start()

    def update(
        self,
        *,
        status: WorkerStatus | None = None,
        warm_models: Iterable[str] | None = None,
        running: Iterable[str] | None = None,
    ) -> None:
        """Changes what the worker says of itself; what changed is sent at once."""
        given: dict[str, Any] = {
            "status": status,
            "warm_models": None if warm_models is None else tuple(warm_models),
            "running": None if running is None else tuple(running),
        }
        changes = {name: value for name, value in given.items() if value is not None}
        with self._lock:
            changed = self._info.model_copy(update=changes)
            if changed == self._info:
                return
            self._info = changed
        self._changed.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the heartbeats and takes the worker out of the registry.

        Args:
            timeout_s: Seconds to wait for that. If the fleet is away, the worker stays registered
                until its heartbeat lapses.
        """
        self._stopping.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.warning("the worker could not unregister in %.0f s: it lapses", timeout_s)

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stopping.is_set():
            try:
                self._beat()
            except Exception as error:  # noqa: BLE001 - a worker without heartbeat counts as dead
                if not pause_s:
                    fault = None if isinstance(error, FleetUnavailableError) else error
                    _log.warning("heartbeats do not arrive: %s", error, exc_info=fault)
                pause_s = min(max(_FIRST_PAUSE_S, pause_s * 2), _LONGEST_PAUSE_S)
                self._stopping.wait(pause_s)
                continue
            if pause_s:
                _log.warning("heartbeats arrive again")
                pause_s = 0.0
            self._stopping.wait(_GAP_S)
            self._changed.wait(self._period_s - _GAP_S)
        try:
            # Here, because an engine that is patient with its server would keep `stop` waiting.
            self._registry.unregister(self._info.worker_id)
        except FleetUnavailableError as error:
            _log.warning("the worker could not unregister: it lapses: %s", error)

    def _beat(self) -> None:
        self._changed.clear()
        info = self.info.model_copy(update={"last_seen": datetime.now(UTC)})
        if self._registered:
            self._registry.heartbeat(info)
        else:
            self._registry.register(info)
            self._registered = True
