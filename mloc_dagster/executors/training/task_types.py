"""The task types that train a model, as the registry finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_dagster.schema.result import TrainingResult
from mloc_dagster.schema.task import (
    DpoSpec,
    GrpoSpec,
    KtoSpec,
    LoraSftSpec,
    PpoSpec,
    RewardSpec,
    RlooSpec,
    SftSpec,
)
from mloc_dagster.schema.task_type import TaskType

if TYPE_CHECKING:
    from mloc_dagster.executors.training.base import Trainer

_ANY_TRAINING = "TrainingTask"
"""The kind that says no more than that something is trained: `taskType` says what."""


def _sft() -> Trainer:
    from mloc_dagster.executors.training.sft import SftTrainer

    return SftTrainer()


def _dpo() -> Trainer:
    from mloc_dagster.executors.training.preferences import DpoTrainer

    return DpoTrainer()


def _kto() -> Trainer:
    from mloc_dagster.executors.training.preferences import KtoTrainer

    return KtoTrainer()


def _reward() -> Trainer:
    from mloc_dagster.executors.training.reward import RewardTrainer

    return RewardTrainer()


def _ppo() -> Trainer:
    from mloc_dagster.executors.training.ppo.trainer import PpoTrainer

    return PpoTrainer()


def _grpo() -> Trainer:
    from mloc_dagster.executors.training.online import GrpoTrainer

    return GrpoTrainer()


def _rloo() -> Trainer:
    from mloc_dagster.executors.training.online import RlooTrainer

    return RlooTrainer()


SFT = TaskType(
    name="sft",
    spec=SftSpec,
    executor=_sft,
    kinds=("SFTTask", _ANY_TRAINING),
    result=TrainingResult,  # all weights, never an adapter
)
LORA_SFT = TaskType(
    name="lora_sft", spec=LoraSftSpec, executor=_sft, kinds=("LoRASFTTask", _ANY_TRAINING)
)
DPO = TaskType(name="dpo", spec=DpoSpec, executor=_dpo, kinds=("DPOTask", _ANY_TRAINING))
KTO = TaskType(name="kto", spec=KtoSpec, executor=_kto, kinds=("KTOTask", _ANY_TRAINING))
REWARD = TaskType(
    name="reward", spec=RewardSpec, executor=_reward, kinds=("RewardTask", _ANY_TRAINING)
)
PPO = TaskType(name="ppo", spec=PpoSpec, executor=_ppo, kinds=("PPOTask", _ANY_TRAINING))
GRPO = TaskType(name="grpo", spec=GrpoSpec, executor=_grpo, kinds=("GRPOTask", _ANY_TRAINING))
RLOO = TaskType(name="rloo", spec=RlooSpec, executor=_rloo, kinds=("RLOOTask", _ANY_TRAINING))
