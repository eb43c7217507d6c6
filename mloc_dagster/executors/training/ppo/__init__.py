"""Proximal policy optimisation of a language model: options, rollouts, losses, updates, resuming.

An update samples answers (`rollouts`), scores them and works out advantages (`experience`), and
takes optimiser steps on them (`update`); `trainer` repeats that, `state` writes it down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_dagster.schema import ANY_TRAINING, PpoSpec, TaskType

if TYPE_CHECKING:
    from mloc_dagster.executors.training.ppo.trainer import PpoTrainer


def _trainer() -> PpoTrainer:
    from mloc_dagster.executors.training.ppo.trainer import PpoTrainer

    return PpoTrainer()


PPO = TaskType(name="ppo", spec=PpoSpec, executor=_trainer, kinds=("PPOTask", ANY_TRAINING))
