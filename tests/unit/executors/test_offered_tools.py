"""Tools of a turn as an `inference` block has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic_ai.tools import ToolDefinition

from mloc_dagster.executors.agent.engine_model import offered


def tool(about: str, **properties: Any) -> ToolDefinition:
    schema = {"type": "object", "properties": properties}
    return ToolDefinition(name="find", description=about, parameters_json_schema=schema)


def test_equal_tools_are_offered_as_one_block_and_others_are_not() -> None:
    text = {"type": "string"}
    first = tool("Finds.", b=text, a=text)
    known = offered([first])
    assert offered([first]) is known
    assert offered([tool("Finds.", b=text, a=text)]) is known
    parameters: Any = known[0].function.parameters
    assert list(parameters["properties"]) == ["b", "a"], "in their order"
    assert offered([replace(first, description="Seeks.")])[0].function.description == "Seeks."
    assert offered([tool("Finds.", c=text)]) is not known
    assert offered([]) == ()
