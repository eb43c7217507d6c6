"""The messages of an OpenAI API request as those of a chat, calls of tools among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mloc_dagster.errors import nearest_hint
from mloc_dagster.results import FunctionCall, Message, ToolCall


class RequestError(ValueError):
    """A request that cannot be answered, while others of its file can."""


_ROLES = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
_PARTS = {"text": "text", "input_text": "text", "image_url": "image_url"}


def chat_messages(given: object) -> list[Message]:
    """Returns the messages of a chat.

    Raises:
        RequestError: If it is no chat, or holds something that no model here reads.
    """
    if not isinstance(given, list) or not given:
        raise RequestError("'messages' must be a list with at least one message")
    messages = [_message(place, each) for place, each in enumerate(cast("list[Any]", given))]
    _check_answered(messages)
    return messages


def _message(place: int, given: Any) -> Message:
    where = f"messages[{place}]"
    if not isinstance(given, dict):
        raise RequestError(f"{where} is no object with role and content")
    message = cast("dict[str, Any]", given)
    role = _role(where, message)
    name = _name(where, message.get("name"))
    calls = _calls(where, message.get("tool_calls"))
    if calls and role != "assistant":
        raise RequestError(f"{where}.tool_calls: only the assistant calls tools, not the {role}")
    content = _content(where, role, message.get("content"), optional=bool(calls))
    answers = _answered_call(where, message) if role == "tool" else None
    return Message(role, content, name, calls or None, answers, _reasoning(where, role, message))


def _role(where: str, message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if role == "function" or message.get("function_call") is not None:
        what = "role: 'function'" if role == "function" else "function_call"
        raise RequestError(
            f"{where}.{what} is deprecated and not supported: use tool_calls, and messages with "
            "the role 'tool' and a tool_call_id"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{where}.role: unknown role {role!r}{nearest_hint(str(role), _ROLES)}")
    return _ROLES[role]


def _name(where: str, given: object) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or _NAME.fullmatch(given) is None:
        raise RequestError(
            f"{where}.name: {given!r} is no name: 1 to 64 characters without white space, "
            "<, >, |, / and \\"
        )
    return given


def _content(
    where: str, role: str, content: object, *, optional: bool
) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list) or not content:
        beside = ", or null beside tool_calls" if role == "assistant" else ""
        raise RequestError(f"{where}.content must be text or a list of parts{beside}")
    parts = [_part(f"{where}.content[{at}]", each) for at, each in enumerate(content)]
    if role == "tool" and any(part["type"] != "text" for part in parts):
        raise RequestError(f"{where}.content: what a tool answers is text, or parts of text")
    return parts


def _part(where: str, part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _PARTS:
        raise RequestError(f"{where}: parts of type {kind!r} are not supported: text, image_url")
    if _PARTS[kind] == "text":
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}.text must be text")
        return {"type": "text", "text": part["text"]}
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str) or not url:
        raise RequestError(f"{where}.image_url.url must be an address")
    return {"type": "image_url", "image_url": {"url": url}}


def _calls(where: str, given: object) -> list[ToolCall]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise RequestError(f"{where}.tool_calls must be a list of calls")
    calls = cast("list[Any]", given)
    return [_call(f"{where}.tool_calls[{at}]", each) for at, each in enumerate(calls)]


def _call(where: str, given: Any) -> ToolCall:
    if not isinstance(given, dict):
        raise RequestError(f"{where} is no object with id, type and function")
    call = cast("dict[str, Any]", given)
    if call.get("type", "function") != "function":
        raise RequestError(
            f"{where}.type: calls of type {call['type']!r} are not supported: function"
        )
    function = call.get("function")
    if not isinstance(function, dict):
        raise RequestError(f"{where}.function must be an object with name and arguments")
    function = cast("dict[str, Any]", function)
    return ToolCall(
        _text(where, "id", call),
        FunctionCall(
            _text(f"{where}.function", "name", function),
            _text(f"{where}.function", "arguments", function, what="JSON text"),
        ),
    )


def _answered_call(where: str, message: Mapping[str, Any]) -> str:
    return _text(where, "tool_call_id", message, what="the id of the call that it answers")


def _text(where: str, name: str, given: Mapping[str, Any], *, what: str = "text") -> str:
    if name not in given:
        raise RequestError(f"{where}.{name} is missing; it must be {what}")
    value = given[name]
    if not isinstance(value, str) or (not value and name != "arguments"):
        raise RequestError(f"{where}.{name} must be {what}, not {value!r}")
    return value


def _reasoning(where: str, role: str, message: Mapping[str, Any]) -> str | None:
    """Returns what the assistant thought, under either of the names that servers give it."""
    for name in ("reasoning", "reasoning_content"):
        value = message.get(name)
        if value is None or role != "assistant":
            continue
        if not isinstance(value, str):
            raise RequestError(f"{where}.{name} must be text")
        return value
    return None


def _check_answered(messages: Sequence[Message]) -> None:
    """Refuses answers to no call, and calls without an answer, as the hosted API does."""
    open_calls: dict[str, int] = {}
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if message.tool_call_id is not None:
            if message.tool_call_id not in open_calls:
                raise RequestError(
                    f"{where}.tool_call_id: {message.tool_call_id!r} is the id of no call in the "
                    "tool_calls before it that waits for an answer"
                )
            del open_calls[message.tool_call_id]
            continue
        _check_none_open(open_calls)
        open_calls = {call.id: place for call in message.tool_calls or ()}
    _check_none_open(open_calls)


def _check_none_open(open_calls: Mapping[str, int]) -> None:
    if open_calls:
        place = next(iter(open_calls.values()))
        raise RequestError(
            f"messages[{place}].tool_calls must be followed by a message with the role 'tool' for "
            f"each call; none answers {', '.join(map(repr, open_calls))}"
        )
