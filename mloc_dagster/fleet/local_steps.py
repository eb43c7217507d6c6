"""Steps that a run worker runs itself: planning, aggregation, export, checks."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterRun, EventLogEntry
from dagster._core.definitions.job_base import IJob

from mloc_dagster.executors.cancellation import cancellable
from mloc_dagster.fleet.messages import StepRequest
from mloc_dagster.fleet.step_worker import run_step
from mloc_dagster.services.event_log import capturing

_log = logging.getLogger(__name__)

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class EndedStep:
    """A step that has ended.

    Attributes:
        step_key: The step.
        events: What Dagster logged.
        error: Why it could not be run at all; empty for a step that Dagster ran.
    """

    step_key: str
    events: list[EventLogEntry]
    error: str


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
        job: IJob,
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
        self._ended: queue.SimpleQueue[EndedStep] = queue.SimpleQueue()

    def start(self, request: StepRequest) -> None:
        """Runs a step in a thread of its own."""
        self._threads.submit(copy_context().run, self._perform, request)

    def _perform(self, request: StepRequest) -> None:
        events: list[EventLogEntry] = []
        why = ""
        try:
            with capturing(events.append), cancellable(self._stopping):
                run_step(self._job, self._run, self._instance, request)
        except Exception as error:  # noqa: BLE001 (the run decides what follows)
            _log.exception("%s could not be run", request.step_key)
            why = f"{type(error).__name__}: {error}"
        self._ended.put(EndedStep(request.step_key, events, why))
        self._wake()

    def ended(self) -> list[EndedStep]:
        """Returns the steps that ended since the last call."""
        found: list[EndedStep] = []
        while not self._ended.empty():
            found.append(self._ended.get())
        return found

    def close(self) -> None:
        """Waits for running steps; none starts any more."""
        self._threads.shutdown(wait=True, cancel_futures=True)
