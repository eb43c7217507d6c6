"""What an OpenAI API request says of tools and of thinking, as options of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from mloc_dagster.data.openai_messages import RequestError
from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema import FunctionTool, NamedToolChoice

TOOL_FIELDS = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "chat_template_kwargs"}
)
"""Fields of a body that are read here."""

_MOST_TOOLS = 128
_MODES = ("auto", "none", "required")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def tool_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that a body means by its fields of `TOOL_FIELDS`.

    Args:
        given: The body's fields that are not null.

    Raises:
        RequestError: If one of them is not as the API has it.
    """
    options: dict[str, Any] = {}
    if "tools" in given:
        options["tools"] = _tools(given["tools"])
    if "tool_choice" in given:
        options["tool_choice"] = _choice(given["tool_choice"])
    if "parallel_tool_calls" in given:
        options["parallel_tool_calls"] = several = given["parallel_tool_calls"]
        if not isinstance(several, bool):
            raise RequestError(f"'parallel_tool_calls' must be true or false, not {several!r}")
    if {"reasoning_effort", "chat_template_kwargs"} & given.keys():
        options["chat_template_kwargs"] = _template_values(given)
    return options


def _tools(given: object) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise RequestError(f"'tools' must be a list of tools, not {given!r}")
    tools = cast("list[Any]", given)
    if len(tools) > _MOST_TOOLS:
        raise RequestError(f"'tools' has {len(tools)} tools; at most {_MOST_TOOLS} are allowed")
    return [_tool(f"tools[{place}]", each) for place, each in enumerate(tools)]


def _tool(where: str, given: Any) -> dict[str, Any]:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "function":
        raise RequestError(f"{where}.type: tools of type {kind!r} are not supported: function")
    return _valid(FunctionTool, where, given)


def _choice(given: Any) -> Any:
    if isinstance(given, str):
        if given in _MODES:
            return given
        raise RequestError(
            f"'tool_choice' is auto, none, required or a function, not {given!r}"
            f"{nearest_hint(given, _MODES)}"
        )
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "function":
        raise RequestError(
            f"'tool_choice' of type {kind!r} is not supported: auto, none, required or "
            '{"type": "function", "function": {"name": …}}'
        )
    return _valid(NamedToolChoice, "tool_choice", given)


def _valid(
    block: type[FunctionTool] | type[NamedToolChoice], where: str, given: Any
) -> dict[str, Any]:
    """Returns what was given, if it has the form of a block."""
    try:
        block.model_validate(given, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = "".join(f".{step}" for step in first["loc"])
        told = (
            "" if first["type"] in ("missing", "extra_forbidden") else f", not {first['input']!r}"
        )
        raise RequestError(f"{where}{path}: {first['msg']}{told}") from None
    return given


def _template_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values for the chat template; how hard to think are two of them, as in vLLM."""
    values = given.get("chat_template_kwargs", {})
    if not isinstance(values, dict):
        raise RequestError(f"'chat_template_kwargs' must be an object, not {values!r}")
    effort = given.get("reasoning_effort")
    if effort is None:
        return cast("dict[str, Any]", values)
    if effort not in _EFFORTS:
        raise RequestError(
            f"'reasoning_effort' is one of {', '.join(_EFFORTS)}, not {effort!r}"
            f"{nearest_hint(str(effort), _EFFORTS)}"
        )
    return {"reasoning_effort": effort, "enable_thinking": effort != "none", **values}
