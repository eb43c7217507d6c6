"""Tools in the hands of pydantic-ai's agents: many trajectories over the same ones."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from mloc_dagster.schema import AgentTool
from mloc_dagster.tools import open_toolsets

CALLS = [
    ToolCallPart("calculator", {"expression": "6 * 7"}),
    ToolCallPart("calculator", {"expression": "1 / 0"}),
    ToolCallPart("python", {"code": "print(1)\nopen('/etc/passwd')"}),
    ToolCallPart("http", {"url": "http://127.0.0.1:1/"}),
]
TOOLS: list[dict[str, Any]] = [
    {"entry_point": "calculator", "effect": "read"},
    {"python": {}},
    {"http": {"allow": ["127.0.0.1:1"]}},
]


def test_many_trajectories_share_tools_and_none_fails_by_them() -> None:
    effects: list[dict[str, Any]] = []

    async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            effects.append({each.name: each.metadata for each in info.function_tools})
            return ModelResponse(parts=list(CALLS))
        return ModelResponse(parts=[TextPart("done")])

    async def run() -> list[Any]:
        tools = [AgentTool.model_validate(each) for each in TOOLS]
        async with open_toolsets(tools) as toolsets:
            agent = Agent(FunctionModel(model), toolsets=toolsets)
            return await asyncio.gather(*(agent.run(f"question {n}") for n in range(20)))

    runs = asyncio.run(run())
    assert {each.output for each in runs} == {"done"}
    assert effects[0] == {each: {"effect": "read"} for each in ("calculator", "python", "http")}
    for each in runs:
        # As they are stored, a failed call is a text like any other.
        messages = ModelMessagesTypeAdapter.validate_json(each.all_messages_json())
        parts = [part for one in messages for part in one.parts if isinstance(part, ToolReturnPart)]
        product, division, code, page = (part.content for part in parts)
        assert product == "42"
        assert division == "Error: ValueError: '1 / 0' divides by zero"
        assert str(code).startswith("Error: 1\nPermissionError")
        assert str(page).startswith("Error: ConnectError")
