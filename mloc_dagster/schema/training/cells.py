"""What a cell of a training row must hold: text, chat messages, a label, two answers to compare.

Each reader returns the value, or raises `ValueError` with the reason that a person is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import cast

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.base import HALF_A_CHARACTER

ROLES = ("system", "user", "assistant", "tool")

Messages = list[dict[str, object]]
"""Chat messages, each with at least `role` and `content`."""

Speech = str | Messages
"""A prompt or an answer, in either of TRL's forms."""

_TRUE = frozenset(("true", "1", "yes"))
_FALSE = frozenset(("false", "0", "no"))


def read_text(cell: object) -> str:
    """Reads text; numbers are written as JSON writes them.

    Raises:
        ValueError: If there is none, or nothing but white space.
    """
    match cell:
        case None:
            raise ValueError("is missing")
        case float() if math.isnan(cell):  # how data frames write "missing"
            raise ValueError("is missing")
        case str():
            if not cell.strip():
                raise ValueError("is empty")
            return _unicode(cell)
        case bool():
            return "true" if cell else "false"
        case int() | float():
            return str(cell)
        case _:
            raise ValueError(f"holds {_kind(cell)}, not text")


def read_messages(cell: object) -> Messages:
    """Reads chat messages: `role` and `content`, and what else a message has.

    Raises:
        ValueError: If it holds none, or something in it is not a message of text.
    """
    match cell:
        case None:
            raise ValueError("is missing")
        case list() | tuple():
            given = cast("Sequence[object]", cell)
        case _:
            raise ValueError(f"holds {_kind(cell)}, not a list of chat messages")
    if not given:
        raise ValueError("is empty")
    messages = [_message(place, each) for place, each in enumerate(given)]
    if not any(str(message["content"]).strip() for message in messages):
        raise ValueError("has no message with any text")
    return messages


def read_tools(cell: object) -> list[object]:
    """Reads the tools of a chat: a list of their definitions, or its JSON text; none is no tools.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(cell, str):
        try:
            cell = cast("object", json.loads(cell))
        except ValueError:
            raise ValueError("holds text that is no JSON, where tools should be") from None
    match cell:
        case None:
            return []
        case list() | tuple():
            given = cast("Sequence[object]", cell)
        case _:
            raise ValueError(f"holds {_kind(cell)}, not a list of tools")
    wrong = next((each for each in given if not isinstance(each, Mapping)), None)
    if wrong is not None:
        raise ValueError(f"holds {_kind(wrong)} where a tool should be")
    return list(given)


def read_speech(cell: object) -> Speech:
    """Reads text or chat messages, whichever the cell holds.

    Raises:
        ValueError: If it is neither.
    """
    chat = isinstance(cell, list | tuple)
    return read_messages(cast("object", cell)) if chat else read_text(cell)


def read_answer(cell: object) -> Speech:
    """Reads an answer: text, or messages of which the last is the assistant's.

    Raises:
        ValueError: If it is neither.
    """
    answer = read_speech(cell)
    if not isinstance(answer, str) and answer[-1]["role"] != "assistant":
        raise ValueError("does not end with a message of the assistant")
    return answer


def read_label(cell: object) -> bool:
    """Reads whether an answer is good: a boolean, 0 or 1, or one of these as text.

    Raises:
        ValueError: If it is none of these.
    """
    if cell is None:
        raise ValueError("is missing")
    text = str(cell).strip().lower()
    if isinstance(cell, float) and cell in (0.0, 1.0):  # a column of numbers with gaps
        return cell == 1.0
    if isinstance(cell, bool | int | str) and text in _TRUE | _FALSE:
        return text in _TRUE
    raise ValueError(f"holds {_shown(cell)}, which is neither true nor false")


def _message(place: int, given: object) -> dict[str, object]:
    match given:
        case Mapping():
            fields = cast("Mapping[object, object]", given)
        case _:
            raise ValueError(f"holds {_kind(given)} where message {place} should be")
    # Tables give every message the keys of all: those without a value are none.
    message = {str(key): value for key, value in fields.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        hint = nearest_hint(str(role), ROLES) if role is not None else ""
        raise ValueError(f"has a message {place} with the role {role!r}{hint}")
    content = message.get("content")
    if isinstance(content, list | tuple):
        message["content"] = _text_of(place, cast("Sequence[object]", content))
    elif content is None and "tool_calls" in message:
        message["content"] = ""
    elif not isinstance(content, str):
        raise ValueError(f"has a message {place} whose content is {_kind(content)}, not text")
    _unicode(str(message["content"]))
    return message


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"is {HALF_A_CHARACTER}") from None
    return text


def _text_of(place: int, parts: Sequence[object]) -> str:
    texts: list[str] = []
    for part in parts:
        empty: Mapping[str, object] = {}
        fields = cast("Mapping[str, object]", part) if isinstance(part, Mapping) else empty
        text = fields.get("text")
        if fields.get("type") != "text" or not isinstance(text, str):
            raise ValueError(f"has a message {place} with a part that is not text")
        texts.append(text)
    return "\n".join(texts)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {_shown(value)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


Preferred = tuple[Speech | None, Speech, Speech]
"""Prompt, chosen and rejected; without a prompt the two hold it themselves."""


def compared(prompt: Speech | None, chosen: Speech, rejected: Speech) -> Preferred:
    """Returns prompt and answers, where messages that both begin with belong to the prompt.

    Datasets repeat the prompt in both answers, with or without a column of its own. Texts are left
    as they are: where one answer begins cannot be told from texts alone.

    Raises:
        ValueError: If they are not two different answers to one prompt.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("one of chosen and rejected is text, the other chat messages")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    if isinstance(chosen, str) or isinstance(rejected, str):
        return prompt, chosen, rejected
    shared = _shared(chosen, rejected)
    if len(shared) in (len(chosen), len(rejected)):
        raise ValueError("one of chosen and rejected is only the beginning of the other")
    start = len(shared)
    return _whole_prompt(prompt, shared), chosen[start:], rejected[start:]


def _shared(chosen: Messages, rejected: Messages) -> Messages:
    shared: Messages = []
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def _whole_prompt(prompt: Speech | None, shared: Messages) -> Speech | None:
    if not shared:
        return prompt
    if prompt is None or _repeats(shared, prompt):
        return shared
    if shared[0]["role"] != "assistant":
        raise ValueError("chosen and rejected begin with messages that are not the prompt's")
    own: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*own, *shared]


def _repeats(shared: Messages, prompt: Speech) -> bool:
    if not isinstance(prompt, str):
        return shared[: len(prompt)] == prompt
    return any(
        message["role"] == "user" and str(message["content"]).strip() == prompt.strip()
        for message in shared
    )
