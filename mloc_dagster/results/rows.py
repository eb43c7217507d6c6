"""Rows: one input and its output. Rows come by the million, hence msgspec and not pydantic."""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: Text, or a list of typed parts in the OpenAI form (`{"type": "text", …}`).
    """

    role: str
    content: str | list[dict[str, Any]]  # msgspec decodes no recursive type for JSON


Prompt = str | list[Message]


class InputRow(msgspec.Struct, frozen=True):
    """One input of a task, as the plan spools it.

    Attributes:
        index: Place in the whole input (after slicing and shuffling), from 0.
        prompt: Text, or chat messages.
    """

    index: int
    prompt: Prompt


class OutputRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one input became.

    Attributes:
        index: The input's place in the whole input.
        prompt: The input, unchanged.
        output: The text, or the first of `n` texts; empty when `error` is set.
        finish_reason: `stop`, `length` or `error`.
        outputs: All `n` texts when more than one was asked for.
        error: Why this row has no output.
        prompt_tokens: Tokens the model read.
        completion_tokens: Tokens the model wrote, over all `n`.
        latency_s: Seconds from the row's start to its end.
        engine: What computed it, with version: `transformers 5.19.0`.
        worker: Who computed it: `host:pid`.
        attempt: The shard's attempt that computed it, from 1.
    """

    index: int
    prompt: Prompt
    output: str = ""
    finish_reason: str = "stop"
    outputs: list[str] | None = None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    engine: str = ""
    worker: str = ""
    attempt: int = 1
