"""Calls of tools as people read them: `lookup({"key": "a"})`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mloc_dagster.results.rows import ToolCall

Calls = Sequence[object] | None
"""Calls as rows have them, or as they stand in files: objects in OpenAI's form."""


def call_text(call: ToolCall) -> str:
    """Returns a call as it is written in code."""
    return f"{call.function.name}({call.function.arguments})"


def answer_text(output: str, calls: Calls) -> str:
    """Returns an answer in one text: what was said, and what was called, a line each.

    Args:
        output: The text; often empty beside calls.
        calls: The calls; what is none is left out.
    """
    return "\n".join([*([output] if output else []), *map(call_text, known_calls(calls))])


def known_calls(calls: object) -> list[ToolCall]:
    """Returns calls that were read from a file; none of what has another form."""
    try:
        return msgspec.convert(calls or [], list[ToolCall], from_attributes=True)
    except msgspec.ValidationError:
        return []
