"""The spec of one task, after stages and nodes are merged: one class per task type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.data import InferenceData, TrainingData
from mloc_dagster.schema.inference import Echo, Inference, Pooling
from mloc_dagster.schema.model import Model
from mloc_dagster.schema.output import Checks, Output
from mloc_dagster.schema.resources import Parallel, Resources, Retries, Slo
from mloc_dagster.schema.retrieval import Agent, Embedding, Qdrant, Search
from mloc_dagster.schema.training import (
    Checkpoint,
    Evaluation,
    Generation,
    Lora,
    RewardFunction,
    RewardModel,
    Training,
)

TASK_TYPES_GROUP = "mloc_dagster.task_types"
"""The entry points of what runs each task type."""


class TaskSpec(Block):
    """What every task has."""

    resources: Resources = Resources()
    parallel: Parallel = Parallel()
    output: Output = Output()
    checks: Checks = Checks()
    retries: Retries = Retries()
    slo: Slo | None = None
    enforce_cpu: bool = False
    """Never use a GPU, even where there is one."""


class EchoSpec(TaskSpec):
    """Repeats its input."""

    task_type: Literal["echo"] = Field(alias="taskType")
    data: InferenceData
    echo: Echo = Echo()


class InferenceSpec(TaskSpec):
    """Generates text for each row."""

    task_type: Literal["inference"] = Field(alias="taskType")
    model: Model
    data: InferenceData
    inference: Inference = Inference()
    reuse: bool = False
    """Take answers from earlier tasks where model, prompt and sampling are exactly the same."""


class EmbeddingSpec(TaskSpec):
    """Turns each row into a vector."""

    task_type: Literal["embedding"] = Field(alias="taskType")
    model: Model
    data: InferenceData
    pooling: Pooling = Pooling()
    reuse: bool = False
    """Take vectors from earlier tasks where model, text and pooling are exactly the same."""


class TrainingSpec(TaskSpec):
    """What every training has."""

    # Any: each class of specs narrows it to its own literal, which nobody could do to a str.
    task_type: Any = Field(alias="taskType")
    model: Model
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

    task_type: Literal["sft"] = Field(alias="taskType")

    @model_validator(mode="after")
    def _trains_all(self) -> Self:
        if self.lora is not None:
            raise ValueError("sft trains all weights; an adapter (lora) is trained by lora_sft")
        return self


class LoraSftSpec(TrainingSpec):
    """Supervised fine-tuning of a LoRA adapter."""

    task_type: Literal["lora_sft"] = Field(alias="taskType")
    lora: Lora | None = Lora()


class DpoSpec(TrainingSpec):
    """Direct preference optimisation, of all weights or of a LoRA adapter."""

    task_type: Literal["dpo"] = Field(alias="taskType")


class KtoSpec(TrainingSpec):
    """Kahneman-Tversky optimisation: answers that are good or bad, each by itself."""

    task_type: Literal["kto"] = Field(alias="taskType")


class RewardSpec(TrainingSpec):
    """A reward model, from preferences: a classifier that scores the better answer higher."""

    task_type: Literal["reward"] = Field(alias="taskType")


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

    task_type: Literal["ppo"] = Field(alias="taskType")

    @model_validator(mode="after")
    def _is_one_process(self) -> Self:
        if (self.training.num_processes or 1) > 1:
            raise ValueError("PPO trains in one process: leave training.num_processes out")
        return self


class GrpoSpec(OnlineSpec):
    """Group-relative policy optimisation: answers compared with others to the same prompt."""

    task_type: Literal["grpo"] = Field(alias="taskType")


class RlooSpec(OnlineSpec):
    """REINFORCE, with the other answers to the same prompt as the baseline."""

    task_type: Literal["rloo"] = Field(alias="taskType")


class RagSpec(TaskSpec):
    """Finds passages for each row."""

    task_type: Literal["rag"] = Field(alias="taskType")
    data: InferenceData
    qdrant: Qdrant
    embedding: Embedding
    search: Search = Search()


class AgentSpec(TaskSpec):
    """Lets an agent work on each row."""

    task_type: Literal["agent"] = Field(alias="taskType")
    config_name: str = Field(default="default", alias="configName")
    """Which agent."""

    task: str | None = None
    """The one thing to do; or give `data` with one task a row."""

    data: InferenceData | None = None
    agent: Agent = Agent()

    @model_validator(mode="after")
    def _has_rows(self) -> AgentSpec:
        if (self.task is None) == (self.data is None):
            raise ValueError("give either task or data")
        return self


AnyTaskSpec = Annotated[
    EchoSpec
    | InferenceSpec
    | EmbeddingSpec
    | SftSpec
    | LoraSftSpec
    | DpoSpec
    | KtoSpec
    | RewardSpec
    | PpoSpec
    | GrpoSpec
    | RlooSpec
    | RagSpec
    | AgentSpec,
    Field(discriminator="task_type"),
]

SPEC_TYPES: Mapping[str, type[TaskSpec]] = {
    "echo": EchoSpec,
    "inference": InferenceSpec,
    "embedding": EmbeddingSpec,
    "sft": SftSpec,
    "lora_sft": LoraSftSpec,
    "dpo": DpoSpec,
    "kto": KtoSpec,
    "reward": RewardSpec,
    "ppo": PpoSpec,
    "grpo": GrpoSpec,
    "rloo": RlooSpec,
    "rag": RagSpec,
    "agent": AgentSpec,
}
"""The spec of each task type."""

ModelSpec = InferenceSpec | EmbeddingSpec
"""Tasks that send each row through a model."""

RowSpec = EchoSpec | InferenceSpec | EmbeddingSpec | RagSpec | AgentSpec
"""Tasks whose result is one output per row."""


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
    spec: AnyTaskSpec
