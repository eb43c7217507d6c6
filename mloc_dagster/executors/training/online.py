"""Online training: the model answers, the answers are scored, and better ones become likelier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from mloc_dagster.executors.training.base import TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.rewards import Scorer, build_scorer
from mloc_dagster.executors.training.trl_run import (
    build_trainer,
    config_of,
    dataset_of,
    train_with,
)
from mloc_dagster.schema.task import GrpoSpec, OnlineSpec, RlooSpec
from mloc_dagster.schema.task_type import ANY_TRAINING, TaskType

TRLS_OWN = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"})
"""What TRL passes to reward functions besides the rows' columns."""


class GrpoTrainer:
    """`trl.GRPOTrainer`: rows with `prompt`; the other columns go to the reward functions."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return train_with(online_trainer(run), run)


class RlooTrainer:
    """`trl.RLOOTrainer`: rows with `prompt`; the other columns go to the reward functions."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return train_with(online_trainer(run), run)


def online_trainer(run: TrainingRun) -> Any:
    """Returns the `trl.GRPOTrainer` or `trl.RLOOTrainer` of a run.

    Raises:
        TerminalError: If an option is wrong, or a reward cannot be built.
    """
    config = config_of(run)
    columns = list(dict.fromkeys(name for row in run.rows for name in row))
    dataset = dataset_of(run.rows, columns)
    spec = cast("OnlineSpec", run.spec)
    scorer = build_scorer(spec, config.device, run.hooks.log)
    trainer = build_trainer(run, config, dataset, reward_funcs=[reward_function(scorer)])
    _set_reference(trainer)
    return trainer


def reward_function(scorer: Scorer) -> Callable[..., list[float]]:
    """Returns a scorer in the form that TRL calls; it logs as `rewards/score`."""

    def score(*, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float]:
        columns = {name: values for name, values in kwargs.items() if name not in TRLS_OWN}
        return scorer.score(prompts, [text_of(each) for each in completions], columns)

    return score


def text_of(completion: str | Sequence[Any]) -> str:
    """Returns a completion's text: of a chat, what the assistant says."""
    if isinstance(completion, str):
        return completion
    said = [each.get("content") for each in completion if each.get("role") == "assistant"]
    return "\n".join(text for text in said if isinstance(text, str))


def _set_reference(trainer: Any) -> None:
    """Makes the reference the model as it is now.

    TRL loads the reference from where the model came from, which are other weights when the task
    starts from a checkpoint. A model in shards is left alone.
    """
    if trainer.ref_model is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    unwrap = trainer.accelerator.unwrap_model
    unwrap(trainer.ref_model).load_state_dict(unwrap(trainer.model).state_dict())


GRPO = TaskType(name="grpo", spec=GrpoSpec, executor=GrpoTrainer, kinds=("GRPOTask", ANY_TRAINING))
RLOO = TaskType(name="rloo", spec=RlooSpec, executor=RlooTrainer, kinds=("RLOOTask", ANY_TRAINING))
