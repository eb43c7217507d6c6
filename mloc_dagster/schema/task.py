"""The spec of one task, after stages and nodes are merged: what task types share, and ours."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, SerializeAsAny, model_validator

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.budget import Budget
from mloc_dagster.schema.data import InferenceData, TrainingData
from mloc_dagster.schema.engine_type import Ability
from mloc_dagster.schema.evaluation import RowEvaluation
from mloc_dagster.schema.inference import Inference, Pooling, Reranking
from mloc_dagster.schema.model import Model, TrainedModel
from mloc_dagster.schema.output import Checks, Output
from mloc_dagster.schema.resources import Parallel, Resources, Retries, Slo
from mloc_dagster.schema.training.columns import (
    comparisons,
    labelled,
    language,
    preferences,
    prompts,
)
from mloc_dagster.schema.training.method import TrainingMethod
from mloc_dagster.schema.training.spec import (
    Checkpoint,
    Evaluation,
    Generation,
    Lora,
    RewardFunction,
    RewardModel,
    Training,
)

PPO_ARGUMENTS = (
    frozenset(Training.model_fields) - {"packing", "deepspeed", "beta", "loss_type", "tools"}
) | {
    "num_ppo_epochs",
    "num_mini_batches",
    "mini_batch_size",
    "total_episodes",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "gamma",
    "lam",
    "kl_coef",
    "adaptive_kl",
    "kl_target",
    "kl_horizon",
    "whiten_rewards",
    "whiten_advantages",
    "missing_eos_penalty",
    "target_kl",
    "kl_estimator",
}
"""What `training` takes of PPO."""


class TaskSpec(Block):
    """What every task has."""

    task_type: str = Field(alias="taskType")
    """What the task does."""

    resources: Resources = Resources()
    parallel: Parallel = Parallel()
    output: Output = Output()
    checks: Checks = Checks()
    retries: Retries = Retries()
    slo: Slo | None = None
    enforce_cpu: bool = False
    """Never use a GPU, even where there is one."""


class RowSpec(TaskSpec):
    """A task whose result is one output for each row."""

    leaves_vectors: ClassVar[bool] = False
    """Whether outputs are vectors and not text."""

    block_name: ClassVar[str] = ""
    """The key of the block that says how rows are computed; has `error_budget` if rows may fail."""

    row_limits: ClassVar[frozenset[str]] = frozenset()
    """The limits of `budget.per_row` that are kept where such rows are computed."""

    takes: ClassVar[frozenset[str]] = frozenset()
    """What rows of an earlier task bring along beside their columns: fields of `OutputRow` that
    `InputRow` has as well."""

    leaves: ClassVar[tuple[str, ...]] = ()
    """Columns of its results beside those of all rows: names of `results.MORE_COLUMNS`."""

    deciding: ClassVar[frozenset[str]] = frozenset()
    """Blocks beside that one and `model` which results depend on."""

    data: InferenceData
    budget: Budget = Budget()
    evaluation: RowEvaluation | None = None

    @model_validator(mode="after")
    def _has_texts_to_score(self) -> Self:
        if self.leaves_vectors and self.evaluation is not None:
            raise ValueError("evaluation scores texts, and this task leaves vectors")
        return self

    @property
    def error_budget(self) -> float:
        """The share of rows that may end with an error, as the block says."""
        return getattr(getattr(self, self.block_name, None), "error_budget", 0.0)

    @property
    def shard_rows(self) -> int:
        """Rows that a shard has at least, as far as there are as many."""
        return 1

    @property
    def given_seed(self) -> int | None:
        """The seed that the template names; without one each plan draws its own."""
        return None

    @property
    def system_prompt(self) -> str | None:
        """What stands before each row."""
        return None

    @property
    def rows_are_alike(self) -> bool:
        """Whether a row's output is the same at any place among any other rows.

        Small tasks are computed together where that is so.
        """
        return False


class ModelSpec(RowSpec):
    """A task that sends each row through a model."""

    row_limits: ClassVar[frozenset[str]] = frozenset({"tokens", "cost"})

    ability: ClassVar[Ability] = "generate"
    """What its engine does with a row."""

    tools_block: ClassVar[str] = "inference"
    """The key of the block that lists the model's tools."""

    suspects_rows: ClassVar[bool] = True
    """Whether rows that a worker died with are computed one by one at first."""

    model: Model
    reuse: bool = False
    """Take answers from earlier tasks where model, prompt and options are exactly the same."""

    @property
    def row_block(self) -> Inference | Pooling | Reranking:
        """How a row is answered that has no options of its own."""
        return getattr(self, self.block_name)

    @property
    def calls_tools(self) -> bool:
        """Whether the model is offered tools."""
        return isinstance(self.row_block, Inference) and self.row_block.calls_tools


