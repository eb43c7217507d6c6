"""The training of a task, within the op that carries its only shard."""

import time
from datetime import UTC, datetime

import dagster as dg
from dagster import DagsterEvent
from dagster._core.events import EngineEventData

from mloc_dagster.events.bus import publish
from mloc_dagster.events.model import TaskEvent, TaskEventType
from mloc_dagster.events.payloads import Payload, TrainingFigures
from mloc_dagster.executors.cancellation import cancel_requested
from mloc_dagster.executors.open_task import OpenTask
from mloc_dagster.executors.shard_run import ShardReport, worker_name
from mloc_dagster.executors.training.messages import Progress
from mloc_dagster.executors.training_end import conclude
from mloc_dagster.executors.training_run import run_training
from mloc_dagster.executors.training_start import make_room, process_count, weights_of
from mloc_dagster.fleet.worker.models import process_model_cache
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.training_summary import (
    TRAINING_NAME,
    TrainingSummary,
    read_training,
)
from mloc_dagster.settings import settings

EVENT_EVERY_S = 0.5


def train_shard(
    context: dg.OpExecutionContext, opened: OpenTask, shard: Shard, about: TaskEvent
) -> ShardReport:
    """Trains; see `executors.training_run`."""
    spec, folder = opened.training_spec, opened.folder
    attempt = context.retry_number + 1
    if folder.exists(TRAINING_NAME):  # all was done, and whoever did it could not say so
        return _report(shard, attempt, read_training(folder), rows_computed=0)
    make_room(spec, process_model_cache(), context.log.info)
    done = run_training(
        folder,
        shard.task_id,
        spec,
        shard,
        attempt=attempt,
        ranks=process_count(spec),
        start_from=weights_of(spec, folder.store),
        cancelled=cancel_requested,
        on_progress=TrainingNews(context, about).tell,
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


class TrainingNews:
    """Publishes how far a training is, and notes it in the run's log now and then."""

    def __init__(self, context: dg.OpExecutionContext, about: TaskEvent) -> None:
        self._context = context
        self._about = about
        self._told = self._noted = 0.0
        self._began: tuple[float, int] | None = None
        self._known: dict[str, float] = {}

    def tell(self, progress: Progress) -> None:
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
