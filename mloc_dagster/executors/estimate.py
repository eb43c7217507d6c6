"""What a task or a training is going to take, from its input and from earlier ones like it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

from mloc_dagster.data import (
    IMAGE_TOKENS,
    check_budget,
    image_count,
    open_rows,
    open_training_rows,
    row_key,
)
from mloc_dagster.errors import DataError
from mloc_dagster.executors.input_planning import TokenCounter, kind_of, row_forecast
from mloc_dagster.executors.task_start import input_of
from mloc_dagster.executors.training.arguments import StepCount, count_steps
from mloc_dagster.executors.training.memory_estimate import CONFIG_NAME, estimate_of
from mloc_dagster.planning import shard_count
from mloc_dagster.results import (
    History,
    Kind,
    Pace,
    Rates,
    ResultStore,
    SourceRow,
    Spend,
    TrainingHistory,
    TrainingKind,
    read_training_history,
)
from mloc_dagster.schema import Model, ModelSource, ModelSpec, RowSpec, TrainingSpec

_ROWS_AT_ONCE = 256  # of the largest rows, what one batch holds in memory

NO_HISTORY = "no earlier task like it"
NO_PRICE = "the template has no resources."


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and where it comes from.

    Attributes:
        value: None where nothing tells.
        source: In words, for people.
        at_most: Whether it is a bound rather than what is expected.
    """

    value: float | None
    source: str
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a task is expected to take.

    Attributes:
        rows: How many rows it has.
        prompt_tokens: Tokens read.
        output_tokens: Tokens written.
        engine_seconds: Seconds in which engines work, over all workers.
        seconds: Wall seconds from start to last row, when nothing else is in the way.
        cost: Of the engines' time.
    """

    rows: Figure
    prompt_tokens: Figure
    output_tokens: Figure
    engine_seconds: Figure
    seconds: Figure
    cost: Figure


def unknown_estimate(reason: str) -> Estimate:
    """Returns the estimate of a task of which nothing can be said.

    Args:
        reason: Why.
    """
    unknown = Figure(None, reason)
    return Estimate(unknown, unknown, unknown, unknown, unknown, unknown)


def estimate_rows(spec: RowSpec, history: History) -> Estimate:
    """Estimates a task whose input is there: reads it once, in bounded memory.

    Args:
        spec: The task; reads no upstream results.
        history: Earlier tasks like it.

    Raises:
        DataError: If the input is missing, unreadable or empty.
    """
    source, rows, _ = open_rows(input_of(spec), {})
    counter = TokenCounter(spec.model.source if isinstance(spec, ModelSpec) else None)
    per_row = history.completion_tokens_per_row
    size = _measure(rows, counter, spec.system_prompt, _outputs(spec, per_row))
    if not size.rows:
        raise DataError(f"the input is empty: {source} gave no rows")
    return combine(
        rows=Figure(size.rows, source),
        prompt_tokens=Figure(size.prompt_tokens, counter.source),
        output_tokens=_output_figure(spec, size.output_tokens, history),
        history=history,
        kind=kind_of(spec),
        rates=Rates.of(spec.resources),
        most_workers=shard_count(size.rows, spec.parallel.shards, spec.shard_rows),
    )


def combine(
    *,
    rows: Figure,
    prompt_tokens: Figure,
    output_tokens: Figure,
    history: History,
    kind: Kind,
    rates: Rates,
    most_workers: int,
) -> Estimate:
    """Returns the estimate that follows from the size of a task and the speed of earlier ones."""
    per_token = history.engine_seconds_per_token
    engine_s = seconds = None
    source = reason = f"{NO_HISTORY}: no time known"
    if history.summaries and per_token is None:
        source = reason = "earlier tasks did not measure their engine's time"
    elif per_token is not None and output_tokens.value is not None:
        workers = min(history.workers, most_workers)
        engine_s = ((prompt_tokens.value or 0) + output_tokens.value) * per_token
        seconds = (history.other_seconds or 0.0) + engine_s / workers
        source = _told_by(history, kind)
        reason = f"{source}, with {workers} worker{'s' if workers > 1 else ''}"
    return Estimate(
        rows=rows,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        engine_seconds=Figure(engine_s, source),
        seconds=Figure(seconds, reason),
        cost=_cost_of_rows(rates, prompt_tokens, output_tokens, Figure(engine_s, source)),
    )


def _cost_of_rows(
    rates: Rates, prompt_tokens: Figure, output_tokens: Figure, engine_s: Figure
) -> Figure:
    if not rates.known:
        return Figure(None, f"{NO_PRICE}cost_per_token and no resources.cost_per_hour")
    if rates.tokens is not None:
        if prompt_tokens.value is None or output_tokens.value is None:
            return Figure(None, "the tokens are not known")
        spend = Spend(int(prompt_tokens.value), 0, int(output_tokens.value))
        source = "tokens at their prices, none of them from a prefix cache"
        return Figure(rates.cost(spend), source, output_tokens.at_most)
    if engine_s.value is None:
        return engine_s
    cost = rates.cost(Spend(engine_s=engine_s.value))
    return Figure(cost, f"engine time at {rates.cost_per_hour:g} an hour")


@dataclass(slots=True)
class _Size:
    rows: int = 0
    prompt_tokens: int = 0
    output_tokens: float = 0.0


def _measure(
    rows: Iterable[SourceRow],
    counter: TokenCounter,
    system_prompt: str | None,
    outputs: Callable[[SourceRow], float],
) -> _Size:
    size = _Size()
    before = counter([system_prompt])[0] if system_prompt else 0
    for batch in batched(rows, _ROWS_AT_ONCE):
        size.rows += len(batch)
        size.prompt_tokens += sum(counter([row_key(row).text for row in batch]))
        size.prompt_tokens += sum(
            IMAGE_TOKENS * image_count(row) + (0 if row.verbatim else before) for row in batch
        )
        size.output_tokens += sum(map(outputs, batch))
    return size


def _outputs(spec: RowSpec, per_row: float | None) -> Callable[[SourceRow], float]:
    """Returns what says how many tokens a row's answers have: as usual, and at most as allowed."""
    if spec.leaves_vectors or not isinstance(spec, ModelSpec):
        expected = 0.0 if spec.leaves_vectors or per_row is None else per_row
        return lambda _: expected
    at_most = row_forecast(spec)
    if per_row is None:
        return lambda row: at_most(row).output_tokens
    return lambda row: min(per_row, at_most(row).output_tokens)


