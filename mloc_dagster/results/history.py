"""What earlier tasks and trainings took, read from their summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from pydantic import ValidationError

from mloc_dagster.errors import IncompleteResultsError, InputError
from mloc_dagster.results.record import read_record
from mloc_dagster.results.store import ResultStore
from mloc_dagster.results.summary import SUMMARY_NAME, TaskSummary
from mloc_dagster.results.training_summary import TRAINING_NAME, TrainingSummary, read_training
from mloc_dagster.schema import FINAL_LORA

LOOKED_AT = 200
"""Summaries that are read at most."""

AMONG = 10_000
"""Folders whose times are asked for at most."""

ENOUGH = 20
"""Matching tasks; older ones say little about today's machines."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks that are alike as far as their speed goes.

    Attributes:
        model: What answers, as summaries name it.
        revision: Which revision of it, when one is named.
        task_type: What is done.
        engine: The engine's name, where only one will do.
    """

    model: str
    revision: str | None
    task_type: str
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Earlier tasks of one kind, all on the same engine and version of it.

    Attributes:
        summaries: Newest first; empty when there were none.
    """

    summaries: Sequence[TaskSummary] = ()

    @property
    def engine(self) -> str:
        """What computed them, such as `transformers 5.19.0`."""
        return ", ".join(self.summaries[0].engines) if self.summaries else ""

    @property
    def completion_tokens_per_row(self) -> float | None:
        """Tokens that a row's answers had."""
        return _median(
            [each.usage.completion_tokens / each.rows for each in self.summaries if each.rows]
        )

    @property
    def engine_seconds_per_token(self) -> float | None:
        """Engine seconds for a token, read or written; None where no task measured them."""
        return _median(
            [
                each.usage.engine_seconds / tokens
                for each in self.summaries
                if (tokens := _computed_tokens(each)) and each.usage.engine_seconds
            ]
        )

    @property
    def other_seconds(self) -> float | None:
        """Wall seconds in which the engine did nothing: starting, loading, writing results."""
        return _median(
            [
                max(each.usage.latency_sec - each.usage.engine_seconds / _workers(each), 0.0)
                for each in self.summaries
            ]
        )

    @property
    def workers(self) -> int:
        """How many workers the tasks had, most of the time."""
        found = _median([_workers(each) for each in self.summaries])
        return 1 if found is None else max(round(found), 1)


def read_history(
    store: ResultStore,
    kind: Kind,
    *,
    looked_at: int = LOOKED_AT,
    enough: int = ENOUGH,
    among: int = AMONG,
) -> History:
    """Returns the newest tasks of a kind that are on the store.

    Tasks on other engines, or other versions of them, than the newest one's are left out, and so
    are tasks whose rows all failed.

    Args:
        store: Where to look.
        kind: What counts.
        looked_at: Summaries that are read at most.
        enough: Tasks to return at most.
        among: Folders of tasks whose times are looked at, at most.
    """
    found: list[TaskSummary] = []
    for folder in islice(store.newest(SUMMARY_NAME, among), looked_at):
        try:
            summary = TaskSummary.model_validate_json(folder.read_bytes(SUMMARY_NAME))
            if not _is_like(summary, kind) or (found and summary.engines != found[0].engines):
                continue
            if read_record(folder).task_type != kind.task_type:
                continue
        except (FileNotFoundError, ValidationError, InputError):
            continue  # deleted meanwhile, or of another version: it says nothing that can be read
        found.append(summary)
        if len(found) >= enough:
            break
    return History(tuple(found))


def _is_like(summary: TaskSummary, kind: Kind) -> bool:
    return (
        (summary.model, summary.revision) == (kind.model, kind.revision)
        and bool(summary.engines)
        and summary.errors < summary.rows
        and (kind.engine is None or any(each.startswith(kind.engine) for each in summary.engines))
    )


def _computed_tokens(summary: TaskSummary) -> int:
    return summary.usage.total_tokens - summary.usage.reused_tokens


