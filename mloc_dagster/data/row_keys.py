"""Where a row belongs in the planned order."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from mloc_dagster.planning.order import RowKey
from mloc_dagster.results.rows import Message, SourceRow

_ENCODE = msgspec.json.Encoder().encode


def row_key(row: SourceRow) -> RowKey:
    """Returns the row's key: equal for rows with the same input, near for common beginnings."""
    adapter = row.adapter or ""
    if isinstance(row.prompt, str):
        # No hash of a text can be empty, so that a text and messages are never equal.
        rest = b"" if row.options is None else b"text" + _digest(row.options)
        return RowKey(adapter, row.prompt, rest)
    text = "".join(map(_message_text, row.prompt))
    return RowKey(adapter, text, _digest([row.prompt, row.options]))


def image_count(row: SourceRow) -> int:
    """Returns how many images the row carries."""
    if isinstance(row.prompt, str):
        return 0
    return sum(
        part.get("type") != "text"
        for message in row.prompt
        if not isinstance(message.content, str)
        for part in message.content
    )


def _message_text(message: Message) -> str:
    # About as many tokens as a chat template puts around a message.
    content = message.content
    text = content if isinstance(content, str) else "".join(map(_part_text, content))
    return f"<{message.role}>\n{text}\n"


def _part_text(part: dict[str, Any]) -> str:
    if part.get("type") == "text":
        return str(part.get("text", ""))
    # Equal images have equal names; the picture itself may be megabytes of base64.
    return f"<{part.get('type')} {_digest(part)[:6].hex()}>"


def _digest(value: object) -> bytes:
    return hashlib.blake2b(_ENCODE(value), digest_size=16).digest()
