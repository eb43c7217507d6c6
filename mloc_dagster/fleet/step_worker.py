"""Running Dagster steps on behalf of a run that lives elsewhere."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

import dagster as dg
from dagster import DagsterRun, EventLogEntry
from dagster._core.definitions.job_base import IJob
from dagster._core.execution.api import create_execution_plan, execute_plan_iterator
from dagster._core.execution.retries import RetryMode

from mloc_dagster.executors.cancellation import cancellable
from mloc_dagster.fleet.claim import Claim, StopReason
from mloc_dagster.fleet.engine import TicketState
from mloc_dagster.fleet.jobs import LIBRARY, Jobs
from mloc_dagster.fleet.messages import StepMessage, StepRequest, run_from_text
from mloc_dagster.fleet.records import details_key
from mloc_dagster.fleet.redis_engine import RedisFleetEngine
from mloc_dagster.services.event_log import capturing

_log = logging.getLogger(__name__)

_KEPT_RUNS = 32
_SAY_EVERY_S = 1.0


class StepWorker:
    """Runs one step at a time, and tells its run what Dagster logged.

    The events go through the ticket, not into the database: a claim that is lost has no voice, and
    the run alone writes its log.
    """

    def __init__(self, engine: RedisFleetEngine, instance: dg.DagsterInstance) -> None:
        self._engine = engine
        self._instance = instance
        self._jobs = Jobs()
        self._runs: OrderedDict[str, DagsterRun] = OrderedDict()

    def warm_up(self) -> None:
        """Loads what every first step would otherwise wait for."""
        self._jobs.preload(LIBRARY)

    def perform(self, claim: Claim) -> None:
        """Runs the step of a claim to its end, whatever that is."""
        run = self._run(claim.run_id)
        if run is None:
            # The run has ended, and its tickets with it.
            claim.finish(state=TicketState.CANCELLED)
            return
        request = StepRequest.from_text(claim.payload)
        speaker = _Speaker(claim)
        try:
            with capturing(speaker.hear), cancellable(claim.should_stop):
                run_step(self._jobs.job_of(run), run, self._instance, request)
        except Exception as error:  # noqa: BLE001 (the run decides what follows)
            _log.exception("%s could not be run", claim.ticket_id)
            speaker.say(final=True, error=f"{type(error).__name__}: {error}")
            return
        if claim.reason is None or speaker.succeeded:
            speaker.say(final=True)
        elif claim.reason is StopReason.DRAINING:
            claim.give_back()
        elif claim.reason is StopReason.CANCELLED:
            claim.finish(state=TicketState.CANCELLED)

    def _run(self, run_id: str) -> DagsterRun | None:
        if run_id not in self._runs:
            text = self._engine.client.get(details_key(run_id))
            if text is None:
                return None
            self._runs[run_id] = run_from_text(str(text))
            if len(self._runs) > _KEPT_RUNS:
                self._runs.popitem(last=False)
        return self._runs[run_id]


def run_step(
    job: IJob,
    run: DagsterRun,
    instance: dg.DagsterInstance,
    request: StepRequest,
) -> None:
    """Runs one step of a run in this thread; what happens is in the events it logs."""
    plan = create_execution_plan(
        job,
        run.run_config,
        step_keys_to_execute=[request.step_key],
        known_state=request.known_state,
    )
    events = execute_plan_iterator(
        plan,
        job,
        run,
        instance,
        retry_mode=RetryMode.DEFERRED,
        run_config=run.run_config,
    )
    for _ in events:
        pass


class _Speaker:
    """Passes the events of a step on: its start at once, the others in batches."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._events: list[EventLogEntry] = []
        self._said_at = time.monotonic()
        self.succeeded = False

    def hear(self, entry: EventLogEntry) -> None:
        """Takes one event of the step."""
        event = entry.dagster_event
        self._events.append(entry)
        self.succeeded = self.succeeded or (event is not None and event.is_step_success)
        ending = event is not None and (
            event.is_step_success or event.is_step_failure or event.is_step_up_for_retry
        )
        due = time.monotonic() - self._said_at > _SAY_EVERY_S
        starting = event is not None and event.is_step_start
        # How a step ends is said once, together with the end of the claim.
        if (starting or due) and not ending and self._claim.reason is None:
            self.say(final=False)

    def say(self, *, final: bool, error: str = "") -> None:
        """Sends what was heard."""
        events = tuple(self._events)
        message = StepMessage(self._claim.ticket_id, events, final, error).to_text()
        self._events.clear()
        self._said_at = time.monotonic()
        if final:
            self._claim.finish(message)
        else:
            self._claim.say(message)
