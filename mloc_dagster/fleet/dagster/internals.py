"""Private names of Dagster that make runs and carry them out.

`services/internals.py` has those about its instance and storages; nothing else imports from Dagster
what Dagster does not offer. Dagster is pinned to a minor version, and
`tests/contract/test_dagster_internals.py` says of each name what mloc relies on, and what to do
when a new version fails it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dagster import DagsterEvent, DagsterInstance, DagsterRun, EventLogEntry
from dagster._core.code_pointer import CodePointer, CustomPointer, ModuleCodePointer
from dagster._core.definitions.job_base import IJob, InMemoryJob
from dagster._core.definitions.reconstruct import (
    ReconstructableRepository,
    reconstruct_repository_def_from_pointer,
)
from dagster._core.definitions.repository_definition.valid_definitions import (
    SINGLETON_REPOSITORY_NAME,
)
from dagster._core.execution.api import (
    create_execution_plan,
    execute_plan_iterator,
    execute_run_iterator,
)
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus as RunWorkerStatus,
)
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.snap import snapshot_from_execution_plan
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClass

from mloc_dagster.services import PRIORITY_TAG, SqlEventLogStorage

__all__ = [
    "GRPC_INFO_TAG",
    "SINGLETON_REPOSITORY_NAME",
    "ActiveExecution",
    "CheckRunHealthResult",
    "CodePointer",
    "ConfigurableClass",
    "CustomPointer",
    "ExecutionPlan",
    "ExecutionStep",
    "IJob",
    "InMemoryJob",
    "InstanceConcurrencyContext",
    "KnownExecutionState",
    "LaunchRunContext",
    "ModuleCodePointer",
    "PlanOrchestrationContext",
    "ReconstructableRepository",
    "RegisteredCodeLocationOrigin",
    "RemoteJobOrigin",
    "RemoteRepositoryOrigin",
    "ResumeRunContext",
    "RetryMode",
    "RunLauncher",
    "RunWorkerStatus",
    "StepFailureData",
    "StepRetryData",
    "ask_again",
    "create_execution_plan",
    "drive_run",
    "fact_of",
    "free_ended_steps",
    "in_flight",
    "rebuild",
    "reconstruct_repository_def_from_pointer",
    "replayable",
    "run_step",
    "snapshot_from_execution_plan",
]


# Runs and steps


def drive_run(job: IJob, run: DagsterRun, instance: DagsterInstance, *, resume: bool) -> None:
    """Executes a run with its job's executor, to its end; what happens is in its log.

    Args:
        job: The run's job.
        run: The run.
        instance: Where it is.
        resume: Whether another process has begun it.
    """
    for _ in execute_run_iterator(job, run, instance, resume_from_failure=resume):
        pass


def run_step(
    job: IJob,
    run: DagsterRun,
    instance: DagsterInstance,
    step_key: str,
    known_state: KnownExecutionState,
) -> None:
    """Runs one step of a run in this thread; what happens is in the events it logs."""
    plan = create_execution_plan(
        job,
        run.run_config,
        step_keys_to_execute=[step_key],
        known_state=known_state,
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


def in_flight(active: ActiveExecution, step_key: str) -> bool:
    """Returns whether a step was handed out and has not ended."""
    return step_key in active._in_flight  # noqa: SLF001


# The state of a run that another process began


Fact = tuple[str | None, str | None, float]


def fact_of(entry: EventLogEntry) -> Fact:
    """Returns what tells an event from every other one of its run."""
    return (entry.step_key, entry.message or entry.user_message, entry.timestamp)


def replayable(entries: Sequence[EventLogEntry]) -> list[DagsterEvent]:
    """Returns the events from which Dagster can rebuild the state of a run.

    Two things differ from the log. A retry that has begun since waits no longer: Dagster would
    hold the step back anew and stumble over its next event. And skipped steps are left out, which
    Dagster skips again by itself.
    """
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    last_seen = {event.step_key: position for position, event in enumerate(events)}
    return [
        _without_wait(event) if last_seen[event.step_key] > position else event
        for position, event in enumerate(events)
        if not event.is_step_skipped
    ]


def _without_wait(event: DagsterEvent) -> DagsterEvent:
    if not event.is_step_up_for_retry:
        return event
    return event._replace(event_specific_data=event.step_retry_data._replace(seconds_to_wait=None))


def rebuild(active: ActiveExecution, events: Sequence[DagsterEvent]) -> list[ExecutionStep]:
    """Brings a run's state up to the end of its log; returns the steps to go on with.

    Pools are left out of the replay: a step of the log had its slot then, and Dagster stumbles when
    it gets none now. Afterwards the steps that are still to end ask for theirs; one that has a slot
    keeps it, and one that gets none waits as any other.
    """
    slots = active._instance_concurrency_context  # noqa: SLF001
    active._instance_concurrency_context = None  # noqa: SLF001
    try:
        steps = active.rebuild_from_events(events)
    finally:
        active._instance_concurrency_context = slots  # noqa: SLF001
    if slots is not None:
        _free_ended(slots, active)
    ready: list[ExecutionStep] = []
    for step in steps:
        priority = int(step.tags.get(PRIORITY_TAG, "0"))
        if slots is None or step.pool is None or slots.claim(step.pool, step.key, priority):
            ready.append(step)
        else:
            active._in_flight.remove(step.key)  # noqa: SLF001
            active._executable.append(step.key)  # noqa: SLF001
    return ready


# Pools


def ask_again(active: ActiveExecution, instance: DagsterInstance, run_id: str) -> None:
    """Lets those waiting steps ask for a slot at once that a pool keeps one for.

    By themselves they ask at intervals that grow to fifteen seconds, and the slot that is kept for
    one of them stays empty until then.
    """
    slots = active._instance_concurrency_context  # noqa: SLF001
    if slots is None or not slots.has_pending_claims():
        return
    pools = {active.get_step_by_key(each).pool for each in slots.pending_claim_steps()}
    for pool in pools - {None}:
        for step in instance.event_log_storage.get_concurrency_info(str(pool)).pending_steps:
            if step.run_id == run_id and step.assigned_timestamp is not None:
                slots._pending_timeouts[step.step_key] = 0.0  # noqa: SLF001


def _free_ended(slots: InstanceConcurrencyContext, active: ActiveExecution) -> None:
    """Frees what steps of this run hold that have ended; see `free_ended_steps`."""
    known = active._success | active._failed | set(active.retry_state.snapshot_attempts())  # noqa: SLF001
    ended = known - active._in_flight  # noqa: SLF001
    storage = slots._instance.event_log_storage  # noqa: SLF001
    for pool in {active.get_step_by_key(each).pool for each in ended} - {None}:
        free_ended_steps(storage, str(pool), slots._run_id, ended)  # noqa: SLF001


def free_ended_steps(
    storage: EventLogStorage, pool: str, run_id: str, ended: Collection[str]
) -> None:
    """Gives slots of a pool that ended steps held to steps that wait.

    Dagster does this in three transactions once the end of a step is in the log: the slot is freed,
    the step's entry in the queue removed, the next entry assigned. A run worker may die before any
    of them, and nobody else would ever do the rest: the pool would stand still.

    Args:
        storage: Where the pools are.
        pool: The pool.
        run_id: The run whose worker died.
        ended: Its steps that have ended.
    """
    info = storage.get_concurrency_info(pool)
    kept = {(each.run_id, each.step_key) for each in (*info.claimed_slots, *info.pending_steps)}
    for step_key in ended:
        if (run_id, step_key) in kept:
            storage.free_concurrency_slot_for_step(run_id, step_key)
    if isinstance(storage, SqlEventLogStorage):
        waiting = sum(each.assigned_timestamp is None for each in info.pending_steps)
        for _ in range(min(waiting, info.slot_count)):
            if storage.has_unassigned_slots(pool):
                storage.assign_pending_steps([pool])
