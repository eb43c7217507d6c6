"""Tools of distributions: plain functions under the entry-point group `mloc_dagster.tools`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

from mloc_dagster.errors import InputError, TerminalError, UnknownNameError
from mloc_dagster.plugins import TOOLS_GROUP, entry_points, registered_function
from mloc_dagster.schema import AgentTool
from mloc_dagster.tools.threads import in_thread

_KIND = "tool"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_registered(tool: AgentTool) -> None:
    """Checks that an entry point is there and can be a tool, without importing it.

    Raises:
        UnknownNameError: If nobody registered it; names the nearest.
        InputError: If a model cannot call it by its name.
    """
    name = tool.entry_point or ""
    known = entry_points(group=TOOLS_GROUP).names
    if name not in known:
        raise UnknownNameError(_KIND, name, known)
    shown = tool.tool_name or ""
    if _NAME.fullmatch(shown) is None:
        raise InputError(
            f"the tool {name!r}: a model cannot call {shown!r}, which is not letters, digits, "
            "'_' and '-': give it a `name`"
        )


def registered_tool(name: str) -> Callable[..., Any]:
    """Returns the function of an entry point.

    Raises:
        UnknownNameError: If nobody registered it.
        TerminalError: If it cannot be imported, or says not enough of itself to be a tool.
    """
    function = registered_function(TOOLS_GROUP, _KIND, name)
    where = f"the tool {name!r}"
    if not inspect.isroutine(function):
        raise TerminalError(f"{where} is no function: {function!r}")
    for each in inspect.signature(function).parameters.values():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise TerminalError(f"{where}: {each} has no name that a model could give")
        if each.annotation is inspect.Parameter.empty:
            raise TerminalError(f"{where}: its parameter {each.name!r} has no type")
    if not inspect.getdoc(function):
        raise TerminalError(f"{where} has no docstring, which tells the model what it does")
    if not callable(getattr(function, "outcome", registered_tool)):
        raise TerminalError(f"{where}: its `outcome` is no function, which takes a key")
    return function


def registered_outcome(name: str) -> Callable[[str], Awaitable[Any]] | None:
    """Returns what says what came of a call of an entry point; None if it has no such thing."""
    outcome = getattr(registered_tool(name), "outcome", None)
    return None if outcome is None else as_coroutine(outcome)


def as_coroutine(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Returns a function as one that can be awaited; one that is not asynchronous has a thread."""
    if inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    async def threaded(*arguments: Any, **options: Any) -> Any:
        return await in_thread(functools.partial(function, *arguments, **options))

    return threaded
