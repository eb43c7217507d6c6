"""Steps that a run worker runs itself: planning, aggregation, export, checks."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import dagster as dg
from dagster import DagsterRun, EventLogEntry

from mloc_dagster.executors.cancellation import cancellable
from mloc_dagster.fleet.messages import StepRequest
from mloc_dagster.fleet.step_worker import run_step
from mloc_dagster.services.event_log import capturing

_AT_ONCE = 4


class LocalSteps:
    """Threads beside a run's own loop, which must stay free to hear its workers.

    The events of a step reach the loop together when it ends: a run worker that dies in the middle
    leaves no half of a step in the log.

    Args:
        job: The run's job.
        run: The run.
        instance: Where the events would go.
        wake: Called when a step has ended.
        stopping: Whether steps should stop early.
    """

    def __init__(
        self,
        job: object,
        run: DagsterRun,
        instance: dg.DagsterInstance,
        *,
        wake: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._job = job
        self._run = run
        self._instance = instance
        self._wake = wake
        self._stopping = stopping
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mloc-step")
        self._ended: queue.SimpleQueue[tuple[str, list[EventLogEntry]]] = queue.SimpleQueue()

    def start(self, request: StepRequest) -> None:
        """Runs a step in a thread of its own."""
        self._threads.submit(copy_context().run, self._perform, request)

    def _perform(self, request: StepRequest) -> None:
        events: list[EventLogEntry] = []
        try:
            with capturing(events.append), cancellable(self._stopping):
                run_step(self._job, self._run, self._instance, request)
        finally:
            self._ended.put((request.step_key, events))
            self._wake()

    def ended(self) -> list[tuple[str, list[EventLogEntry]]]:
        """Returns the steps that ended since the last call, each with its events."""
        found: list[tuple[str, list[EventLogEntry]]] = []
        while not self._ended.empty():
            found.append(self._ended.get())
        return found

    def close(self) -> None:
        """Waits for running steps; none starts any more."""
        self._threads.shutdown(wait=True, cancel_futures=True)
