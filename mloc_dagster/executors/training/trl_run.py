"""Builds a TRL trainer for a run, with its reporters, and trains."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mloc_dagster.errors import DataError, TaskCancelled, TerminalError
from mloc_dagster.executors.training.arguments import config_arguments
from mloc_dagster.executors.training.base import Row, TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.spread import (
    AllStepsDone,
    RunReporter,
    numbers,
    prepare_environment,
    reporter_of,
)

FOLDER = "logs"
TENSORBOARD_FOLDER = "tensorboard"


def take_tensorboard(config: Any) -> None:
    """Takes TensorBoard out of a trainer's config: its files would lie among the checkpoints."""
    config.report_to = [name for name in config.report_to if name != "tensorboard"]


def tensorboard_callback(
    task_folder: Path, log: Callable[[str], None], *, resumed_step: int | None = None
) -> Any:
    """Returns what writes the figures for TensorBoard to `logs/tensorboard`.

    None where TensorBoard is not installed, which is logged.

    Args:
        task_folder: What `logs` lies in.
        log: Takes that line.
        resumed_step: The step of the checkpoint that the training goes on from: what earlier
            attempts wrote of later steps is not shown any more.
    """
    if importlib.util.find_spec("tensorboard") is None:
        log("TensorBoard is not installed: the figures are in training.json only")
        return None
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    again_from = None if resumed_step is None else resumed_step + 1
    place = str(task_folder / FOLDER / TENSORBOARD_FOLDER)
    return TensorBoardCallback(SummaryWriter(place, purge_step=again_from))


REFERENCE_ADAPTER = "ref"
"""TRL's name for the frozen copy that it makes of an adapter, to compare with."""


