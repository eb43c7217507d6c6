"""Running Dagster steps on behalf of a run that lives elsewhere."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from dagster import DagsterInstance, DagsterRun, EventLogEntry

from mloc_dagster.executors.cancellation import cancellable
from mloc_dagster.fleet import Claim, FleetEngine, StopReason, TicketState
from mloc_dagster.fleet.dagster.internals import run_step
from mloc_dagster.fleet.dagster.jobs import LIBRARY, Jobs
from mloc_dagster.fleet.dagster.messages import StepMessage, StepRequest, run_from_text
from mloc_dagster.services.event_log import capturing

_log = logging.getLogger(__name__)

_KEPT_RUNS = 32
_SEND_EVERY_S = 1.0


class StepWorker:
    """Runs one step at a time, and sends its run what Dagster logged.

    The events go through the claim, not into the database: those of a lost claim are rejected, and
    the run alone writes its log.

    Args:
        engine: The fleet.
        instance: Dagster's instance.
        jobs: Jobs that are loaded already; by default its own.
    """

    def __init__(
        self, engine: FleetEngine, instance: DagsterInstance, jobs: Jobs | None = None
    ) -> None:
        self._engine = engine
        self._instance = instance
        self._jobs = jobs or Jobs()
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
        sender = _EventSender(claim)
        try:
            with capturing(sender.add), cancellable(claim.should_stop):
                job = self._jobs.job_of(run)
                run_step(job, run, self._instance, request.step_key, request.known_state)
        except Exception as error:  # noqa: BLE001 (the run decides what follows)
            _log.exception("%s could not be run", claim.ticket_id)
            sender.send(final=True, error=f"{type(error).__name__}: {error}")
            return
        if claim.reason is None or sender.succeeded:
            sender.send(final=True)
        elif claim.reason is StopReason.DRAINING:
            claim.give_back()
        elif claim.reason is StopReason.CANCELLED:
            claim.finish(state=TicketState.CANCELLED)

    def _run(self, run_id: str) -> DagsterRun | None:
        if run_id not in self._runs:
            details = self._engine.run_details(run_id)
            if details is None:
                return None
            self._runs[run_id] = run_from_text(details)
            if len(self._runs) > _KEPT_RUNS:
                self._runs.popitem(last=False)
        return self._runs[run_id]


class _EventSender:
    """Passes the events of a step on: its start at once, the others in batches."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._events: list[EventLogEntry] = []
        self._sent_at = time.monotonic()
        self.succeeded = False

    def add(self, entry: EventLogEntry) -> None:
        """Takes one event of the step."""
        event = entry.dagster_event
        self._events.append(entry)
        self.succeeded = self.succeeded or (event is not None and event.is_step_success)
        ending = event is not None and (
            event.is_step_success or event.is_step_failure or event.is_step_up_for_retry
        )
        due = time.monotonic() - self._sent_at > _SEND_EVERY_S
        starting = event is not None and event.is_step_start
        # How a step ends is sent once, together with the end of the claim.
        if (starting or due) and not ending and self._claim.reason is None:
            self.send(final=False)

    def send(self, *, final: bool, error: str = "") -> None:
        """Sends the events that wait; the last message ends the claim."""
        events = tuple(self._events)
        message = StepMessage(self._claim.ticket_id, events, final, error).to_text()
        self._events.clear()
        self._sent_at = time.monotonic()
        if final:
            self._claim.finish(message)
        else:
            self._claim.say(message)