def _workers(summary: TaskSummary) -> float:
    """Returns how many workers were at work at once; a killed and its successor were not."""
    return max(len(summary.workers), 1) if summary.at_once is None else summary.at_once


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


ALIKE = 0.1
"""Steps that differ in their rows by no more than this share take the same time."""


@dataclass(frozen=True, slots=True)
class TrainingKind:
    """Trainings that are alike as far as their speed goes.

    Attributes:
        task_type: The method.
        model: What is trained, as summaries name it.
        adapter: Whether only an adapter is.
        device: `cpu` or `cuda` where only one will do.
    """

    task_type: str
    model: str
    adapter: bool
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """What steps take.

    Attributes:
        step_seconds: Seconds of one.
        other_seconds: Wall seconds of a training besides its steps: loading, measuring, saving.
        trainings: How many told.
        scaled: Whether their steps had another number of rows, and were scaled by it.
    """

    step_seconds: float
    other_seconds: float
    trainings: int
    scaled: bool


@dataclass(frozen=True, slots=True)
class TrainingHistory:
    """Earlier trainings of one kind, all on the same device.

    Attributes:
        summaries: Newest first; empty when there were none.
    """

    summaries: Sequence[TrainingSummary] = ()

    @property
    def device(self) -> str:
        """What they ran on; empty when there were none."""
        return self.summaries[0].device if self.summaries else ""

    def pace(self, rows_per_step: float) -> Pace | None:
        """Returns what steps of so many rows take; None where nobody knows.

        Trainings with steps of that size are asked if there are any, else all of them.
        """
        sizes = [(each, _rows_per_step(each)) for each in self.summaries]
        alike = [each for each in sizes if abs(each[1] - rows_per_step) <= ALIKE * rows_per_step]
        asked = alike or sizes
        if not asked or rows_per_step <= 0:
            return None
        factors = [1.0 if alike else rows_per_step / size for _, size in asked]
        return Pace(
            step_seconds=median(
                _seconds_of_steps(each) / each.steps * factor
                for (each, _), factor in zip(asked, factors, strict=True)
            ),
            other_seconds=median(
                max(each.seconds - _seconds_of_steps(each), 0.0) for each, _ in asked
            ),
            trainings=len(asked),
            scaled=not alike,
        )


def read_training_history(
    store: ResultStore,
    kind: TrainingKind,
    *,
    looked_at: int = LOOKED_AT,
    enough: int = ENOUGH,
    among: int = AMONG,
) -> TrainingHistory:
    """Returns the newest trainings of a kind that are on the store.

    Args:
        store: Where to look.
        kind: What counts.
        looked_at: Summaries that are read at most.
        enough: Trainings to return at most.
        among: Folders of tasks whose times are looked at, at most.
    """
    found: list[TrainingSummary] = []
    for folder in islice(store.newest(TRAINING_NAME, among), looked_at):
        try:
            summary = read_training(folder)
        except (IncompleteResultsError, ValidationError):
            continue  # deleted meanwhile, or of another version: it says nothing that can be read
        if not _is_like_training(summary, kind) or (found and summary.device != found[0].device):
            continue
        found.append(summary)
        if len(found) >= enough:
            break
    return TrainingHistory(tuple(found))


def _is_like_training(summary: TrainingSummary, kind: TrainingKind) -> bool:
    return (
        (summary.task_type, summary.model) == (kind.task_type, kind.model)
        and (kind.device is None or summary.device.startswith(kind.device))
        # Without final weights nobody knows which ones were trained; that is one kind for most.
        and (not summary.final or (summary.final == FINAL_LORA) is kind.adapter)
        and summary.seconds > 0
        and summary.steps > 0
        and not summary.resumed_step  # its seconds are those of the last attempt only
        and _rows_per_step(summary) > 0
    )


def _rows_per_step(summary: TrainingSummary) -> float:
    return summary.metrics.get("epoch", 0.0) * summary.dataset_size / summary.steps


def _seconds_of_steps(summary: TrainingSummary) -> float:
    """Returns the trainer's own figure, or, where it has none, all the time of its attempt."""
    return summary.metrics.get("train_runtime", summary.seconds)
