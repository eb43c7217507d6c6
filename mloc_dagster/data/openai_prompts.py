"""What a request of OpenAI's API has to be answered: chats, and lists of texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from mloc_dagster.data.openai_endpoints import CHAT, COMPLETIONS, EMBEDDINGS, Body, RequestError
from mloc_dagster.errors import nearest_hint
from mloc_dagster.results.rows import Message, Prompt

MAX_INPUTS = 2048
"""Texts in one request, as the API has it."""

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
_PARTS = {"text": "text", "input_text": "text", "image_url": "image_url"}


def prompts_of(url: str, body: Body) -> Iterator[Prompt]:
    """Yields what a body wants answered: one chat, or each of its texts.

    Raises:
        RequestError: If there is nothing, or something that no model here reads.
    """
    yield from _PROMPTS[url](body)


def _chat_prompts(body: Body) -> Iterator[list[Message]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' must be a list with at least one message")
    yield [_message(place, each) for place, each in enumerate(cast("list[Any]", messages))]


def _message(place: int, given: Any) -> Message:
    where = f"messages[{place}]"
    if not isinstance(given, dict):
        raise RequestError(f"{where} is no object with role and content")
    message = cast("dict[str, Any]", given)
    role, content = message.get("role"), message.get("content")
    if message.get("tool_calls") or role in ("tool", "function"):
        raise RequestError(f"{where}: tools are not called here")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{where}.role: unknown role {role!r}{nearest_hint(str(role), _ROLES)}")
    name = _name(where, message.get("name"))
    if isinstance(content, str):
        return Message(_ROLES[role], content, name)
    if not isinstance(content, list) or not content:
        raise RequestError(f"{where}.content must be text or a list of parts")
    parts = [_part(f"{where}.content[{at}]", each) for at, each in enumerate(content)]
    return Message(_ROLES[role], parts, name)


def _name(where: str, given: object) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or _NAME.fullmatch(given) is None:
        raise RequestError(
            f"{where}.name: {given!r} is no name: 1 to 64 characters without white space, "
            "<, >, |, / and \\"
        )
    return given


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


def _texts(name: str) -> Callable[[Body], Iterator[str]]:
    """Returns a reader of a text or a list of texts; both completions and embeddings take them."""

    def read(body: Body) -> Iterator[str]:
        given = body.get(name)
        if isinstance(given, str):
            yield given
            return
        if not isinstance(given, list) or not given:
            raise RequestError(f"{name!r} must be text, or a list of texts")
        texts = cast("list[Any]", given)
        if all(isinstance(each, int | list) for each in texts):
            raise RequestError(f"{name!r} is token ids, which depend on the model: write text")
        if not all(isinstance(each, str) for each in texts):
            raise RequestError(f"{name!r} must be text, or a list of texts")
        if len(texts) > MAX_INPUTS:
            raise RequestError(f"{name!r} has {len(texts)} texts; at most {MAX_INPUTS} are allowed")
        yield from texts

    return read


_PROMPTS: Mapping[str, Callable[[Body], Iterator[Any]]] = {
    CHAT: _chat_prompts,
    COMPLETIONS: _texts("prompt"),
    EMBEDDINGS: _texts("input"),
}