def config_of(run: TrainingRun, overrides: Mapping[str, Any] | None = None) -> Any:
    """Returns the task type's TRL config.

    Args:
        run: What to train.
        overrides: What the rows decide, such as the part of each row that is trained on.

    Raises:
        TerminalError: If TRL refuses an option, or the spec names one that it has not.
    """
    import trl

    name = _config_name(run)
    arguments = config_arguments(run.spec, run.output_dir, run.hooks.log) | dict(overrides or {})
    prepare_environment(arguments.get("fsdp_config"))
    try:
        return getattr(trl, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise TerminalError(f"training: {name} says: {error}") from error


def dataset_of(rows: Sequence[Row], columns: Sequence[str]) -> Any:
    """Returns a `datasets.Dataset` of some columns; a column that a row lacks is None there.

    Raises:
        DataError: If there are no rows, or a column holds values of different types.
    """
    from datasets import Dataset
    from pyarrow import ArrowException

    if not rows:
        raise DataError("there are no rows to train on")
    table = {column: [row.get(column) for row in rows] for column in columns}
    # Calls of tools have arguments of any kind: without this, each would have those of all.
    kept = "use_json" if any(map(_calls_tools, rows)) else None
    try:
        return Dataset.from_dict(table, on_mixed_types=kept)
    except (ArrowException, TypeError, ValueError) as error:
        mixed = [name for name, values in table.items() if len({type(each) for each in values}) > 1]
        named = f"column {mixed[0]!r}" if mixed else "a column"
        raise DataError(f"{named} holds values of more than one type: {error}") from error


def _calls_tools(row: Row) -> bool:
    return bool(row.get("tools")) or any(
        "tool_calls" in message
        for value in row.values()
        if isinstance(value, list)
        for message in value
        if isinstance(message, Mapping)
    )


def build_trainer(run: TrainingRun, config: Any, dataset: Any, **parts: Any) -> Any:
    """Returns the task type's TRL trainer, ready to train.

    Args:
        run: What to train.
        config: From `config_of`.
        dataset: From `dataset_of`.
        parts: More arguments of the trainer's class: `ref_model`, `reward_funcs`.

    Raises:
        TerminalError: If TRL refuses the combination, or no row fits.
    """
    from datasets import disable_progress_bars
    from huggingface_hub import constants
    from transformers import PrinterCallback

    disable_progress_bars()  # the process prints into a file
    constants.HF_HUB_DISABLE_TELEMETRY = True  # a training is its owner's business
    kind = _trainer_class(run, config)
    take_tensorboard(config)
    try:
        trainer = kind(
            model=run.model,
            args=config,
            train_dataset=dataset,
            processing_class=run.tokenizer,
            **parts,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TerminalError(f"training: {kind.__name__} says: {error}") from error
    if len(trainer.train_dataset) == 0:
        raise TerminalError(
            f"no row has anything to train on within max_length={config.max_length} tokens"
        )
    trainer.remove_callback(PrinterCallback)  # it prints what the reporter reports
    if config.process_index == 0:
        board = tensorboard_callback(
            run.output_dir.parent, run.hooks.log, resumed_step=_resumed_step(run)
        )
        if board is not None:
            trainer.add_callback(board)
    return trainer


def train_with(trainer: Any, run: TrainingRun, *, left_out: int = 0) -> TrainingOutcome:
    """Trains to the end, and says what it came to.

    Args:
        trainer: From `build_trainer`.
        run: What to train.
        left_out: Rows that the trainer dropped.

    Raises:
        TaskCancelled: If the task was asked to stop; the step that it was in is done.
        TerminalError: If weights are spread over processes, which the template does not say.
    """
    report: RunReporter = reporter_of(trainer, run)
    others = list(trainer.callback_handler.callbacks)
    report.tell_others = partial(_log_with, others, trainer)
    trainer.add_callback(report)
    resume_from = str(run.resume_from) if run.resume_from is not None else None
    _load_adapter(run)
    _go_on_counting(trainer, run)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # trainers print; stdout is not theirs
            result = _train_what_is_left(trainer, resume_from)
    finally:
        _drop_reference_adapter(run.model)
    if report.stopped:
        raise TaskCancelled(f"training stopped after step {trainer.state.global_step}, as asked")
    history = [numbers(entry) for entry in trainer.state.log_history if _is_open(entry)]
    metrics = numbers(result.metrics)
    if run.resume_from is not None:  # the trainer's own figure knows only the steps since
        metrics["train_loss"] = _mean_loss(history, fallback=metrics["train_loss"])
    return TrainingOutcome(
        steps=trainer.state.global_step,
        metrics=metrics,
        history=history,
        dataset_size=len(run.rows) - left_out,
    )


def _train_what_is_left(trainer: Any, resume_from: str | None) -> Any:
    """Trains from a checkpoint, if any; from that of the last step it only ends the training."""
    try:
        return trainer.train(resume_from_checkpoint=resume_from)
    except AllStepsDone:
        # By now the weights are loaded. What is left is what `train` itself ends with.
        return trainer._finalize_training(None, 0, time.time())  # noqa: SLF001


def _log_with(callbacks: Sequence[Any], trainer: Any, metrics: Mapping[str, float]) -> None:
    """Gives figures to callbacks, such as those of trackers, as if the trainer had logged them."""
    for each in callbacks:
        each.on_log(trainer.args, trainer.state, trainer.control, logs=dict(metrics))


def log_left_out(run: TrainingRun, count: int, why: str) -> None:
    """Logs how many rows are not as they were given, if any."""
    if count:
        run.hooks.log(f"{count} of {len(run.rows)} rows {why}")


def _resumed_step(run: TrainingRun) -> int | None:
    return None if run.resume_from is None else int(run.resume_from.name.rpartition("-")[2])


def _mean_loss(history: Sequence[Mapping[str, float]], *, fallback: float) -> float:
    """Returns the mean loss of all logged steps; a figure stands for the steps since the last."""
    total, done = 0.0, 0.0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - done)
            done = entry["step"]
    return total / done if done else fallback


def _is_open(entry: Mapping[str, Any]) -> bool:
    return "train_runtime" not in entry  # the closing figures are the outcome's metrics


def _config_name(run: TrainingRun) -> str:
    name = run.spec.method.config
    if name is None:
        raise TerminalError(f"{run.spec.task_type} names no config of TRL's to train with")
    return name


def _trainer_class(run: TrainingRun, config: Any) -> Any:
    """Returns the trainer's class, imported without vLLM unless rollouts are to come from it.

    TRL's online trainers import vLLM wherever it is installed: 3.5 s and 170 MiB for nothing, and
    an error where the two versions do not go together.
    """
    import trl
    from trl import import_utils

    name = _config_name(run).replace("Config", "Trainer")
    look = import_utils.is_vllm_available
    if not getattr(config, "use_vllm", False):
        import_utils.is_vllm_available = lambda min_version=None: False
    try:
        return getattr(trl, name)
    finally:
        import_utils.is_vllm_available = look


def _load_adapter(run: TrainingRun) -> None:
    """Loads the adapter of the checkpoint to resume from, which `Trainer` forgets.

    Next to a reference, it stands in the checkpoint's root and the reference in a folder;
    transformers 5.19 loads what is in folders, and nothing else when there are any.
    """
    adapters = getattr(run.model, "peft_config", None) or {}
    if run.resume_from is not None and REFERENCE_ADAPTER in adapters:
        run.model.load_adapter(str(run.resume_from), "default", is_trainable=True)


def _go_on_counting(trainer: Any, run: TrainingRun) -> None:
    """Tells a resumed trainer how many tokens it has seen, which TRL counts from 0 again.

    What was logged last is as near as the checkpoint knows.
    """
    if run.resume_from is None or not hasattr(trainer, "_total_train_tokens"):
        return
    from transformers import TrainerState
    from transformers.trainer import TRAINER_STATE_NAME

    state = TrainerState.load_from_json(str(run.resume_from / TRAINER_STATE_NAME))
    counted = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
    if counted:
        trainer._total_train_tokens = counted[-1]  # noqa: SLF001  there is no other way


def _drop_reference_adapter(model: Any) -> None:
    adapters = getattr(model, "peft_config", None) or {}
    if REFERENCE_ADAPTER in adapters and len(adapters) > 1:
        model.delete_adapter(REFERENCE_ADAPTER)