def _output_figure(spec: RowSpec, tokens: float, history: History) -> Figure:
    if spec.leaves_vectors:
        return Figure(0, "vectors have none")
    if history.summaries:
        return Figure(round(tokens), _told_by(history, kind_of(spec)))
    if isinstance(spec, ModelSpec):
        return Figure(round(tokens), f"{NO_HISTORY}: at most max_tokens a row", at_most=True)
    return Figure(None, NO_HISTORY)


def _told_by(history: History, kind: Kind) -> str:
    number = len(history.summaries)
    return (
        f"from {number} earlier task{'s' if number > 1 else ''} of {kind.model} on {history.engine}"
    )


def add_up(figures: Sequence[Figure]) -> Figure:
    """Returns the sum of figures; of what is known, with how many that is."""
    known = [each.value for each in figures if each.value is not None]
    bound = any(each.at_most for each in figures if each.value is not None)
    if len(known) == len(figures):
        return Figure(sum(known), "all tasks", bound)
    source = f"{len(known)} of {len(figures)} tasks"
    return Figure(sum(known) if known else None, source, bound)


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
    found = open_training_rows(spec.data, spec.method)
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
    source = _source_of_training(kind, history, pace)
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


def _source_of_training(kind: TrainingKind, history: TrainingHistory, pace: Pace) -> str:
    earlier = f"{pace.trainings} earlier {kind.task_type} of {kind.model} on {history.device}"
    scaled = ", scaled by the rows of a step" if pace.scaled else ""
    return f"from {earlier}: {pace.step_seconds:.3g} s a step{scaled}"


def _cost(spec: TrainingSpec, engine_seconds: Figure) -> Figure:
    rates = Rates(spec.resources.cost_per_hour)
    if rates.cost_per_hour is None:
        return Figure(None, f"{NO_PRICE}cost_per_hour")
    if engine_seconds.value is None:
        return Figure(None, engine_seconds.source)
    source = f"time of the steps at {rates.cost_per_hour:g} an hour"
    cost = rates.cost(Spend(engine_s=engine_seconds.value))
    return Figure(cost, source, engine_seconds.at_most)
