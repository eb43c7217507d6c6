"""The state and progress of a task, derived from Dagster, the fleet and the store.

This is the one place where a `TaskState` follows from a run; the ledger keeps what is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus, RunRecord

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.events import LastProgress
from mloc_dagster.executors import published_checkpoints, shard_log_name
from mloc_dagster.fleet import FleetEngine, TicketState, TicketStatus, run_ticket_id
from mloc_dagster.ops import DEAD_LETTER_TAG, RunTask
from mloc_dagster.planning import Plan, Shard
from mloc_dagster.results import (
    RECORD_NAME,
    SUMMARY_NAME,
    Folder,
    TaskSummary,
    TrainingSummary,
    finished_rows,
    open_store,
    plan_of,
    read_record,
    read_training,
)
from mloc_dagster.schema import Retries, find_task_type
from mloc_dagster.services import StepEventStatus
from mloc_dagster.tasks.steps import Steps, failures_of, setbacks_of, shard_of, steps_of
from mloc_dagster.tasks.workflows import Workflow
from mloc_dagster.wire import Shards, TaskDetail, TaskState, TrainingView


def summary_of(folder: Folder) -> TaskSummary | None:
    """Returns a task's summary; None before it was aggregated."""
    try:
        return TaskSummary.model_validate_json(folder.read_bytes(SUMMARY_NAME))
    except FileNotFoundError:
        return None


def rows_finished(folder: Folder, plan: Plan, complete: Collection[int]) -> int:
    """Returns how many rows a task has.

    Args:
        folder: The task's folder.
        plan: Its plan.
        complete: Shards whose rows are all there, which are not read for it.
    """
    return sum(
        shard.rows if shard.index in complete else finished_rows(folder, shard).count
        for shard in plan.shards
    )


def last_log_lines(folder: Folder, shard: Shard, count: int) -> tuple[str, ...]:
    """Returns the end of a shard's log."""
    try:
        text = folder.read_bytes(shard_log_name(shard)).decode()
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines()[-count:])


