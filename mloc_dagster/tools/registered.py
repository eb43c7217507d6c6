"""Tools of distributions: plain functions under the entry-point group `mloc_dagster.tools`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_type_hints

from pydantic import JsonValue, TypeAdapter, ValidationError

from mloc_dagster.errors import InputError, TerminalError, UnknownNameError, nearest_hint
from mloc_dagster.plugins import TOOLS_GROUP, entry_points, registered_function
from mloc_dagster.schema import AgentTool
from mloc_dagster.tools.threads import in_thread

_KIND = "tool"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_registered(tool: AgentTool, *, load: bool) -> None:
    """Checks that an entry point is there and can be a tool.

    Args:
        tool: The tool.
        load: Whether its function is imported, to see if it can be one, and takes the options.

    Raises:
        UnknownNameError: If nobody registered it; names the nearest.
        InputError: If a model cannot call it by its name, or its options are others.
        TerminalError: If it cannot be imported, or is no tool.
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
    if load:
        registered_tool(tool)


def registered_tool(tool: AgentTool) -> Callable[..., Any]:
    """Returns the function of an entry point, with what the template gives it.

    Its keyword-only parameters are the template's to give; the model gives the others, and does not
    see these.

    Raises:
        UnknownNameError: If nobody registered it.
        InputError: If the template's options are not those of the function.
        TerminalError: If it cannot be imported, or says not enough of itself to be a tool.
    """
    name = tool.entry_point or ""
    function = registered_function(TOOLS_GROUP, _KIND, name)
    where = f"the tool {name!r}"
    if not inspect.isroutine(function):
        raise TerminalError(f"{where} is no function: {function!r}")
    parameters = inspect.signature(function).parameters.values()
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise TerminalError(f"{where}: {each} has no name that a model could give")
        if each.annotation is inspect.Parameter.empty:
            raise TerminalError(f"{where}: its parameter {each.name!r} has no type")
    if not inspect.getdoc(function):
        raise TerminalError(f"{where} has no docstring, which tells the model what it does")
    if not callable(getattr(function, "outcome", registered_tool)):
        raise TerminalError(f"{where}: its `outcome` is no function, which takes a key")
    own = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
    return _with_options(function, own, tool.options, where) if own or tool.options else function


def _with_options(
    function: Callable[..., Any],
    own: Mapping[str, inspect.Parameter],
    options: Mapping[str, JsonValue],
    where: str,
) -> Callable[..., Any]:
    for name in options:
        if name not in own:
            hint = nearest_hint(name, own) if own else ": it takes none"
            raise InputError(f"{where} has no option {name!r}{hint}")
    types = get_type_hints(function)
    values: dict[str, Any] = {}
    for name, each in own.items():
        if name in options:
            try:
                values[name] = TypeAdapter(types[name]).validate_python(options[name])
            except ValidationError as error:
                said = error.errors(include_url=False, include_input=False)[0]["msg"]
                raise InputError(f"{where}: its option {name!r}: {said}") from None
        elif each.default is each.empty:
            raise InputError(f"{where} needs the option {name!r}")
    bound = functools.partial(function, **values)
    functools.update_wrapper(bound, function)
    signature = inspect.signature(function)
    shown = [each for each in signature.parameters.values() if each.name not in own]
    bound.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=shown
    )
    return bound


def registered_outcome(tool: AgentTool) -> Callable[[str], Awaitable[Any]] | None:
    """Returns what says what came of a call of an entry point; None if it has no such thing."""
    outcome = getattr(registered_tool(tool), "outcome", None)
    return None if outcome is None else as_coroutine(outcome)


def as_coroutine(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Returns a function as one that can be awaited; one that is not asynchronous has a thread."""
    if inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    async def threaded(*arguments: Any, **options: Any) -> Any:
        return await in_thread(functools.partial(function, *arguments, **options))

    return threaded
