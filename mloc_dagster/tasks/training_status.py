"""How far a training is, by what it left, else what it last said, else its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.events.recall import LastNews
from mloc_dagster.executors.training.checkpoints import published_checkpoints
from mloc_dagster.results.record import RECORD_NAME, read_record
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.training_summary import TrainingSummary, read_training
from mloc_dagster.schema.task_type import find_task_type
from mloc_dagster.wire import TrainingView

LastWord = Callable[[str, datetime], LastNews | None]
"""Takes a task and when it was submitted; returns what it last said."""


def training_status(
    task_id: str,
    submitted_at: datetime,
    last_word: LastWord,
    *,
    runs: bool,
    now: datetime | None = None,
) -> TrainingView | None:
    """Returns how far a task is that trains; None if it is no training, or has no record yet.

    Args:
        task_id: The task.
        submitted_at: Before that it said nothing.
        last_word: Tells what a task last said.
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
        news = last_word(task_id, submitted_at)
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


def _left(news: LastNews, now: datetime) -> float | None:
    told = news.event.payload.eta_s
    if told is None:
        return None
    return round(max(told - (now - news.event.ts).total_seconds(), 0.0), 1)
