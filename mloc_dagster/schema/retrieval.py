"""RAG and agent tasks: their templates can be checked, and not run yet."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.data import InferenceData
from mloc_dagster.schema.markers import FileRef, Url
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.schema.task_type import TaskType


class Qdrant(Block):
    """A Qdrant collection."""

    url: Annotated[str, Url()]
    """Where Qdrant listens."""

    api_key: SecretStr | None = None
    """Take it from the environment: `${QDRANT_API_KEY}`."""

    collection: str
    """The collection to search."""


class Embedding(Block):
    """The model that embeds queries."""

    model: Annotated[str, FileRef(anchored=False)]
    """A hub id."""


class Search(Block):
    """How passages are searched."""

    top_k: int = Field(default=5, ge=1, le=1000)
    """Passages per row."""


class Agent(Block):
    """Limits of one agent run."""

    timeout: float = Field(default=300.0, gt=0)
    """Seconds one row may take."""

    max_steps: int = Field(default=20, ge=1)
    """Thoughts and tool calls of one row at most."""


class RagSpec(RowSpec):
    """Finds passages for each row."""

    qdrant: Qdrant
    embedding: Embedding
    search: Search = Search()


class AgentSpec(RowSpec):
    """Lets an agent work on each row."""

    config_name: str = Field(default="default", alias="configName")
    """Which agent."""

    task: str | None = None
    """The one thing to do; or give `data` with one task a row."""

    data: InferenceData | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    agent: Agent = Agent()

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if (self.task is None) == (self.data is None):
            raise ValueError("give either task or data")
        return self


RAG = TaskType(name="rag", spec=RagSpec, executor=None, kinds=("RetrievalTask",))
AGENT = TaskType(
    name="agent",
    spec=AgentSpec,
    executor=None,
    kinds=("AgentTask",),
    exclusive=(frozenset({"task", "data"}),),
)
