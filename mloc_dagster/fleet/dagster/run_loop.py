"""One run on the fleet: its loop over ready steps, running tickets and what workers say."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass

from dagster import (
    DagsterEvent,
    DagsterExecutionInterruptedError,
    DagsterInstance,
    DagsterRun,
    EventLogEntry,
    Executor,
)

from mloc_dagster.errors import FleetUnavailableError
from mloc_dagster.executors import cancellable
from mloc_dagster.fleet.access import open_engine
from mloc_dagster.fleet.claims import Claim, StopReason
from mloc_dagster.fleet.dagster.internals import (
    ActiveExecution,
    ExecutionPlan,
    ExecutionStep,
    IJob,
    InstanceConcurrencyContext,
    PlanOrchestrationContext,
    RetryMode,
    StepFailureData,
    StepRetryData,
    ask_again,
    fact_of,
    in_flight,
    rebuild,
    replayable,
    run_step,
)
from mloc_dagster.fleet.dagster.messages import (
    Requeue,
    StepMessage,
    StepRequest,
    requeue_data,
    run_to_text,
    state_for_step,
)
from mloc_dagster.fleet.dagster.tickets import (
    TicketWatch,
    requirements_of_step,
    retries_of_step,
    tags_of_step,
    ticket_for,
)
from mloc_dagster.fleet.engine import FleetEngine
from mloc_dagster.services import (
    DATABASE_AWAY,
    EngineEventData,
    EventLog,
    SerializableErrorInfo,
    capturing,
)
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_CANCEL_GRACE_S = 5.0
_LOCAL_STEPS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Carrier:
    """What a run worker carries a run with.

    Attributes:
        engine: Carries the run's steps.
        claim: The claim on the run itself.
    """

    engine: FleetEngine
    claim: Claim


_carrier: ContextVar[Carrier | None] = ContextVar("run_carrier", default=None)


def current_carrier() -> Carrier | None:
    """Returns what carries this thread's run; None outside run workers."""
    return _carrier.get()


@contextmanager
def carried_by(carrier: Carrier) -> Generator[None]:
    """Makes `carrier` the one of this thread's run."""
    token = _carrier.set(carrier)
    try:
        yield
    finally:
        _carrier.reset(token)


def fleet_executor() -> FleetExecutor:
    """Returns the executor of a run: over its run worker's engine, or the configured one."""
    carrier = current_carrier()
    return FleetExecutor(open_engine() if carrier is None else carrier.engine)


class FleetExecutor(Executor):
    """Runs a plan with its shards on workers; see `run_loop`.

    Args:
        engine: Carries the shards.
    """

    def __init__(self, engine: FleetEngine) -> None:
        self._engine = engine

    @property
    def retries(self) -> RetryMode:
        """Steps are retried as their ops say."""
        return RetryMode.ENABLED

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Runs the plan; yields every event of the run.

        Raises:
            DagsterExecutionInterruptedError: If the run was cancelled, or its worker is to stop
                and another one will go on with it; also when the database or the fleet stayed away
                for too long, which is no fault of the run.
        """
        instance = plan_context.instance
        try:
            with (
                InstanceConcurrencyContext(instance, plan_context.dagster_run) as slots,
                ActiveExecution(
                    execution_plan, retry_mode=self.retries, instance_concurrency_context=slots
                ) as active,
            ):
                yield from RunLoop(self._engine, plan_context, active).run()
        except (*DATABASE_AWAY, FleetUnavailableError) as error:
            if current_carrier() is None:
                raise
            raise DagsterExecutionInterruptedError(f"the run waits for {error}") from error


class RunLoop:
    """Drives `ActiveExecution` with steps on workers and steps in threads of this process.

    This loop is the only writer of its run's events: what workers log comes through the inbox, is
    written in one transaction, and only then counts and leaves the inbox. A run worker that dies
    in between leaves messages that its successor recognises by what is in the log already.
    """

    def __init__(
        self,
        engine: FleetEngine,
        context: PlanOrchestrationContext,
        active: ActiveExecution,
    ) -> None:
        self._engine = engine
        self._context = context
        self._active = active
        self._run_id = context.run_id
        carrier = current_carrier()
        self._claim = None if carrier is None else carrier.claim
        self._watch = TicketWatch(engine, self._run_id)
        self._steps = _LocalSteps(
            context.job,
            context.dagster_run,
            context.instance,
            wake=lambda: engine.notify(self._run_id),
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
            self._engine.submit(*tickets)

    def _tags_of(self, step: ExecutionStep) -> Mapping[str, str]:
        return tags_of_step(step.tags, self._context.dagster_run.tags)

    def _resume(self) -> Iterator[DagsterEvent]:
        self._note("a new run worker goes on with this run")
        entries = self._context.instance.all_logs(self._run_id)
        known = {fact_of(entry) for entry in entries}
        messages = self._engine.messages(self._run_id)
        fresh = [
            entry
            for text in messages
            for entry in StepMessage.from_text(text).events
            if fact_of(entry) not in known
        ]
        self._store(fresh)
        self._engine.remove_messages(self._run_id, messages)
        events = replayable([*entries, *fresh])
        yield from events
        steps = rebuild(self._active, [each for each in events if each.step_key])
        self._launch(steps, again=True)

    # Hearing

    def _hear(self) -> Iterator[DagsterEvent]:
        for ended in self._steps.ended():
            self._store(ended.events)
            yield from self._take_in(ended.step_key, ended.events, final=True, error=ended.error)
        texts = self._engine.messages(self._run_id)
        messages = [StepMessage.from_text(text) for text in texts]
        self._store([entry for message in messages for entry in message.events])
        if texts:
            self._engine.remove_messages(self._run_id, texts)
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
        if in_flight(self._active, step_key):
            # The step ended without Dagster saying how: a resource failed, or its process did.
            why = error or f"{step_key} ended without a word"
            yield from self._fail(step_key, engine_error or SerializableErrorInfo(why, [], None))

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


@dataclass(frozen=True, slots=True)
class _EndedStep:
    """A step that has ended.

    Attributes:
        step_key: The step.
        events: What Dagster logged.
        error: Why it could not be run at all; empty for a step that Dagster ran.
    """

    step_key: str
    events: list[EventLogEntry]
    error: str


class _LocalSteps:
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
        instance: DagsterInstance,
        *,
        wake: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._job = job
        self._run = run
        self._instance = instance
        self._wake = wake
        self._stopping = stopping
        self._threads = ThreadPoolExecutor(_LOCAL_STEPS_AT_ONCE, thread_name_prefix="mloc-step")
        self._ended: queue.SimpleQueue[_EndedStep] = queue.SimpleQueue()

    def start(self, request: StepRequest) -> None:
        """Runs a step in a thread of its own."""
        self._threads.submit(copy_context().run, self._perform, request)

    def _perform(self, request: StepRequest) -> None:
        events: list[EventLogEntry] = []
        why = ""
        try:
            with capturing(events.append), cancellable(self._stopping):
                run_step(
                    self._job, self._run, self._instance, request.step_key, request.known_state
                )
        except Exception as error:  # noqa: BLE001 (the run decides what follows)
            _log.exception("%s could not be run", request.step_key)
            why = f"{type(error).__name__}: {error}"
        self._ended.put(_EndedStep(request.step_key, events, why))
        self._wake()

    def ended(self) -> list[_EndedStep]:
        """Returns the steps that ended since the last call."""
        found: list[_EndedStep] = []
        while not self._ended.empty():
            found.append(self._ended.get())
        return found

    def close(self) -> None:
        """Waits for running steps; none starts any more."""
        self._threads.shutdown(wait=True, cancel_futures=True)
