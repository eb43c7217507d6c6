"""What the scripted engine is, and what it says."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue

from mloc_dagster.schema import Block, EngineType


class ScriptedCall(Block):
    """A call of a tool."""

    name: str
    """The tool."""

    arguments: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Its arguments; texts among them may have the placeholders of `text`."""


class ScriptedTurn(Block):
    """What the model says in one turn."""

    text: str = ""
    """What it says; `{index}` is the row's place, `{prompt}` what the user said last, `{result}`
    what the last tool answered."""

    reasoning: str | None = None
    """What it thinks before."""

    tool_calls: tuple[ScriptedCall, ...] = ()
    """What it calls, if it is offered tools."""

    delay_s: float = Field(default=0.0, ge=0)
    """Seconds that the turn takes; those of several rows pass at the same time."""


class ScriptedOptions(Block):
    """The scripted engine, which plays given turns instead of a model: for tests and demos.

    Tokens are words.
    """

    turns: tuple[ScriptedTurn, ...] = ()
    """Turn by turn; the last one is said again and again."""

    agents: Mapping[str, tuple[ScriptedTurn, ...]] = Field(default_factory=dict)
    """The turns of agents that say something else, by their instructions: of workers, for one."""

    max_concurrency: int = Field(default=1024, ge=1)
    """Turns that pass at the same time."""


SCRIPTED = EngineType(
    name="scripted",
    label="the scripted engine",
    options=ScriptedOptions,
    loader="mloc_dagster.executors.engines.scripted.engine:ScriptedLoader",
    abilities=frozenset({"generate", "tools"}),
    runs_anywhere=True,
    claims=("turns",),
    batching=frozenset({"max_concurrency"}),
)
