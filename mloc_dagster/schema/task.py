"""The spec of one task, after stages and nodes are merged: one class per task type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.data import InferenceData, TrainingData
from mloc_dagster.schema.inference import Echo, Inference, Pooling
from mloc_dagster.schema.model import Model
from mloc_dagster.schema.output import Checks, Output
from mloc_dagster.schema.resources import Parallel, Resources, Retries, Slo
from mloc_dagster.schema.retrieval import Agent, Embedding, Qdrant, Search
from mloc_dagster.schema.training import Checkpoint, Generation, Lora, RewardModel, Training


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

    model: Model
    data: TrainingData
    training: Training = Training()
    checkpoint: Checkpoint | None = None


class SftSpec(TrainingSpec):
    """Supervised fine-tuning of all weights."""

    task_type: Literal["sft"] = Field(alias="taskType")


class LoraSftSpec(TrainingSpec):
    """Supervised fine-tuning of a LoRA adapter."""

    task_type: Literal["lora_sft"] = Field(alias="taskType")
    lora: Lora = Lora()


class DpoSpec(TrainingSpec):
    """Direct preference optimisation, of all weights or of a LoRA adapter."""

    task_type: Literal["dpo"] = Field(alias="taskType")
    lora: Lora | None = None


class PpoSpec(TrainingSpec):
    """Proximal policy optimisation against a reward model."""

    task_type: Literal["ppo"] = Field(alias="taskType")
    reward_model: RewardModel
    generation: Generation = Generation()
    lora: Lora | None = None


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
    | PpoSpec
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
    "ppo": PpoSpec,
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