_MOST_ATTEMPTS = 1 + max(
    (each.le for each in Retries.model_fields["max"].metadata if hasattr(each, "le")), default=0
)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the state of a task follows from.

    Attributes:
        run: The status of the newest run that works on it.
        claimed: Whether a run worker has that run.
        exported: Whether its last step succeeded.
        failed: Whether one of its steps failed for good.
        dead: Whether the run is marked with it as a dead letter.
        upstream_done: Whether the tasks that it depends on are done.
        shards: Its shards.
    """

    run: DagsterRunStatus
    claimed: bool = True
    exported: bool = False
    failed: bool = False
    dead: bool = False
    upstream_done: bool = True
    shards: Shards = field(default_factory=Shards)


_QUEUED = (
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.MANAGED,
)


def task_state(facts: TaskFacts) -> TaskState:
    """Returns how a task is."""
    if facts.exported or facts.run is DagsterRunStatus.SUCCESS:
        return TaskState.DONE
    if facts.run is DagsterRunStatus.CANCELED:
        return TaskState.CANCELLED
    if facts.run is DagsterRunStatus.FAILURE:
        return TaskState.DEAD if facts.dead else TaskState.FAILED
    if facts.run in _QUEUED:
        return TaskState.PENDING
    if facts.run is DagsterRunStatus.STARTING:
        return TaskState.DISPATCHED if facts.claimed else TaskState.PENDING
    return _of_started(facts)


def _of_started(facts: TaskFacts) -> TaskState:
    shards = facts.shards
    if facts.failed and not shards.running:
        return TaskState.FAILED
    if not facts.upstream_done:
        return TaskState.WAITING
    if not shards.total:
        return TaskState.DISPATCHED
    if shards.queued and not shards.running:
        return TaskState.PENDING
    return TaskState.RUNNING


def status_of(
    instance: dg.DagsterInstance,
    engine: FleetEngine | None,
    workflow: Workflow,
    task: RunTask,
    *,
    count_rows: bool = True,
) -> TaskDetail:
    """Returns how a task is now.

    Args:
        instance: Whose runs.
        engine: Who knows about tickets; None where there is no fleet.
        workflow: Where the task belongs.
        task: The task.
        count_rows: Whether to read how far it is.
    """
    records = workflow.runs_of(task) or list(workflow.runs)
    run = records[-1].dagster_run
    steps = steps_of(instance, [each.dagster_run for each in workflow.runs])
    own = {key: step for key, step in steps.items() if task.owns(key)}
    folder = open_store().task(task.task_id)
    plan = plan_of(folder)
    tickets = {} if run.is_finished or engine is None else _tickets(engine, run, task, own, plan)
    shards = _count(own, plan, tickets, ended=run.is_finished)
    missing = _missing_upstream(workflow, task, steps, folder)
    claimed = _run_ticket(engine, run)
    facts = TaskFacts(
        run=run.status,
        claimed=claimed is None or claimed.state is TicketState.RUNNING,
        exported=task.last_step in own and own[task.last_step].succeeded,
        failed=any(step.status is StepEventStatus.FAILURE for step in own.values()),
        dead=task.task_id in run.tags.get(DEAD_LETTER_TAG, "").split(","),
        upstream_done=not missing,
        shards=shards,
    )
    state = task_state(facts)
    finished, errors = _rows(folder, plan, own, task) if count_rows else (None, None)
    failures = failures_of(instance, run.run_id, task) if facts.failed else ()
    setbacks = setbacks_of(instance, run.run_id, task)
    return TaskDetail(
        task_id=task.task_id,
        workflow_id=workflow.workflow_id,
        node=task.node,
        task_type=task.task_type,
        template=workflow.template,
        status=state,
        run_id=run.run_id,
        runs=len(records),
        submitted_at=workflow.runs[0].create_timestamp,
        ended_at=_ended_at(records[-1]),
        waiting_for=_waiting_for(state, missing, tickets, claimed),
        shards=shards,
        rows=None if plan is None else plan.rows,
        retries=setbacks.retries,
        losses=setbacks.losses,
        workers={
            index: each.worker_id
            for index, each in tickets.items()
            if each.state is TicketState.RUNNING and each.worker_id
        },
        folder=folder.url,
        error="" if state is TaskState.DONE or not failures else failures[-1].message,
        rows_finished=finished,
        errors=errors,
    )


def _ended_at(record: RunRecord) -> datetime | None:
    seconds = record.end_time
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone()


def _run_ticket(engine: FleetEngine | None, run: DagsterRun) -> TicketStatus | None:
    if engine is None or run.status is not DagsterRunStatus.STARTING:
        return None
    ticket_id = run_ticket_id(run.run_id)
    return engine.status([ticket_id])[ticket_id]


def _missing_upstream(workflow: Workflow, task: RunTask, steps: Steps, folder: Folder) -> list[str]:
    """Returns the nodes that a task depends on and that are not done."""
    undone = [
        each
        for each in workflow.tasks()
        if not (each.last_step in steps and steps[each.last_step].succeeded)
    ]
    if folder.exists(RECORD_NAME):
        upstream = read_record(folder).upstream
        return [each.node for each in undone if each.node in upstream]
    # Its first step writes what it depends on; until then it can only be one before it.
    return [each.node for each in undone[: undone.index(task)]] if task in undone else []


def _tickets(
    engine: FleetEngine, run: DagsterRun, task: RunTask, steps: Steps, plan: Plan | None
) -> dict[int, TicketStatus]:
    """Returns the ticket of each shard that waits for a worker or is on one."""
    ids: dict[str, int] = {}
    for shard in plan.shards if plan else ():
        step_key = f"{task.steps}.run_shard[{shard.key}]"
        if step_key not in steps or not steps[step_key].succeeded:
            for attempt in range(1, _MOST_ATTEMPTS + 1):
                ids[f"{run.run_id}:{step_key}:{attempt}"] = shard.index
    live = (TicketState.QUEUED, TicketState.RUNNING)
    return {ids[key]: each for key, each in engine.status(ids).items() if each.state in live}


def _count(
    steps: Steps, plan: Plan | None, tickets: Mapping[int, TicketStatus], *, ended: bool
) -> Shards:
    by_shard = {index: step for key, step in steps.items() if (index := shard_of(key)) is not None}
    total = len(plan.shards) if plan else 0
    done = sum(step.succeeded for step in by_shard.values())
    failed = sum(step.status is StepEventStatus.FAILURE for step in by_shard.values())
    running = sum(each.state is TicketState.RUNNING for each in tickets.values())
    if not ended and not tickets:
        # Where no fleet carries them, only Dagster knows.
        running = sum(step.status is StepEventStatus.IN_PROGRESS for step in by_shard.values())
    queued = max(0, total - done - failed - running)
    return Shards(queued=queued, running=running, done=done, failed=failed)


def _rows(
    folder: Folder, plan: Plan | None, steps: Steps, task: RunTask
) -> tuple[int | None, int | None]:
    """Returns how many rows are there, and how many of these ended with an error."""
    if plan is None:
        return None, None
    aggregate = f"{task.steps}.aggregate"
    # Not only once it is exported: more errors than it may have keep a task from that.
    if aggregate in steps and steps[aggregate].succeeded:
        summary = summary_of(folder)
        return plan.rows, None if summary is None else summary.errors
    complete = {
        index
        for key, step in steps.items()
        if step.succeeded and (index := shard_of(key)) is not None
    }
    return rows_finished(folder, plan, complete), None


def _waiting_for(
    state: TaskState,
    missing: list[str],
    tickets: Mapping[int, TicketStatus],
    run_ticket: TicketStatus | None,
) -> str:
    if state is TaskState.WAITING:
        return f"tasks it depends on: {', '.join(missing)}"
    if state is TaskState.PENDING and run_ticket is not None:
        return run_ticket.why
    if state is TaskState.PENDING and not tickets:
        return "its turn in the queue of runs, or its next attempt"
    reasons = {each.why: None for each in tickets.values() if each.state is TicketState.QUEUED}
    return "; ".join(filter(None, reasons))


FindLastProgress = Callable[[str, datetime], LastProgress | None]
"""Takes a task and when it was submitted; returns what it last said."""


def training_status(
    task_id: str,
    submitted_at: datetime,
    last_progress: FindLastProgress,
    *,
    runs: bool,
    now: datetime | None = None,
) -> TrainingView | None:
    """Returns how far a task is that trains; None if it is no training, or has no record yet.

    Args:
        task_id: The task.
        submitted_at: Before that it said nothing.
        last_progress: Tells what a task last said.
        runs: Whether it is at work.
        now: The time; the clock's by default.
    """
    folder = open_store().task(task_id)
    if not _trains(folder):
        return None
    checkpoint = _newest_checkpoint(folder)
    try:
        return _done(read_training(folder), checkpoint)
    except IncompleteResultsError:
        news = last_progress(task_id, submitted_at)
    if news is None or news.event.payload.training is None:
        return TrainingView(step=checkpoint or 0, checkpoint=checkpoint)
    figures, told_at = news.event.payload.training, news.event.ts
    if news.superseded:
        # Steps after the checkpoint are lost, and the figures were those of such steps.
        return TrainingView(
            step=checkpoint or 0,
            steps=figures.steps or None,
            checkpoint=checkpoint,
            told_at=told_at,
        )
    return TrainingView(
        step=figures.step,
        steps=figures.steps or None,
        metrics=figures.metrics,
        steps_per_s=figures.steps_per_s if runs and figures.steps_per_s else None,
        eta_s=_left(news, now or datetime.now(UTC)) if runs else None,
        checkpoint=checkpoint,
        told_at=told_at,
    )


def _trains(folder: Folder) -> bool:
    if not folder.exists(RECORD_NAME):
        return False
    return find_task_type(read_record(folder).task_type).trains


def _newest_checkpoint(folder: Folder) -> int | None:
    names = published_checkpoints(folder)
    return int(names[-1].rpartition("-")[2]) if names else None


def _done(summary: TrainingSummary, checkpoint: int | None) -> TrainingView:
    loss = {} if summary.loss is None else {"loss": summary.loss}
    return TrainingView(
        step=summary.steps,
        steps=summary.steps,
        metrics={**loss, **summary.metrics},
        seconds=summary.seconds,
        checkpoint=checkpoint,
        gate=summary.gate,
        told_at=summary.finished_at,
    )


def _left(news: LastProgress, now: datetime) -> float | None:
    told = news.event.payload.eta_s
    if told is None:
        return None
    return round(max(told - (now - news.event.ts).total_seconds(), 0.0), 1)
