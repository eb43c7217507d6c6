"""What a training is going to take, from its input, its model and earlier ones like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mloc_dagster.data.training_rows import check_budget, training_rows
from mloc_dagster.errors import DataError
from mloc_dagster.executors.estimate import Figure
from mloc_dagster.executors.training.model_config import CONFIG_NAME, estimate_of
from mloc_dagster.executors.training.step_count import StepCount, count_steps
from mloc_dagster.results.store import ResultStore
from mloc_dagster.results.training_history import (
    Pace,
    TrainingHistory,
    TrainingKind,
    read_training_history,
)
from mloc_dagster.results.usage import Rates
from mloc_dagster.schema.model import Model, ModelSource
from mloc_dagster.schema.task import TrainingSpec

NO_FIGURES = "no figures yet"


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """What a training is expected to take.

    Attributes:
        rows: Rows that it trains on.
        steps: Optimiser steps; of PPO rounds of sampling and learning.
        memory_bytes: Bytes on its device, or on each of them.
        engine_seconds: Seconds in which steps are taken.
        seconds: Wall seconds, with loading, measuring and saving.
        cost: Of the steps' time.
    """

    rows: Figure
    steps: Figure
    memory_bytes: Figure
    engine_seconds: Figure
    seconds: Figure
    cost: Figure


@dataclass(frozen=True, slots=True)
class Unknown:
    """What only earlier tasks of the same template will tell of a training.

    Attributes:
        rows: Why its rows are not known; empty when they are.
        model: Why its model is not known; empty when it is.
        shape: A model of the same shape, if its own is not known and that is.
    """

    rows: str = ""
    model: str = ""
    shape: Model | None = None


def estimate_training(
    spec: TrainingSpec, store: ResultStore, unknown: Unknown | None = None
) -> TrainingEstimate:
    """Estimates a training: reads its rows once, one by one, and loads no model.

    Args:
        spec: The task.
        store: Where earlier trainings are.
        unknown: What is not known yet.

    Raises:
        DataError: If the input is missing, unreadable or empty.
        TerminalError: If an option of PPO is wrong.
    """
    unknown = unknown or Unknown()
    rows = Figure(None, unknown.rows) if unknown.rows else _count_rows(spec)
    counted = count_steps(spec, None if rows.value is None else int(rows.value))
    if counted is None:
        steps = Figure(None, rows.source)
    else:
        steps = Figure(counted.steps, counted.source, counted.at_most)
    engine_seconds, seconds = _times(spec, store, counted, unknown, rows.source)
    return TrainingEstimate(
        rows=rows,
        steps=steps,
        memory_bytes=_memory(spec, unknown),
        engine_seconds=engine_seconds,
        seconds=seconds,
        cost=_cost(spec, engine_seconds),
    )


def _count_rows(spec: TrainingSpec) -> Figure:
    found = training_rows(spec.data, spec.method)
    rows = sum(1 for _ in found)
    if not found.count:
        raise DataError(f"the input is empty: {found.source} gave no rows")
    check_budget(
        found.count, found.bad_count, found.bad, spec.data.error_budget, source=found.source
    )
    if not rows:
        raise DataError(f"there is nothing to train on: no row of {found.source} can be used")
    left_out = f", {found.bad_count} of no use" if found.bad_count else ""
    return Figure(rows, f"{found.source}{left_out}")


def _memory(spec: TrainingSpec, unknown: Unknown) -> Figure:
    if unknown.model and unknown.shape is None:
        return Figure(None, unknown.model)
    if unknown.shape is not None:
        spec = spec.model_copy(update={"model": unknown.shape})
    source = spec.model.source
    found = estimate_of(spec, _cached_config(source))
    if found is None:
        return Figure(None, f"the config of {source.identifier} is not on this machine")
    return Figure(found.total_bytes, found.text())


def _cached_config(source: ModelSource) -> Path | None:
    """Returns the folder with a hub model's config, where the hub's cache has it. No network."""
    if source.type != "huggingface":
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.identifier, CONFIG_NAME, revision=source.revision)
    # The cache also knows that a file does not exist, and says so with an object.
    return Path(found).parent if isinstance(found, str) else None


def _times(
    spec: TrainingSpec,
    store: ResultStore,
    counted: StepCount | None,
    unknown: Unknown,
    why_no_steps: str,
) -> tuple[Figure, Figure]:
    """Returns the time of the steps, and that of all."""
    if counted is None:
        return Figure(None, why_no_steps), Figure(None, why_no_steps)
    if unknown.model:
        reason = f"{NO_FIGURES}: {unknown.model}"
        return Figure(None, reason), Figure(None, reason)
    kind = kind_of_training(spec)
    history = read_training_history(store, kind)
    pace = history.pace(counted.rows_per_step)
    if pace is None:
        reason = f"{NO_FIGURES}: no earlier {kind.task_type} of {kind.model}"
        return Figure(None, reason), Figure(None, reason)
    source = _told_by(kind, history, pace)
    of_steps = counted.steps * pace.step_seconds
    return (
        Figure(of_steps, source, counted.at_most),
        Figure(of_steps + pace.other_seconds, source, counted.at_most),
    )


def kind_of_training(spec: TrainingSpec) -> TrainingKind:
    """Returns which earlier trainings are like this one."""
    device = "cpu" if spec.enforce_cpu else "cuda" if spec.require_gpu else None
    return TrainingKind(
        task_type=spec.task_type,
        model=spec.model.source.identifier,
        adapter=spec.lora is not None,
        device=device,
    )


def _told_by(kind: TrainingKind, history: TrainingHistory, pace: Pace) -> str:
    earlier = f"{pace.trainings} earlier {kind.task_type} of {kind.model} on {history.device}"
    scaled = ", scaled by the rows of a step" if pace.scaled else ""
    return f"from {earlier}: {pace.step_seconds:.3g} s a step{scaled}"


def _cost(spec: TrainingSpec, engine_seconds: Figure) -> Figure:
    rates = Rates(spec.resources.cost_per_hour)
    if rates.cost_per_hour is None:
        return Figure(None, "the template has no resources.cost_per_hour")
    if engine_seconds.value is None:
        return Figure(None, engine_seconds.source)
    source = f"time of the steps at {rates.cost_per_hour:g} an hour"
    return Figure(rates.cost(engine_seconds.value), source, engine_seconds.at_most)
