"""Agents: a model that calls tools, turn after turn, until it has an answer to its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from mloc_dagster.schema.agent_tools import AgentTool, AgentTools, Effect, distinct
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.data import InferenceData
from mloc_dagster.schema.inference import Inference
from mloc_dagster.schema.task import ModelSpec


class AgentBudget(Block):
    """What one row may spend."""

    tokens: int | None = Field(default=None, ge=1)
    """Tokens read and written, over all turns."""

    tool_calls: int | None = Field(default=None, ge=0)
    """Calls of tools."""

    cost: float | None = Field(default=None, gt=0)
    """What its turns may cost, by the price in `resources`."""


class AgentLoop(Block):
    """What an agent is told, and when it has to end."""

    instructions: str | None = None
    """Stands before each row, as a system message; of a worker, before what it is asked."""

    output_schema: Mapping[str, JsonValue] | None = None
    """A JSON Schema that the final answer fits."""

    max_steps: int = Field(default=20, ge=1)
    """Turns of the model for one row, or for one call of a worker."""

    timeout: float = Field(default=300.0, gt=0)
    """Seconds that may be spent on one row, or on one call of a worker; time while no process has
    it does not count."""

    budget: AgentBudget = AgentBudget()

    on_limit: Literal["answer", "fail"] = "answer"
    """What happens at `max_steps` or at the end of a budget: the model is asked once more, for an
    answer without tools; or the row, or the call, fails."""

    retries: int = Field(default=3, ge=0)
    """How often in a row the model may call a tool wrongly, or answer in a wrong form, and is told
    so."""


class Worker(AgentLoop):
    """An agent that another one calls as a tool, each time with a task in words."""

    description: str = Field(min_length=1)
    """What the calling model reads: what to ask it for."""

    tools: AgentTools = ()
    """What it may call itself: no agents."""

    @field_validator("tools", mode="before")
    @classmethod
    def _no_agents(cls, value: object) -> object:
        items = cast("list[object]", value) if isinstance(value, list | tuple) else []
        if any(isinstance(each, dict) and "agent" in each for each in items):
            raise ValueError("an agent that is a tool has no agents among its own tools")
        return cast("object", value)


class ToolOrWorker(AgentTool):
    """A tool: exactly one of `python`, `mcp`, `search`, `http`, `entry_point` and `agent`."""

    kinds: ClassVar[tuple[str, ...]] = (*AgentTool.kinds, "agent")

    agent: Worker | None = None
    """A worker: an agent with instructions and tools of its own, on the same model."""

    @model_validator(mode="after")
    def _no_effect_of_its_own(self) -> Self:
        if self.agent is not None and self.effect is not None:
            raise ValueError("an agent has no effect of its own: each of its tools has one")
        return self

    @property
    def call_effect(self) -> Effect:
        """What a call changes; of an agent nothing, beyond what its own calls do."""
        return "read" if self.agent is not None else super().call_effect


class Agent(AgentLoop):
    """What an agent is told, what it may call, and when it has to end."""

    tools: Annotated[tuple[ToolOrWorker, ...], AfterValidator(distinct)] = ()
    """What the model may call."""

    concurrency: int = Field(default=64, ge=1, le=10_000)
    """Rows that a worker works on at the same time."""

    tool_timeout: float = Field(default=30.0, gt=0)
    """Seconds that one call of a tool may take; an agent that is a tool has its `timeout`."""

    trace_content: bool = False
    """Put prompts, answers, arguments and results into the spans of `traces/` as well."""

    replay: Literal["auto", "strict"] = "auto"
    """`strict` answers calls from the task `recorded`, and calls no tool; a row whose model calls
    otherwise than the recorded one ends with an error that says where."""

    recorded: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The id of the task that `replay: strict` answers from."""

    @model_validator(mode="after")
    def _replays_something(self) -> Self:
        if self.replay == "strict" and self.recorded is None:
            raise ValueError("replay: strict answers from a task: name it as agent.recorded")
        if self.replay == "auto" and self.recorded is not None:
            raise ValueError("agent.recorded is for agent.replay: strict")
        return self


def _model_of_a_preset(schema: dict[str, Any]) -> None:
    """Lets templates leave out what every preset has."""
    schema["required"] = [each for each in schema.get("required", ()) if each != "model"]


class AgentSpec(ModelSpec):
    """Lets an agent work on each row."""

    model_config = ConfigDict(json_schema_extra=_model_of_a_preset)

    block_name: ClassVar[str] = "inference"
    row_limits: ClassVar[frozenset[str]] = frozenset()
    tools_block: ClassVar[str] = "agent"
    suspects_rows: ClassVar[bool] = False
    """A trajectory takes minutes of waiting for tools: one by one, they would take hours."""

    config_name: str = Field(default="default", alias="configName")
    """Which agent."""

    task: str | None = None
    """The one thing to do; or give `data` with one task a row."""

    # One of the two is there; after validation it is `data`.
    data: InferenceData | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    agent: Agent = Agent()
    inference: Inference = Inference()
    """How each turn is generated."""

    @model_validator(mode="before")
    @classmethod
    def _one_row(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        if (given.get("task") is None) == (given.get("data") is None):
            raise ValueError("give either task or data")
        if given.get("data") is not None:
            return given
        return {**given, "data": {"type": "list", "items": [given["task"]]}}

    @model_validator(mode="after")
    def _has_its_own_tools(self) -> Self:
        if self.inference.tools:
            raise ValueError("an agent's tools stand in agent.tools, and not in inference.tools")
        if self.inference.structured_outputs is not None:
            raise ValueError("the form of an agent's final answer is agent.output_schema")
        if self.inference.n > 1:
            raise ValueError("inference.n is 1 for an agent: each row has one trajectory")
        return self

    @property
    def shard_rows(self) -> int:
        """As many as a worker works on at the same time: its shards come one after another."""
        return self.agent.concurrency if self.parallel.max_shards is None else 1

    @property
    def calls_tools(self) -> bool:
        """Whether the model is offered tools."""
        return bool(self.agent.tools) or self.agent.output_schema is not None

    @property
    def given_seed(self) -> int | None:
        """The seed that the template names."""
        return self.inference.seed

    @property
    def system_prompt(self) -> str | None:
        """What stands before each row."""
        return self.agent.instructions
