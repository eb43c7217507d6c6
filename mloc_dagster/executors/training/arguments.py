"""From a task's spec to the keyword arguments of its TRL config."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.schema.task import OnlineSpec, TrainingSpec
from mloc_dagster.schema.trainer_arguments import refused_argument
from mloc_dagster.schema.training import Training
from mloc_dagster.schema.training_options import ROLLOUTS, refused_in_training

DOCUMENTED = ("num_train_epochs", "gradient_checkpointing")
"""Fields of `Training` that are passed when the user said nothing, too: the schema promises one
epoch and no checkpointing, where the libraries do 3 epochs, and checkpointing at a fifth of the
speed's cost. Everything else that is not set is TRL's to choose: its learning rates differ by
method a hundredfold."""

NOT_TRLS = frozenset({"save_model", "num_processes"})
"""Fields of `Training` that the trainer never sees."""

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
