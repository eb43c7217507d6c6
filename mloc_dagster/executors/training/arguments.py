"""A spec as keyword arguments of its TRL config, and the number of steps that they come to."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.schema import (
    ROLLOUTS,
    OnlineSpec,
    PpoSpec,
    Training,
    TrainingSpec,
    check_training,
    generations_of,
    number_of,
    option_of,
    ppo_options,
    processes_of,
    refused_argument,
    refused_in_training,
)

DOCUMENTED = ("num_train_epochs", "gradient_checkpointing")
"""Fields of `Training` that are passed when the user said nothing, too: the schema promises one
epoch and no checkpointing, where the libraries do 3 epochs, and checkpointing at a fifth of the
speed's cost. Everything else that is not set is TRL's to choose: its learning rates differ by
method a hundredfold."""

NOT_TRLS = frozenset({"save_model", "num_processes", "tools"})
"""Fields of `Training` that are no options of the trainer's."""

SHARDING = ("deepspeed", "fsdp", "fsdp_config")
"""Options that spread one model over several GPUs."""


def config_arguments(
    spec: TrainingSpec, output_dir: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the keyword arguments of the task type's TRL config.

    Args:
        spec: What to train, and how.
        output_dir: Where checkpoints go.
        log: Takes a line for each wish that this machine cannot grant.

    Raises:
        TerminalError: If an option is not the trainer's, or a GPU is required and missing.
    """
    training = spec.training
    given = {**_set_fields(training), **(training.model_extra or {})}
    for name in given:
        reason = refused_argument(spec.method, name)
        if reason is not None:
            raise TerminalError(f"training.{name}: {reason}")
    for each in refused_in_training(spec):
        raise TerminalError(f"{'.'.join(map(str, each.path))}: {each.reason}")
    gpu = has_gpu(spec)
    given = _without_sharding(given, gpu=gpu, log=log)
    arguments: dict[str, Any] = {
        "output_dir": str(output_dir),
        "data_seed": training.seed,  # the order of rows, whatever drew random numbers before
        "report_to": "none",
        "disable_tqdm": True,
        **{name: getattr(training, name) for name in DOCUMENTED},
    }
    if isinstance(spec, OnlineSpec):
        arguments |= {theirs: getattr(spec.generation, ours) for theirs, ours in ROLLOUTS.items()}
    arguments |= given
    if arguments["gradient_checkpointing"]:
        # PyTorch's own advice, and the only way that goes with frozen inputs.
        arguments.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    return arguments | _device(given, gpu=gpu, log=log)


def _without_sharding(
    given: dict[str, Any], *, gpu: bool, log: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the options without those that spread a model over GPUs, where there are none.

    Raises:
        TerminalError: If DeepSpeed is asked for and not installed.
    """
    asked = [name for name in SHARDING if given.get(name)]
    if gpu:
        if "deepspeed" in asked and importlib.util.find_spec("deepspeed") is None:
            raise TerminalError("training.deepspeed needs the package deepspeed: install it")
        return given
    for name in asked:
        log(f"training.{name} is for GPUs; there is none, so it is left aside")
    return {name: value for name, value in given.items() if name not in asked}


def has_gpu(spec: TrainingSpec) -> bool:
    """Tells if the task trains on a GPU.

    Raises:
        TerminalError: If it must, and there is none.
    """
    import torch

    gpu = torch.cuda.is_available() and not spec.enforce_cpu
    if spec.require_gpu and not gpu:
        why = "enforce_cpu is set" if spec.enforce_cpu else "this worker has none"
        raise TerminalError(f"require_gpu: the task needs a GPU, and {why}")
    return gpu


def _set_fields(training: Training) -> dict[str, Any]:
    names = training.model_fields_set & set(Training.model_fields) - NOT_TRLS
    values = {name: getattr(training, name) for name in sorted(names)}
    return {name: value for name, value in values.items() if value is not None}


def _device(given: dict[str, Any], *, gpu: bool, log: Callable[[str], None]) -> dict[str, Any]:
    """Returns where to train and how precisely; on a CPU in float32, as half is slower there."""
    if not gpu:
        for name in ("fp16", "bf16"):
            if given.get(name):
                log(f"training.{name} needs a GPU; there is none, so this trains in float32")
        return {"use_cpu": True, "fp16": False, "bf16": False, "dataloader_pin_memory": False}
    if "bf16" in given or given.get("fp16"):
        return {}
    import torch

    # TRL's own default, bfloat16, where the GPU can; older ones would refuse to start.
    return {"bf16": torch.cuda.is_bf16_supported()}


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
