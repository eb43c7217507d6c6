"""The op that computes one shard."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache

import dagster as dg
from dagster import DagsterEvent
from dagster._core.events import EngineEventData

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.events.bus import publish
from mloc_dagster.events.model import ShardPlace, TaskEvent, TaskEventType
from mloc_dagster.events.payloads import Payload
from mloc_dagster.executors.cancellation import cancel_requested
from mloc_dagster.executors.open_task import OpenTask, open_task
from mloc_dagster.executors.shard_run import ShardReport, run_shard
from mloc_dagster.fleet.worker.models import process_model_cache
from mloc_dagster.ops.failures import retry_or_fail
from mloc_dagster.ops.progress import ProgressBatches
from mloc_dagster.ops.progress_notes import ProgressNotes
from mloc_dagster.ops.training import train_shard
from mloc_dagster.planning.shards import Shard
from mloc_dagster.schema.task import TrainingSpec
from mloc_dagster.settings import settings

RETRY_ERRORS_TAG = "mloc/retry_errors"
CHANGED_MODEL_TAG = "mloc/accept_changed_model"


@cache
def shard_op(pool: str | None = None) -> dg.OpDefinition:
    """Returns the op that computes one shard.

    Args:
        pool: The Dagster pool that caps how many of its steps run at once, over all runs.
    """

    @dg.op(
        name="run_shard" if pool is None else f"run_shard_{pool.replace('/', '__')}",
        ins={"shard": dg.In(Shard)},
        out=dg.Out(ShardReport, description="What computing the shard took."),
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
            cache=process_model_cache(),
            cancelled=cancelled,
            on_rows=progress.add,
            on_resumed=resumed,
            on_damaged=damaged,
            retry_errors=context.run.tags.get(RETRY_ERRORS_TAG) == "true",
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
