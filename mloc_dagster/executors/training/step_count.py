"""How many steps a training takes, counted as its trainer will, before there is a trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mloc_dagster.schema.ppo_options import check_training, ppo_options
from mloc_dagster.schema.task import OnlineSpec, PpoSpec, TrainingSpec
from mloc_dagster.schema.training_options import (
    generations_of,
    number_of,
    option_of,
    processes_of,
)


@dataclass(frozen=True, slots=True)
class StepCount:
    """The steps of a training.

    Attributes:
        steps: How many.
        rows_per_step: Rows of the input that one takes, on average over an epoch.
        source: How they were counted, in words.
        at_most: Whether there may be fewer.
    """

    steps: int
    rows_per_step: float
    source: str
    at_most: bool = False


def count_steps(spec: TrainingSpec, rows: int | None) -> StepCount | None:
    """Counts the steps of a training.

    Args:
        spec: What is trained, and how.
        rows: Rows that it trains on; None while that is not known.

    Returns:
        The steps; None where they depend on rows that are not known.

    Raises:
        TerminalError: If an option of PPO is wrong.
    """
    if isinstance(spec, PpoSpec):
        return _of_ppo(spec, rows)
    if rows is None and spec.training.max_steps <= 0:
        return None
    return _of_prompts(spec, rows) if isinstance(spec, OnlineSpec) else _of_rows(spec, rows)


def _of_ppo(spec: PpoSpec, rows: int | None) -> StepCount | None:
    extras = check_training(spec)
    by_epochs = spec.training.max_steps <= 0 and extras.total_episodes is None
    if rows is None and by_epochs:
        return None
    options = ppo_options(spec, rows or 0)
    asked = f"{spec.training.num_train_epochs:g} epochs"
    if not by_epochs:
        asked = "max_steps" if spec.training.max_steps > 0 else "total_episodes"
    source = f"{asked}, {options.rollouts} answers a step"
    return StepCount(options.updates, options.rollouts, source)


def _of_rows(spec: TrainingSpec, rows: int | None) -> StepCount:
    """Counts as `transformers.Trainer`: a step for each full or last lot of batches of an epoch."""
    training, processes = spec.training, processes_of(spec)
    each = training.per_device_train_batch_size
    together = each * processes
    batches = None
    if rows is not None:
        drop_last = option_of(spec, "dataloader_drop_last") is True
        batches = rows // each // processes if drop_last else math.ceil(rows / together)
    lot = f"{together * training.gradient_accumulation_steps:,} rows a step"
    counted = _counted(spec, rows, batches, lot)
    if training.packing:
        source = f"{counted.source}; fewer when rows are packed"
        return StepCount(counted.steps, counted.rows_per_step, source, training.max_steps <= 0)
    return counted


def _of_prompts(spec: OnlineSpec, rows: int | None) -> StepCount:
    """Counts as TRL's GRPO and RLOO: prompts come in full lots, each sampled for and learnt from.

    A lot of `generation_batch_size` answers is cut into `steps_per_generation` batches, and all of
    that is repeated `num_iterations` times; prompts that fill no lot are left out.
    """
    training = spec.training
    together = training.per_device_train_batch_size * processes_of(spec)
    lot = number_of(spec, "generation_batch_size", 0)
    usual = lot // together if lot else training.gradient_accumulation_steps
    batches_of_lot = number_of(spec, "steps_per_generation", usual)
    answers = generations_of(spec)
    prompts = max(together * batches_of_lot // answers, 1)
    batches = None
    if rows is not None:
        batches = rows // prompts * batches_of_lot * number_of(spec, "num_iterations", 1)
    if batches == 0:
        return StepCount(0, 0.0, f"{rows} rows fill no lot of {prompts} prompts")
    of_step = together * training.gradient_accumulation_steps
    return _counted(spec, rows, batches, f"{of_step:,} answers a step, {answers} to a prompt")


def _counted(spec: TrainingSpec, rows: int | None, batches: int | None, lot: str) -> StepCount:
    training, processes = spec.training, processes_of(spec)
    many = f" in {processes} processes" if processes > 1 else ""
    if batches is None or rows is None:  # max_steps says how many
        full = training.per_device_train_batch_size * processes
        full *= training.gradient_accumulation_steps
        if isinstance(spec, OnlineSpec):
            full /= generations_of(spec)
        return StepCount(training.max_steps, full, f"max_steps, {lot}{many}")
    of_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    if training.max_steps > 0:
        return StepCount(training.max_steps, rows / of_epoch, f"max_steps, {lot}{many}")
    steps = math.ceil(training.num_train_epochs * of_epoch)
    epochs = f"{training.num_train_epochs:g} epoch{'' if training.num_train_epochs == 1 else 's'}"
    return StepCount(steps, rows / of_epoch, f"{epochs} of {of_epoch:,}, {lot}{many}")
