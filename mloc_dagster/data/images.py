"""Images in rows: cells become references, and inline bytes become files of the task.

What lies in the task's folder is named `task://input/images/<sha256>.<kind>`: good for whoever
has the folder, wherever it is, and the same for equal images.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from mloc_dagster.results import Folder, Message, Prompt, SourceRow

Resolve = Callable[[str], str]
"""Makes a relative path, as a data file has it, one that is good everywhere."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)


def image_kind(data: bytes) -> str | None:
    """Returns the format that a file's first bytes tell: `png`, `jpeg`, …; None when they don't."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((kind for mark, kind in _SIGNATURES if data.startswith(mark)), None)


def cell_images(cell: object, resolve: Resolve) -> list[str]:
    """Returns the references of one cell; a null or empty one has none.

    A path, URL or data URI stays a reference; bytes become a data URI, which the spool turns into
    a file.

    Raises:
        ValueError: If the cell is nothing that can hold an image.
    """
    match cell:
        case None | "":
            return []
        case str():
            return [_anchored(cell, resolve)]
        case bytes():
            return [_data_uri(cell)]
        case {"bytes": bytes(data)}:
            return [_data_uri(data)]
        case {"path": str(path)} if path:
            return [_anchored(path, resolve)]
        case {"bytes": None} | {"path": None}:
            return []
        case list():
            return [found for each in cell for found in cell_images(each, resolve)]
        case _:
            text = repr(cell)
            raise ValueError(
                "expected a path, a URL, a data URI, image bytes, or a list of these, got "
                f"{type(cell).__name__} {text if len(text) <= 60 else text[:59] + '…'}"
            )


def image_reference(cell: object) -> object:
    """Returns what tells an image, without its bytes: its path, else `sha256:` and their hash.

    Args:
        cell: An image as `datasets` keeps it, `{bytes, path}`, or a list of these.
    """
    match cell:
        case {"path": str(path)} if path:
            return path
        case {"bytes": bytes(data)}:
            return f"sha256:{hashlib.sha256(data).hexdigest()}"
        case list():
            return [image_reference(each) for each in cell]
        case _:
            return None


def with_images(prompt: Prompt, references: Sequence[str]) -> Prompt:
    """Returns the prompt with images: before the text, or where it has empty places for them.

    A chat gets them in its first user message, unless its parts say `{"type": "image"}` where
    they belong, as data sets for vision models do.

    Raises:
        ValueError: If a chat has no user message, or more or fewer places than images.
    """
    if isinstance(prompt, str):
        if not references:
            return prompt
        text = [{"type": "text", "text": prompt}] if prompt else []
        return [Message("user", [*map(image_part, references), *text])]
    places = sum(map(_is_place, _all_parts(prompt)))
    if places:
        if places != len(references):
            raise ValueError(f"the chat has places for {places} images, not {len(references)}")
        waiting = iter(references)
        return [_filled(message, waiting) for message in prompt]
    return _before_first_user(prompt, references) if references else prompt


def image_part(reference: str) -> dict[str, Any]:
    """Returns an image as a part of a message's content."""
    return {"type": "image_url", "image_url": {"url": reference}}


def _all_parts(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if not isinstance(message.content, str):
            yield from message.content


def _is_place(part: dict[str, Any]) -> bool:
    return part.get("type") == "image" and not (part.get("url") or part.get("image"))


def _filled(message: Message, waiting: Iterator[str]) -> Message:
    if isinstance(message.content, str):
        return message
    parts = [image_part(next(waiting)) if _is_place(part) else part for part in message.content]
    return msgspec.structs.replace(message, content=parts)


def _before_first_user(messages: list[Message], references: Sequence[str]) -> list[Message]:
    place = next((at for at, message in enumerate(messages) if message.role == "user"), None)
    if place is None:
        raise ValueError("the chat has no user message that the images could go with")
    first = messages[place]
    content = first.content
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    shown = msgspec.structs.replace(first, content=[*map(image_part, references), *parts])
    return [*messages[:place], shown, *messages[place + 1 :]]


def _anchored(text: str, resolve: Resolve) -> str:
    if "://" in text or text.startswith(("data:", "/", "~")):
        return text
    return resolve(text)


def _data_uri(data: bytes) -> str:
    mime = f"image/{image_kind(data) or 'unknown'}"
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


TASK_PROTOCOL = "task://"
IMAGES_NAME = "input/images"
DOCUMENTS_NAME = "input/documents"


def externalize(rows: Iterable[SourceRow], folder: Folder) -> Iterator[SourceRow]:
    """Yields the rows with references where they had bytes; equal images or documents are one file.

    Args:
        rows: As their source gives them.
        folder: The task's folder.
    """
    written: set[bytes] = set()

    def write(data: bytes, below: str, kind: str) -> str:
        digest = hashlib.sha256(data)
        name = f"{below}/{digest.hexdigest()}.{kind}"
        if digest.digest() not in written:
            folder.write_bytes(name, data)
            written.add(digest.digest())
        return name

    def keep(data: bytes) -> str:
        return f"{TASK_PROTOCOL}{write(data, IMAGES_NAME, image_kind(data) or 'bin')}"

    for row in rows:
        if row.content is not None:
            name = write(row.content, DOCUMENTS_NAME, row.media_type.rpartition("/")[2] or "bin")
            row = msgspec.structs.replace(row, content=None, file=name)
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