class InferenceSpec(ModelSpec):
    """Generates text for each row."""

    block_name: ClassVar[str] = "inference"

    inference: Inference = Inference()
    reuse: bool = False
    """Take answers from earlier tasks where model, prompt and sampling are exactly the same."""

    @property
    def given_seed(self) -> int | None:
        """The seed that the template names."""
        return self.inference.seed

    @property
    def system_prompt(self) -> str | None:
        """What stands before each row."""
        return self.inference.system_prompt

    @property
    def rows_are_alike(self) -> bool:
        """With a seed each row's stream counts from the first row of its own task."""
        return self.inference.seed is None


class EmbeddingSpec(ModelSpec):
    """Turns each row into a vector."""

    leaves_vectors: ClassVar[bool] = True
    ability: ClassVar[Ability] = "embed"
    block_name: ClassVar[str] = "pooling"

    pooling: Pooling = Pooling()
    reuse: bool = False
    """Take vectors from earlier tasks where model, text and pooling are exactly the same."""

    @property
    def rows_are_alike(self) -> bool:
        """A vector depends on its text alone."""
        return True


class TrainingSpec(TaskSpec):
    """What every training has."""

    method: ClassVar[TrainingMethod]
    """How it trains."""

    model: TrainedModel
    data: TrainingData
    training: Training = Training()
    lora: Lora | None = None
    checkpoint: Checkpoint | None = None
    evaluation: Evaluation | None = None
    require_gpu: bool = False
    """Refuse to train on a CPU."""

    @model_validator(mode="after")
    def _trains_what_is_whole(self) -> Self:
        option = self.model.transformers.quantised
        if option is not None and self.lora is None:
            raise ValueError(
                f"model.transformers.{option} freezes the model's weights: a lora block trains an "
                "adapter on them"
            )
        return self


class SftSpec(TrainingSpec):
    """Supervised fine-tuning of all weights."""

    method = TrainingMethod(layout=language, config="SFTConfig")

    @model_validator(mode="after")
    def _trains_all(self) -> Self:
        if self.lora is not None:
            raise ValueError("sft trains all weights; an adapter (lora) is trained by lora_sft")
        return self


class LoraSftSpec(TrainingSpec):
    """Supervised fine-tuning of a LoRA adapter."""

    method = TrainingMethod(layout=language, config="SFTConfig")

    lora: Lora | None = Lora()


class DpoSpec(TrainingSpec):
    """Direct preference optimisation, of all weights or of a LoRA adapter."""

    method = TrainingMethod(
        layout=preferences, config="DPOConfig", in_pairs=True, reference_beta=0.1
    )


class KtoSpec(TrainingSpec):
    """Kahneman-Tversky optimisation: answers that are good or bad, each by itself."""

    method = TrainingMethod(layout=labelled, config="KTOConfig", labelled=True, reference_beta=0.1)


class RewardSpec(TrainingSpec):
    """A reward model, from preferences: a classifier that scores the better answer higher."""

    method = TrainingMethod(
        layout=comparisons, config="RewardConfig", in_pairs=True, classifies=True
    )


class OnlineSpec(TrainingSpec):
    """A training that samples answers and has them scored."""

    reward_model: RewardModel | None = None
    rewards: tuple[RewardFunction, ...] = ()
    """Registered functions that score answers, summed with the reward model's score."""

    generation: Generation = Generation()

    @model_validator(mode="after")
    def _has_rewards(self) -> Self:
        if self.reward_model is None and not self.rewards:
            raise ValueError("give reward_model, rewards or both: something has to score answers")
        return self


class PpoSpec(OnlineSpec):
    """Proximal policy optimisation against a reward."""

    method = TrainingMethod(
        layout=prompts,
        options=PPO_ARGUMENTS,
        samples=True,
        reference_beta=0.05,
        single_process=True,
    )

    @model_validator(mode="after")
    def _is_one_process(self) -> Self:
        if (self.training.num_processes or 1) > 1:
            raise ValueError("PPO trains in one process: leave training.num_processes out")
        return self


class GrpoSpec(OnlineSpec):
    """Group-relative policy optimisation: answers compared with others to the same prompt."""

    method = TrainingMethod(
        layout=prompts,
        config="GRPOConfig",
        samples=True,
        groups=8,
        reference_beta=0.0,
        calls_tools=True,
    )


class RlooSpec(OnlineSpec):
    """REINFORCE, with the other answers to the same prompt as the baseline."""

    method = TrainingMethod(
        layout=prompts, config="RLOOConfig", samples=True, groups=2, reference_beta=0.05
    )


class Metadata(Block):
    """Who and what a template is."""

    name: Name
    """Names the job and its assets."""

    owner: str | None = None
    """A team or a person; shown as the assets' owner."""

    project: str | None = None
    """What it belongs to, for people."""

    description: str | None = None
    """What it does, in a sentence."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Keys and values to find it by."""

    annotations: dict[str, str | int | float] = Field(default_factory=dict)
    """Anything else; `description` and `sloSeconds` are understood."""


class Task(Block):
    """A task: one node of a compiled template.

    Attributes:
        name: The stage's or node's name; the template's own when it has neither.
        depends_on: Names of the nodes whose results this one reads or waits for.
        spec: What it does.
    """

    name: Name
    depends_on: tuple[Name, ...] = ()
    spec: SerializeAsAny[TaskSpec]
