"""One run on the fleet: its loop over ready steps, running tickets and what workers say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from dagster import DagsterEvent, EventLogEntry
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.execution.plan.step import ExecutionStep
from dagster_shared.error import SerializableErrorInfo

from mloc_dagster.fleet.claim import StopReason
from mloc_dagster.fleet.local_steps import LocalSteps
from mloc_dagster.fleet.messages import StepMessage, StepRequest, run_to_text, state_for_step
from mloc_dagster.fleet.pools import ask_again
from mloc_dagster.fleet.redis_engine import RedisFleetEngine
from mloc_dagster.fleet.replay import fact_of, rebuild, replayable
from mloc_dagster.fleet.requeue_note import Requeue, requeue_data
from mloc_dagster.fleet.run_claim import current_run_claim
from mloc_dagster.fleet.step_tags import requirements_of_step, retries_of_step, tags_of_step
from mloc_dagster.fleet.ticket_watch import TicketWatch
from mloc_dagster.fleet.tickets import ticket_for
from mloc_dagster.services.event_log import EventLog
from mloc_dagster.settings import settings

_LOOK_EVERY_S = 1.0
_CANCEL_GRACE_S = 5.0


class RunLoop:
    """Drives `ActiveExecution` with steps on workers and steps in threads of this process.

    This loop is the only writer of its run's events: what workers log comes through the inbox, is
    written in one transaction, and only then counts and leaves the inbox. A run worker that dies
    in between leaves messages that its successor recognises by what is in the log already.
    """

    def __init__(
        self,
        engine: RedisFleetEngine,
        context: PlanOrchestrationContext,
        active: ActiveExecution,
    ) -> None:
        self._engine = engine
        self._context = context
        self._active = active
        self._run_id = context.run_id
        self._claim = current_run_claim()
        self._watch = TicketWatch(engine, self._run_id)
        self._steps = LocalSteps(
            context.job,
            context.dagster_run,
            context.instance,
            wake=lambda: engine.inbox.ring(self._run_id),
            stopping=lambda: self._stop_reason() is not None,
        )

    def run(self) -> Iterator[DagsterEvent]:
        """Runs to the end of the plan; see `FleetExecutor.execute`."""
        self._engine.describe_run(self._run_id, run_to_text(self._context.dagster_run))
        try:
            if self._context.resume_from_failure:
                yield from self._resume()
            while not self._active.is_complete:
                self._stop_if_asked()
                yield from self._hear()
                yield from self._active.plan_events_iterator(self._context)
                yield from self._active.concurrency_event_iterator(self._context)
                ask_again(self._active, self._context.instance, self._run_id)
                self._launch(self._active.get_steps_to_execute())
                yield from self._look_after_tickets()
                if not self._active.is_complete:
                    self._engine.wait(self._run_id, self._patience_s())
        finally:
            self._steps.close()
            if self._claim is None:
                # Nobody goes on with a run that no run worker carries.
                self._engine.forget_run(self._run_id)

    def _patience_s(self) -> float:
        next_retry_s = self._active.sleep_interval()
        return min(_LOOK_EVERY_S, next_retry_s) if next_retry_s > 0 else _LOOK_EVERY_S

    # Starting

    def _launch(self, steps: Sequence[ExecutionStep], *, again: bool = False) -> None:
        state = self._active.get_known_state() if steps else None
        tickets = []
        for step in steps:
            assert state is not None  # noqa: S101 (for the type checker)
            upstream = step.get_execution_dependency_keys()
            request = StepRequest(step.key, state_for_step(state, step.key, upstream))
            requirements = requirements_of_step(self._tags_of(step))
            if requirements is None:
                self._steps.start(request)
            else:
                attempt = self._active.retry_state.get_attempt_count(step.key) + 1
                ticket = ticket_for(self._context.dagster_run, step, request, attempt, requirements)
                tickets.append(self._watch.follow(step.key, ticket))
        if again:
            tickets = self._watch.unlapsed(tickets)
        if tickets:
            self._engine.submit_all(tickets)

    def _tags_of(self, step: ExecutionStep) -> Mapping[str, str]:
        return tags_of_step(step.tags, self._context.dagster_run.tags)

    def _resume(self) -> Iterator[DagsterEvent]:
        self._note("a new run worker goes on with this run")
        entries = self._context.instance.all_logs(self._run_id)
        known = {fact_of(entry) for entry in entries}
        messages = self._engine.inbox.read(self._run_id, 0)
        fresh = [
            entry
            for text in messages
            for entry in StepMessage.from_text(text).events
            if fact_of(entry) not in known
        ]
        self._store(fresh)
        self._engine.inbox.remove(self._run_id, messages)
        events = replayable([*entries, *fresh])
        yield from events
        steps = rebuild(self._active, [each for each in events if each.step_key])
        self._launch(steps, again=True)

    # Hearing

    def _hear(self) -> Iterator[DagsterEvent]:
        for ended in self._steps.ended():
            self._store(ended.events)
            yield from self._take_in(ended.step_key, ended.events, final=True, error=ended.error)
        texts = self._engine.inbox.read(self._run_id, 0)
        messages = [StepMessage.from_text(text) for text in texts]
        self._store([entry for message in messages for entry in message.events])
        if texts:
            self._engine.inbox.remove(self._run_id, texts)
        for message in messages:
            step_key = self._watch.step_of(message.ticket_id)
            if step_key is not None:
                yield from self._take_in(
                    step_key, message.events, final=message.final, error=message.error
                )

    def _take_in(
        self, step_key: str, entries: Sequence[EventLogEntry], *, final: bool, error: str = ""
    ) -> Iterator[DagsterEvent]:
        engine_error: SerializableErrorInfo | None = None
        for entry in entries:
            event = entry.dagster_event
            if event is None:
                continue
            yield event
            if event.is_resource_init_failure or event.is_engine_event:
                engine_error = event.engine_event_data.error or engine_error
            elif event.step_key == step_key:
                self._active.handle_event(event)
        if not final:
            return
        self._watch.forget(step_key)
        if self._in_flight(step_key):
            # The step ended without Dagster saying how: a resource failed, or its process did.
            why = error or f"{step_key} ended without a word"
            yield from self._fail(step_key, engine_error or SerializableErrorInfo(why, [], None))

    def _in_flight(self, step_key: str) -> bool:
        return step_key in self._active._in_flight  # noqa: SLF001

    def _store(self, entries: Sequence[EventLogEntry]) -> None:
        if entries and self._claim is not None and not self._claim.is_held(settings().lease_ttl_s):
            raise DagsterExecutionInterruptedError("another run worker has this run")
        log = self._context.instance.event_log_storage
        if isinstance(log, EventLog):
            log.store_events(entries)
        else:
            for entry in entries:
                log.store_event(entry)

    # Tickets that take long

    def _look_after_tickets(self) -> Iterator[DagsterEvent]:
        for finding in self._watch.look():
            step = self._active.get_step_by_key(finding.step_key)
            if finding.fatal:
                info = SerializableErrorInfo(f"{finding.text}\n", [], None)
                yield from self._fail(finding.step_key, info, retry=finding.retry)
            else:
                self._note(finding.text, step, finding.requeue)

    def _fail(
        self, step_key: str, error: SerializableErrorInfo, *, retry: bool = True
    ) -> Iterator[DagsterEvent]:
        step = self._active.get_step_by_key(step_key)
        context = self._context.for_step(step)
        retries = retries_of_step(self._tags_of(step)) if retry else None
        failed = self._active.retry_state.get_attempt_count(step_key) + 1
        if retries is not None and failed <= retries.max:
            again = StepRetryData(error=error, seconds_to_wait=retries.wait_s(failed))
            event = DagsterEvent.step_retry_event(context, again)
        else:
            failure = StepFailureData(error=error, user_failure_data=None)
            event = DagsterEvent.step_failure_event(context, failure)
        yield event
        self._active.handle_event(event)

    def _note(
        self, text: str, step: ExecutionStep | None = None, requeue: Requeue | None = None
    ) -> None:
        context = self._context if step is None else self._context.for_step(step)
        data = EngineEventData() if requeue is None else requeue_data(requeue)
        DagsterEvent.engine_event(context, text, data)

    # Stopping

    def _stop_reason(self) -> StopReason | None:
        if self._claim is not None:
            return self._claim.reason if self._claim.should_stop() else None
        return StopReason.CANCELLED if self._active.check_for_interrupts() else None

    def _stop_if_asked(self) -> None:
        reason = self._stop_reason()
        if reason is None:
            return
        self._active.mark_interrupted()
        if reason is StopReason.CANCELLED:
            self._watch.cancel_all()
            deadline = time.monotonic() + _CANCEL_GRACE_S
            while self._watch.any_running() and time.monotonic() < deadline:
                self._engine.wait(self._run_id, 0.2)
        raise DagsterExecutionInterruptedError(reason.value)
