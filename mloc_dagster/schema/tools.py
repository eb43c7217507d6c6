"""What a model may call: functions with a JSON Schema, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from mloc_dagster.schema.base import Block


class Function(Block):
    """A function that a model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """What the model calls it."""

    description: str | None = None
    """What it does, for the model."""

    parameters: Mapping[str, JsonValue] | None = None
    """A JSON Schema of its arguments, an object; none takes no argument."""

    strict: bool | None = None
    """Hold the arguments to the schema, where the engine can."""


class FunctionTool(Block):
    """A tool of a model."""

    type: Literal["function"] = "function"
    function: Function


class FunctionName(Block):
    """Which function."""

    name: str


class NamedToolChoice(Block):
    """The function that is to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class CalledFunction(Block):
    """What a model called."""

    name: str

    arguments: str
    """A JSON object, as the model wrote it."""


class MessageToolCall(Block):
    """A call that stands in a chat."""

    id: str
    """What the tool's answer names in `tool_call_id`."""

    type: Literal["function"] = "function"
    function: CalledFunction


ToolChoice = Literal["auto", "none", "required"] | NamedToolChoice
