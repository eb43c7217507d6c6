"""A warm worker process: claims tickets, works on them, and says that it lives."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mloc_dagster.fleet.claim import Claim, StopReason
from mloc_dagster.fleet.claims import Claims
from mloc_dagster.fleet.engine import RUNS_QUEUE, WorkerInfo, WorkerStatus
from mloc_dagster.fleet.heartbeat import Heartbeat
from mloc_dagster.fleet.reaper import requeue_lapsed
from mloc_dagster.fleet.redis_client import connect
from mloc_dagster.fleet.redis_engine import RedisFleetEngine
from mloc_dagster.fleet.registry import Publish, WorkerRegistry
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_STALLED_EXIT = 75


class Worker:
    """Takes tickets from its queues, up to `slots` at a time.

    A Celery message wakes it at once; without one it looks for itself every second, so that a lost
    message costs no more than that.

    Args:
        engine: The fleet.
        info: Who this worker is, and what it owns.
        perform: Does the work of one claim; gives it back or ends it.
        slots: Claims at a time.
        publish: Told of the worker's own events.
    """

    def __init__(
        self,
        engine: RedisFleetEngine,
        info: WorkerInfo,
        perform: Callable[[Claim], None],
        *,
        slots: int,
        publish: Publish | None = None,
    ) -> None:
        known = settings()
        self._engine = engine
        self._info = info
        self._perform = perform
        self._claims = Claims(
            connect(engine.url),
            lease_ttl_s=known.lease_ttl_s,
            stall_timeout_s=known.stall_timeout_s,
            on_stall=self._give_up,
        )
        self.heartbeat = Heartbeat(WorkerRegistry(connect(engine.url), publish), info)
        self._registry = WorkerRegistry(engine.client, publish)
        self._slots = threading.Semaphore(slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="mloc-work")
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._watcher = threading.Thread(target=self._look, name="mloc-look", daemon=True)

    def start(self) -> None:
        """Registers the worker and begins to take work."""
        self.heartbeat.start()
        self.heartbeat.update(status=WorkerStatus.IDLE)
        self._watcher.start()

    def wake(self) -> None:
        """Works until no ticket fits, if a slot is free; returns when there is nothing to do."""
        if not self._slots.acquire(blocking=False):
            return
        try:
            while not self._draining.is_set():
                claim = self._claims.take(
                    self._info.queues,
                    self._info.worker_id,
                    self._info.hardware,
                    self.heartbeat.info.warm_models,
                )
                if claim is None:
                    return
                self._work(claim)
        finally:
            self._slots.release()

    def _work(self, claim: Claim) -> None:
        self._show()
        try:
            self._perform(claim)
        except Exception:  # noqa: BLE001 (it is logged, and the worker goes on)
            # The lease lapses and somebody else tries: the worker's trouble is not the ticket's.
            _log.exception("ticket %s is left to lapse", claim.ticket_id)
        finally:
            self._claims.drop(claim)
            self._show()

    def _show(self) -> None:
        running = [claim.ticket_id for claim in self._claims.held()]
        busy = WorkerStatus.RUNNING if running else WorkerStatus.IDLE
        status = WorkerStatus.DRAINING if self._draining.is_set() else busy
        self.heartbeat.update(status=status, running=running)

    def _look(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            try:
                if RUNS_QUEUE in self._info.queues:
                    requeue_lapsed(self._engine, RUNS_QUEUE)
                    self._registry.lost()
                if not self._draining.is_set() and self._engine.waiting(self._info.queues):
                    self._threads.submit(self.wake)
            except Exception as error:  # noqa: BLE001 (this thread must outlive anything)
                _log.warning("could not look for work: %s", error)

    def drain(self, grace_s: float) -> None:
        """Takes nothing more; waits `grace_s` for claims to end, then asks them to stop."""
        self._draining.set()
        self._show()
        held = self._claims.held()
        timer = threading.Timer(grace_s, self._stop_claims)
        timer.daemon = True
        timer.start()
        _log.info("draining: %d claims have %.0f s to end by themselves", len(held), grace_s)

    def _stop_claims(self) -> None:
        for claim in self._claims.held():
            claim.ask_to_stop(StopReason.DRAINING)

    def close(self) -> None:
        """Ends the worker once its claims have ended, and takes it out of the registry."""
        self._stopping.set()
        self._threads.shutdown(wait=True)
        self._claims.close()
        self.heartbeat.stop()

    def _give_up(self, claim: Claim) -> None:
        _log.error(
            "%s has shown no sign of life for %.0f s: this process ends, another takes the ticket",
            claim.ticket_id,
            settings().stall_timeout_s,
        )
        # A thread cannot be ended, and what hangs may hold the devices.
        os._exit(_STALLED_EXIT)
