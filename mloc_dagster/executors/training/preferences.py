"""Preference training: better answers become likelier than worse ones, held near a reference."""

from __future__ import annotations

import copy
from typing import Any, Literal

from mloc_dagster.executors.training.base import TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.trl_run import (
    build_trainer,
    config_of,
    dataset_of,
    log_left_out,
    train_with,
)
from mloc_dagster.schema.task import DpoSpec, KtoSpec
from mloc_dagster.schema.task_type import ANY_TRAINING, TaskType


class DpoTrainer:
    """`trl.DPOTrainer`: rows with `prompt`, `chosen` and `rejected`."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return _train(run, columns=("prompt", "chosen", "rejected"), answers=("chosen", "rejected"))


class KtoTrainer:
    """`trl.KTOTrainer`: rows with `prompt`, `completion` and `label`, true for a good answer."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return _train(run, columns=("prompt", "completion", "label"), answers=("completion",))


def _train(
    run: TrainingRun, *, columns: tuple[str, ...], answers: tuple[str, ...]
) -> TrainingOutcome:
    config = config_of(run)
    trainer = build_trainer(
        run, config, dataset_of(run.rows, columns), ref_model=_reference(run, config)
    )
    limit = config.max_length
    left_out = len(run.rows) - len(trainer.train_dataset)
    log_left_out(run, left_out, f"left out: the prompt alone fills max_length={limit} tokens")
    log_left_out(run, _cut_rows(trainer, answers), f"cut to max_length={limit} tokens")
    return train_with(trainer, run, left_out=left_out)


def _reference(run: TrainingRun, config: Any) -> Any:
    """Returns a copy of the model as it is now; None where TRL has something better.

    TRL would load the reference from where the model came from, which are other weights when the
    task starts from a checkpoint. With an adapter the reference is the model with the adapter as it
    was; precomputed, it needs no model; a model in shards cannot be copied.
    """
    adapted = hasattr(run.model, "peft_config")
    sharded = bool(config.deepspeed or config.fsdp)
    if adapted or sharded or config.precompute_ref_log_probs:
        return None
    return copy.deepcopy(run.model).requires_grad_(requires_grad=False)


def _cut_rows(trainer: Any, answers: tuple[str, ...]) -> int:
    limit = trainer.args.max_length
    if limit is None:
        return 0
    return sum(
        len(row["prompt_ids"]) + max(len(row[f"{answer}_ids"]) for answer in answers) > limit
        for row in trainer.train_dataset
    )


DPO = TaskType(name="dpo", spec=DpoSpec, executor=DpoTrainer, kinds=("DPOTask", ANY_TRAINING))
KTO = TaskType(name="kto", spec=KtoSpec, executor=KtoTrainer, kinds=("KTOTask", ANY_TRAINING))
