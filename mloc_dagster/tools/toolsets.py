"""The tools of a task as toolsets of pydantic-ai, opened once for all trajectories of a worker."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import InputError
from mloc_dagster.net import current_reach
from mloc_dagster.schema import AgentTool
from mloc_dagster.tools.checks import check_tools, mcp_secrets, search_key
from mloc_dagster.tools.failure import Patience
from mloc_dagster.tools.passages import PassageSearch, no_search, rag_function
from mloc_dagster.tools.registered import as_coroutine, registered_outcome, registered_tool

if TYPE_CHECKING:
    from pydantic_ai.toolsets import AbstractToolset

    from mloc_dagster.tools.observed import ObservedToolset

TOOL_TIMEOUT_S = 30.0

_SECTIONS = re.compile(r"^\s*(?:Args|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
"""Where the description in a docstring ends."""


@asynccontextmanager
async def open_toolsets(
    tools: Sequence[AgentTool],
    *,
    tool_timeout: float = TOOL_TIMEOUT_S,
    taken: Collection[str] = (),
    log: Callable[[str], None] = lambda line: None,
    passages: PassageSearch = no_search,
) -> AsyncGenerator[list[ObservedToolset]]:
    """Opens tools for as long as the block runs; what they start ends with it, however it ends.

    Many trajectories may call them at once, within the event loop that opened them. A call never
    raises: what fails is told in its result, a `FailedCall`. The metadata of each tool's definition
    says under `effect` what its calls change.

    What the current task may reach (`net.current_reach`) holds for them. A loop in a thread of its
    own must run in a copy of the task's context, or it has the reach of a local task.

    Args:
        tools: The tools of a task.
        tool_timeout: Seconds that one call may take.
        taken: Names that the model has for something else.
        log: Takes lines for the task's log, from any thread: what programs say.
        passages: Searches indexes for the tool `rag`.

    Yields:
        A toolset for each of the tools, in their order.

    Raises:
        MlocError: What `check_tools` raises.
        TransientError: If an MCP server does not start.
        InputError: If two tools have the same name, or an MCP server lacks one that is allowed.
    """
    check_tools(tools)
    async with AsyncExitStack() as stack:
        opened = [await _open(each, tool_timeout, log, stack, passages) for each in tools]
        await _check_names(opened, taken)
        yield opened


async def _open(
    tool: AgentTool,
    tool_timeout: float,
    log: Callable[[str], None],
    stack: AsyncExitStack,
    passages: PassageSearch,
) -> ObservedToolset:
    from mloc_dagster.tools.observed import ObservedToolset

    warning = "" if tool.call_effect == "read" else ": it may have been done or not"
    patience: Patience | None = Patience(tool_timeout, warning)
    outcome = None
    if tool.mcp is not None:
        from mloc_dagster.tools.mcp_servers import open_server

        server = open_server(
            tool.mcp, tool.name, patience, log, repeats=tool.call_effect != "write"
        )
        toolset = await stack.enter_async_context(server)
        patience = None  # a server that has to start again may take longer
    elif tool.python is not None:
        from mloc_dagster.tools.sandbox import open_sandbox

        sandbox = open_sandbox(tool.python, tool_timeout)
        toolset = _functions(tool, await stack.enter_async_context(sandbox))
        patience = None  # nor does the time count in which it waits its turn
    elif tool.rag is not None:
        toolset = _functions(tool, rag_function(tool.rag, passages))
    else:
        toolset = _functions(tool, await _function(tool, tool_timeout, stack))
        outcome = None if tool.entry_point is None else registered_outcome(tool)
    toolset = toolset.with_metadata(effect=tool.call_effect)
    return ObservedToolset(toolset, patience, _secrets(tool), outcome)


async def _function(
    tool: AgentTool, tool_timeout: float, stack: AsyncExitStack
) -> Callable[..., Any]:
    if tool.entry_point is not None:
        return as_coroutine(registered_tool(tool))
    if tool.http is not None:
        from mloc_dagster.tools.web import allowing_client, http_function

        reach = current_reach()
        private = reach.private_addresses, reach.private_setting
        client = await stack.enter_async_context(allowing_client(tool.http, private))
        return http_function(tool.http, client)
    if tool.search is not None:
        from mloc_dagster.tools.search import search_function
        from mloc_dagster.tools.web import http_client

        # The operator names where providers are: it may be a private address.
        client = await stack.enter_async_context(http_client((True, "")))
        return search_function(tool.search, client, tool_timeout)
    raise AssertionError(tool.kind)


def _functions(tool: AgentTool, function: Callable[..., Any]) -> AbstractToolset[Any]:
    from pydantic_ai import FunctionToolset, Tool

    # pydantic-ai would write what a function returns into its description, as XML.
    described = _SECTIONS.split(inspect.getdoc(function) or "", maxsplit=1)[0].strip()
    made = Tool[Any](
        function,
        takes_ctx=False,
        name=tool.tool_name,
        description=described,
        docstring_format="google",
    )
    return FunctionToolset[Any]([made])


def _secrets(tool: AgentTool) -> frozenset[str]:
    """Returns the texts that came from secrets of the template and of the environment."""
    if tool.search is not None:
        return frozenset({search_key(tool.search.provider)})
    if tool.mcp is None:
        return frozenset()
    return mcp_secrets(tool.mcp)


async def _check_names(opened: Sequence[AbstractToolset[Any]], taken: Collection[str]) -> None:
    from mloc_dagster.tools.context import bare_context

    names = set(taken)
    for toolset in opened:
        for name in await toolset.get_tools(bare_context()):
            if name in names:
                raise InputError(
                    f"two tools are called {name!r}: give one of them a `name`, or let an MCP "
                    "server `allow` others only"
                )
            names.add(name)
