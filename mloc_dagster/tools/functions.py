"""The tools of a task as plain functions, for what trains a model to call them."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, Optional, cast

from pydantic import ValidationError

from mloc_dagster.errors import InputError
from mloc_dagster.schema import AgentTool
from mloc_dagster.tools.failure import FailedCall
from mloc_dagster.tools.passages import PassageSearch, no_search
from mloc_dagster.tools.toolsets import TOOL_TIMEOUT_S, open_toolsets

if TYPE_CHECKING:
    from pydantic_ai.tools import ToolDefinition
    from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

_TYPES: Mapping[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


@contextmanager
def tool_functions(
    tools: Sequence[AgentTool],
    *,
    tool_timeout: float = TOOL_TIMEOUT_S,
    log: Callable[[str], None] = lambda line: None,
    passages: PassageSearch = no_search,
) -> Generator[list[Callable[..., str]]]:
    """Opens tools as functions that are called and wait, as `tools` of TRL's trainers.

    Each has a name, a signature with types and a docstring in Google style, and returns a text,
    also for a call that failed. They may be called from several threads.

    Args:
        tools: The tools of a task.
        tool_timeout: Seconds that one call may take.
        log: Takes lines for the task's log, from any thread.
        passages: Searches indexes for the tool `rag`.

    Raises:
        MlocError: What `open_toolsets` raises.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="mloc tools", daemon=True)
    thread.start()
    stack = AsyncExitStack()

    def wait[T](work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    async def opened() -> list[tuple[AbstractToolset[Any], ToolsetTool[Any]]]:
        from mloc_dagster.tools.context import bare_context

        context = open_toolsets(tools, tool_timeout=tool_timeout, log=log, passages=passages)
        toolsets = await stack.enter_async_context(context)
        return [
            (toolset, tool)
            for toolset in toolsets
            for tool in (await toolset.get_tools(bare_context())).values()
        ]

    def calling(toolset: AbstractToolset[Any], tool: ToolsetTool[Any]) -> Callable[..., str]:
        return _function(tool.tool_def, lambda arguments: wait(_call(toolset, tool, arguments)))

    try:
        yield [calling(toolset, tool) for toolset, tool in wait(opened())]
    finally:
        wait(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _call(
    toolset: AbstractToolset[Any], tool: ToolsetTool[Any], arguments: dict[str, Any]
) -> str:
    from mloc_dagster.tools.context import bare_context

    try:
        checked = tool.args_validator.validate_python(arguments)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False)
        place = ".".join(map(str, first["loc"]))
        return FailedCall(f"Error: {place}: {first['msg']}")
    return await toolset.call_tool(tool.tool_def.name, checked, bare_context(), tool)


def _function(
    definition: ToolDefinition, call: Callable[[dict[str, Any]], str]
) -> Callable[..., str]:
    """Returns a function that looks as if somebody had written it from a tool's JSON Schema."""
    schema = definition.parameters_json_schema
    properties = cast("dict[str, dict[str, Any]]", schema.get("properties", {}))
    required = set(schema.get("required", ()))
    empty = inspect.Parameter.empty
    # Those that may be left out last, as Python has it.
    named = sorted(properties.items(), key=lambda each: each[0] not in required)
    if unfit := [name for name, _ in named if not name.isidentifier() or iskeyword(name)]:
        raise InputError(
            f"the tool {definition.name!r} has a parameter {unfit[0]!r}, which no function can have"
        )
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=empty if name in required else each.get("default"),
            annotation=_type(each, required=name in required),
        )
        for name, each in named
    ]
    signature = inspect.Signature(parameters, return_annotation=str)

    def function(*values: Any, **options: Any) -> str:
        try:
            arguments = signature.bind_partial(*values, **options).arguments
        except TypeError as error:
            return FailedCall(f"Error: {error}")
        return call(arguments)

    function.__name__ = function.__qualname__ = definition.name
    function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    function.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": str}
    function.__doc__ = _docstring(definition, properties)
    return function


def _type(schema: Mapping[str, Any], *, required: bool) -> Any:
    members = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    kind = members[0].get("type") if len(members) == 1 else None
    found = _TYPES.get(kind, Any) if isinstance(kind, str) else Any
    return found if required or found is Any else Optional[found]  # noqa: UP045 - a value


def _docstring(definition: ToolDefinition, properties: Mapping[str, Mapping[str, Any]]) -> str:
    said = " ".join((definition.description or definition.name).split())
    lines = [said, ""]
    if properties:
        lines.append("Args:")
    for name, each in properties.items():
        described = " ".join(str(each.get("description") or name).split())
        choices = each.get("enum")
        lines.append(f"    {name}: {described}{f' One of {choices}.' if choices else ''}")
    return "\n".join([*lines, "", "Returns:", "    The result, as text."])
