"""Tools as the loop of an agent calls them, each call once."""

from __future__ import annotations

from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.toolsets import ToolsetTool, WrapperToolset

from mloc_dagster.executors.agent.trajectory import AGENT_EFFECT, Trajectory
from mloc_dagster.tools import ObservedToolset, ToolFailure


class JournaledTools(WrapperToolset[Trajectory]):
    """Tools whose answers are noted in the journal of the trajectory that calls them.

    One that replays another task has their answers from there. Agents among them are asked in any
    case, as they have a trajectory of their own.
    """

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, Any],
        ctx: RunContext[Trajectory],
        tool: ToolsetTool[Trajectory],
    ) -> str:
        """Calls a tool, once."""
        effect = (tool.tool_def.metadata or {}).get("effect", "write")
        row, tools, call_id = ctx.deps, self.wrapped, ctx.tool_call_id or ""
        record = None if effect == AGENT_EFFECT else row.record

        async def run() -> object:
            if record is None:
                return await tools.call_tool(name, tool_args, ctx, tool)
            return record.answer(row.turn, row.place_of(call_id))

        async def ask(key: str) -> str | None:
            if not isinstance(tools, ObservedToolset):
                raise ToolFailure("nobody can be asked")
            return await tools.outcome_of(name, key)

        return await row.call(
            row.turn, call_id, name, effect if record is None else "read", run, ask
        )
