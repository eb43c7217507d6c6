"""Images that come inside rows, moved out of them: a row keeps a reference, a file the bytes.

What lies in the task's folder is named `task://input/images/<sha256>.<kind>`: good for whoever
has the folder, wherever it is, and the same for equal images.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from mloc_dagster.data.image_cells import image_kind, image_part
from mloc_dagster.results.rows import Message, Prompt, SourceRow
from mloc_dagster.results.store import Folder

TASK_PROTOCOL = "task://"
IMAGES_NAME = "input/images"


def externalize(rows: Iterable[SourceRow], folder: Folder) -> Iterator[SourceRow]:
    """Yields the rows with references where they had `data:` URIs; equal images are one file.

    Args:
        rows: As their source gives them.
        folder: The task's folder.
    """
    written: set[bytes] = set()

    def keep(data: bytes) -> str:
        digest = hashlib.sha256(data)
        name = f"{IMAGES_NAME}/{digest.hexdigest()}.{image_kind(data) or 'bin'}"
        if digest.digest() not in written:
            folder.write_bytes(name, data)
            written.add(digest.digest())
        return f"{TASK_PROTOCOL}{name}"

    for row in rows:
        prompt = row.prompt
        if isinstance(prompt, str) or not _holds_bytes(prompt):
            yield row
        else:
            lighter: Prompt = [_without_bytes(message, keep) for message in prompt]
            yield msgspec.structs.replace(row, prompt=lighter)


def data_uri_bytes(uri: str) -> bytes:
    """Returns what a `data:` URI holds.

    Raises:
        ValueError: If it has no data, or these are not in base64 as it says.
    """
    head, comma, body = uri.removeprefix("data:").partition(",")
    if not comma:
        raise ValueError("the data URI has no data")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body))
    except binascii.Error as error:
        raise ValueError(f"the data URI is broken: {error}") from None


def _holds_bytes(messages: list[Message]) -> bool:
    return any(
        not isinstance(message.content, str) and any(map(_inline, message.content))
        for message in messages
    )


def _inline(part: dict[str, Any]) -> str | None:
    """Returns the `data:` URI of an image part; None for what has none."""
    image = part.get("image_url") if part.get("type") == "image_url" else None
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) and url.startswith("data:") else None


def _without_bytes(message: Message, keep: Callable[[bytes], str]) -> Message:
    if isinstance(message.content, str):
        return message
    parts: list[dict[str, Any]] = []
    for part in message.content:
        uri = _inline(part)
        parts.append(part if uri is None else image_part(keep(_bytes_or_text(uri))))
    return msgspec.structs.replace(message, content=parts)


def _bytes_or_text(uri: str) -> bytes:
    """Returns the image, or of a broken URI its text: the row says later that it is no image."""
    try:
        return data_uri_bytes(uri)
    except ValueError:
        return uri.encode()
