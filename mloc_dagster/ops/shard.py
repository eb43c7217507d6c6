"""The op that computes one shard, or trains."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache

import dagster as dg
from dagster import DagsterEvent

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.events import (
    Payload,
    ShardPlace,
    TaskEvent,
    TaskEventType,
    TrainingFigures,
    publish,
)
from mloc_dagster.executors import (
    OpenTask,
    Progress,
    ShardReport,
    cancel_requested,
    conclude,
    make_room,
    open_task,
    process_count,
    run_shard,
    run_training,
    weights_of,
    worker_name,
)
from mloc_dagster.fleet import model_cache
from mloc_dagster.ops.failures import retry_or_fail
from mloc_dagster.ops.io import IO_MANAGER_KEY
from mloc_dagster.ops.plan import retries_errors
from mloc_dagster.ops.progress import ProgressBatches, ProgressNotes
from mloc_dagster.ops.run_tags import op_name
from mloc_dagster.ops.tracking import tracked_run
from mloc_dagster.planning import Shard
from mloc_dagster.results import TRAINING_NAME, TrainingSummary, read_training
from mloc_dagster.schema import TrainingSpec
from mloc_dagster.services import EngineEventData
from mloc_dagster.settings import settings

EVENT_EVERY_S = 0.5


def train_shard(
    context: dg.OpExecutionContext, opened: OpenTask, shard: Shard, about: TaskEvent
) -> ShardReport:
    """Trains; see `executors.training.task`."""
    spec, folder = opened.training_spec, opened.folder
    attempt = context.retry_number + 1
    if folder.exists(TRAINING_NAME):  # all was done, and whoever did it could not say so
        return _report(shard, attempt, read_training(folder), rows_computed=0)
    make_room(spec, model_cache(), context.log.info)
    done = run_training(
        folder,
        shard.task_id,
        spec,
        shard,
        attempt=attempt,
        ranks=process_count(spec),
        start_from=weights_of(spec, folder.store),
        cancelled=cancel_requested,
        on_progress=TrainingProgress(context, about).report,
        tracked=tracked_run(opened, opened.plan()),
    )
    return _report(shard, attempt, conclude(opened, done), rows_computed=shard.rows)


def _report(
    shard: Shard, attempt: int, summary: TrainingSummary, *, rows_computed: int
) -> ShardReport:
    return ShardReport(
        task_id=shard.task_id,
        shard=shard.index,
        attempt=attempt,
        rows_computed=rows_computed,
        rows_resumed=shard.rows - rows_computed,
        errors=0,
        prompt_tokens=0,
        completion_tokens=0,
        seconds=summary.seconds,
        load_seconds=0.0,
        worker=worker_name(),
        engine=summary.device,
        started_at=summary.started_at,
        finished_at=summary.finished_at,
    )


class TrainingProgress:
    """Publishes how far a training is, and notes it in the run's log now and then."""

    def __init__(self, context: dg.OpExecutionContext, about: TaskEvent) -> None:
        self._context = context
        self._about = about
        self._told = self._noted = 0.0
        self._began: tuple[float, int] | None = None
        self._known: dict[str, float] = {}

    def report(self, progress: Progress) -> None:
        """Takes one report of the training."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, progress.step
        self._known |= progress.metrics
        last = progress.step >= progress.total > 0
        if last or now - self._told >= EVENT_EVERY_S:
            self._told = now
            self._publish(progress, now)
        if now - self._noted >= settings().run_note_interval_s:
            self._noted = now
            self._note(progress)

    def _publish(self, progress: Progress, now: float) -> None:
        began, first = self._began or (now, progress.step)
        speed = (progress.step - first) / (now - began) if now > began else 0.0
        figures = TrainingFigures(
            step=progress.step,
            steps=progress.total,
            steps_per_s=round(speed, 4),
            metrics=self._known,
        )
        left = max(progress.total - progress.step, 0)
        payload = Payload(training=figures, eta_s=round(left / speed, 1) if speed else None)
        update = {
            "type": TaskEventType.TASK_PROGRESS,
            "payload": payload,
            "ts": datetime.now(UTC),
        }
        publish(self._about.model_copy(update=update))

    def _note(self, progress: Progress) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        text = f"step {progress.step} of {progress.total}: {shown}"
        step = self._context.get_step_execution_context()
        DagsterEvent.engine_event(step, text, EngineEventData(metadata=dict(self._known)))


CHANGED_MODEL_TAG = ".dagster/mloc_accept_changed_model"


@cache
def shard_op(pool: str | None = None) -> dg.OpDefinition:
    """Returns the op that computes one shard.

    Args:
        pool: The Dagster pool that caps how many of its steps run at once, over all runs.
    """

    @dg.op(
        name="mloc_run_shard" + ("" if pool is None else f"_{op_name(pool)}"),
        ins={"shard": dg.In(Shard)},
        out=dg.Out(
            ShardReport,
            io_manager_key=IO_MANAGER_KEY,
            description="What computing the shard took.",
        ),
        description="Computes the rows of one shard that are not there yet.",
        pool=pool,
    )
    def run_shard_op(context: dg.OpExecutionContext, shard: Shard) -> ShardReport:
        return compute_shard(context, shard)

    return run_shard_op


def compute_shard(context: dg.OpExecutionContext, shard: Shard) -> ShardReport:
    """Computes one shard: rows, or a whole training."""
    opened = open_task(shard.task_id)
    attempt = context.retry_number + 1
    about = TaskEvent(
        type=TaskEventType.SHARD_STARTED,
        task_id=shard.task_id,
        run_id=context.run_id,
        node=opened.task.name,
        attempt=attempt,
        shard=ShardPlace(index=shard.index, total=shard.total),
    )
    publish(about)
    try:
        with opened.reach.applied():
            if isinstance(opened.task.spec, TrainingSpec):
                report = train_shard(context, opened, shard, about)
            else:
                report = _compute_rows(context, opened, shard, about)
    except TaskCancelled as stop:
        # Nothing failed: whoever asked says what follows.
        raise retry_or_fail(stop, attempt, opened.task.spec.retries) from stop
    except Exception as error:
        context.log.warning(f"attempt {attempt} at shard {shard.key} failed: {error}")
        publish(_next(about, TaskEventType.SHARD_FAILED, error=str(error)))
        raise retry_or_fail(error, attempt, opened.task.spec.retries) from error
    payload = Payload(rows=report.rows_resumed)
    publish(_next(about, TaskEventType.SHARD_SUCCEEDED, payload=payload))
    return report


def _compute_rows(
    context: dg.OpExecutionContext, opened: OpenTask, shard: Shard, about: TaskEvent
) -> ShardReport:
    """Computes the rows that are not there yet; see `executors.shard_run`."""
    notes = ProgressNotes(
        shard,
        lambda text, data: _note(context, text, data),
        interval_s=settings().run_note_interval_s,
        due_s=_due_s(opened),
    )
    with ProgressBatches(about, also=notes.add) as progress:

        def resumed(rows: int) -> None:
            notes.resumed(rows)
            progress.resumed(rows)

        def damaged(warning: str) -> None:
            context.log.warning(warning)
            payload = Payload(reason=warning)
            publish(_next(about, TaskEventType.TASK_PROGRESS, payload=payload))

        def cancelled() -> bool:
            progress.look()  # asked between steps: the clock that a running shard has anyway
            return cancel_requested()

        return run_shard(
            opened.folder,
            shard.task_id,
            opened.spec,
            opened.plan(),
            shard,
            attempt=about.attempt,
            cache=model_cache(),
            cancelled=cancelled,
            on_rows=progress.add,
            on_resumed=resumed,
            on_damaged=damaged,
            on_counts=progress.count,
            retry_errors=retries_errors(context.run),
            accept_changed_model=context.run.tags.get(CHANGED_MODEL_TAG) == "true",
        )


def _due_s(opened: OpenTask) -> float | None:
    slo = opened.task.spec.slo
    if slo is None:
        return None
    return slo.seconds - (datetime.now(UTC) - opened.record.submitted_at).total_seconds()


def _note(context: dg.OpExecutionContext, text: str, data: Mapping[str, int | float]) -> None:
    # An engine event is in the run's log at once; an asset's metadata would be there at the end.
    step = context.get_step_execution_context()
    DagsterEvent.engine_event(step, text, EngineEventData(metadata=data))


def _next(about: TaskEvent, kind: TaskEventType, **changes: object) -> TaskEvent:
    return about.model_copy(update={"type": kind, "ts": datetime.now(UTC), **changes})
