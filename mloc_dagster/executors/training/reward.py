"""A reward model: a classifier that scores the better of two answers higher."""

from __future__ import annotations

from typing import Literal

from mloc_dagster.executors.training.base import TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.trl_run import (
    build_trainer,
    config_of,
    dataset_of,
    log_left_out,
    train_with,
)
from mloc_dagster.schema.task import RewardSpec
from mloc_dagster.schema.task_type import ANY_TRAINING, TaskType


class RewardTrainer:
    """`trl.RewardTrainer`: rows with `chosen` and `rejected`, mostly with their `prompt`."""

    model_kind: Literal["causal_lm", "classifier"] = "classifier"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        config = config_of(run)
        asked = ("prompt",) if run.rows and "prompt" in run.rows[0] else ()
        dataset = dataset_of(run.rows, (*asked, "chosen", "rejected"))
        trainer = build_trainer(run, config, dataset)
        left_out = len(run.rows) - len(trainer.train_dataset)
        log_left_out(run, left_out, f"left out: longer than max_length={config.max_length} tokens")
        return train_with(trainer, run, left_out=left_out)


REWARD = TaskType(
    name="reward", spec=RewardSpec, executor=RewardTrainer, kinds=("RewardTask", ANY_TRAINING)
)
