"""Opening tools and calling them one after another, as an agent would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mloc_dagster.schema import AgentTool
from mloc_dagster.tools import open_toolsets
from mloc_dagster.tools.context import bare_context

Item = dict[str, Any]
Call = tuple[str, dict[str, Any]]


class Opened:
    """Tools that are open, by the names that a model calls them."""

    def __init__(self, tools: dict[str, Any]) -> None:
        self._tools = tools

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    def definition(self, name: str) -> Any:
        return self._tools[name][1].tool_def

    async def call(self, name: str, /, **arguments: Any) -> str:
        toolset, tool = self._tools[name]
        checked = tool.args_validator.validate_python(arguments)
        return await toolset.call_tool(name, checked, bare_context(), tool)


@asynccontextmanager
async def opened(*items: Item, **options: Any) -> AsyncGenerator[Opened]:
    tools = [AgentTool.model_validate(each) for each in items]
    async with open_toolsets(tools, **options) as toolsets:
        found = {}
        for toolset in toolsets:
            for name, tool in (await toolset.get_tools(bare_context())).items():
                found[name] = toolset, tool
        yield Opened(found)


def results(item: Item, *calls: Call, **options: Any) -> list[str]:
    """Returns the results of calls, one after another."""

    async def run() -> list[str]:
        async with opened(item, **options) as tools:
            return [await tools.call(name, **arguments) for name, arguments in calls]

    return asyncio.run(run())


def result(
    item: Item, name: str, /, _options: dict[str, Any] | None = None, **arguments: Any
) -> str:
    """Returns the result of one call."""
    (only,) = results(item, (name, arguments), **(_options or {}))
    return only


Log = Callable[[str], None]
