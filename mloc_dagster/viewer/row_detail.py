"""One row in full: every cell, its messages and images, the tokens of its answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from mloc_dagster.errors import MlocError
from mloc_dagster.results import Folder, OutputRow, known_calls, read_rows
from mloc_dagster.viewer.passages import FoundView, found_view
from mloc_dagster.viewer.row_source import RowSource, shown

IMAGE = re.compile(r"input/images/[0-9a-f]{64}\.(png|jpeg|gif|webp|bmp)")
"""Images that a page shows: those that the task keeps itself, in forms that browsers read."""

_INLINE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")
_OWN = "task://"
_MOST_TOKENS = 20_000


class Picture(msgspec.Struct):
    """An image of a row.

    Attributes:
        name: What the row says.
        file: Its file in the task's folder; empty if it is not there.
        inline: The image itself, as a `data:` URI; empty if it lies elsewhere.
    """

    name: str
    file: str = ""
    inline: str = ""


class CallView(msgspec.Struct):
    """A call of a tool.

    Attributes:
        name: The function.
        arguments: JSON text, laid out for people.
    """

    name: str
    arguments: str


class MessageView(msgspec.Struct):
    """A message of a chat.

    Attributes:
        role: Who speaks.
        text: What is said.
        pictures: The images in it.
        calls: What the assistant called.
        answers: The function whose call a tool answers; empty where the chat does not tell.
        reasoning: What the assistant thought before.
    """

    role: str
    text: str
    pictures: list[Picture] = []
    calls: list[CallView] = []
    answers: str = ""
    reasoning: str = ""


class RowDetail(msgspec.Struct):
    """A row in full.

    Attributes:
        cells: Every stored column.
        messages: The prompt, where it is a chat.
        outputs: All answers.
        calls: For each answer the tools that it calls, if one of them calls any.
        reasoning: For each answer what was thought before it, if anything was.
        finish_reasons: Why each ended, where that is known.
        tokens: For each answer its tokens with their log probabilities, where they were asked for.
        found: What a search found for it, or what a document was cut into.
    """

    cells: dict[str, Any]
    messages: list[MessageView] = []
    outputs: list[str] = []
    calls: list[list[CallView]] = []
    reasoning: list[str] = []
    finish_reasons: list[str] = []
    tokens: list[list[tuple[str, float, list[tuple[str, float]]]]] = []
    found: FoundView | None = None


def row_detail(
    source: RowSource, position: int, folder: Folder | None, relevant: str = ""
) -> RowDetail:
    """Reads a row.

    Args:
        source: The rows.
        position: Its place in `source`.
        folder: The task's folder, where its part files may tell more; None of a comparison.
        relevant: The column that names what should be found; empty without one.
    """
    (row,) = source.take(np.array([position]), source.stored_names).to_pylist()
    detail = RowDetail({name: _cell(cell) for name, cell in row.items()})
    detail.messages = _messages(row.get("prompt"))
    detail.outputs = list(row.get("outputs") or ([row["output"]] if row.get("output") else []))
    # Results of earlier versions have neither calls nor thoughts.
    detail.calls = _calls_of([row.get("tool_calls")])
    detail.reasoning = _thoughts_of([row.get("reasoning")])
    computed = _computed(folder, row.get("index"))
    if computed is not None:
        detail.calls = _calls_of(computed.all_tool_calls or [computed.tool_calls])
        detail.reasoning = _thoughts_of(computed.all_reasoning or [computed.reasoning])
        detail.finish_reasons = list(computed.finish_reasons or [])
        detail.tokens = [
            [
                (each.token, each.logprob, [(text, value) for text, value in each.top])
                for each in answer[:_MOST_TOKENS]
            ]
            for answer in computed.logprobs or []
        ]
    detail.found = found_view(row, computed, relevant)
    if not detail.outputs and (detail.calls or detail.reasoning):
        detail.outputs = [""]
    return detail


def _calls_of(answers: Sequence[object]) -> list[list[CallView]]:
    calls = [_calls(each) for each in answers]
    return calls if any(calls) else []


def _calls(given: object) -> list[CallView]:
    return [
        CallView(each.function.name, _laid_out(each.function.arguments))
        for each in known_calls(given)
    ]


def _laid_out(text: str) -> str:
    """Returns an object or a list in JSON over several lines; its numbers stay as they are."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return msgspec.json.format(text)
    except msgspec.DecodeError:
        return text


def _thoughts_of(answers: Sequence[str | None]) -> list[str]:
    return [each or "" for each in answers] if any(answers) else []


def _computed(folder: Folder | None, index: object) -> OutputRow | None:
    if folder is None or not isinstance(index, int):
        return None
    try:
        return next((each for each in read_rows(folder, index, index + 1)), None)
    except (MlocError, FileNotFoundError):
        return None  # the part files only add to what the result says


def _cell(cell: object) -> object:
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    if cell is None or isinstance(cell, str | int | float):
        return cell
    if isinstance(cell, list) and cell and isinstance(cell[0], float):
        return shown(cell)
    if isinstance(cell, bytes):
        return shown(cell)
    return msgspec.json.format(msgspec.json.encode(cell, enc_hook=str)).decode()


def _messages(prompt: object) -> list[MessageView]:
    if not isinstance(prompt, str) or not prompt.startswith("[{"):
        return []
    try:
        found = msgspec.json.decode(prompt, type=list[dict[str, Any]])
    except msgspec.DecodeError:
        return []
    if not all(isinstance(each.get("role"), str) for each in found):
        return []
    called: dict[str, str] = {}
    views: list[MessageView] = []
    for message in found:
        calls = known_calls(message.get("tool_calls"))
        called |= {each.id: each.function.name for each in calls}
        view = _message(message)
        view.calls = _calls(calls)
        view.answers = called.get(str(message.get("tool_call_id")), "")
        if view.role == "tool":
            view.text = _laid_out(view.text)
        view.reasoning = str(message.get("reasoning") or "")
        views.append(view)
    return views


def _message(message: dict[str, Any]) -> MessageView:
    content = message.get("content")
    if not isinstance(content, list):
        return MessageView(message["role"], "" if content is None else str(content))
    view = MessageView(message["role"], "")
    texts = []
    for part in content:
        address = _image_address(part)
        if address is not None:
            view.pictures.append(_picture(address))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            texts.append(msgspec.json.encode(part, enc_hook=str).decode())
    view.text = "\n".join(texts)
    return view


def _image_address(part: object) -> str | None:
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return None
    place = part.get("image_url")
    url = place.get("url") if isinstance(place, dict) else place
    return url if isinstance(url, str) else None


def _picture(address: str) -> Picture:
    name = address.removeprefix(_OWN)
    if name != address and IMAGE.fullmatch(name):
        return Picture(name, file=name)
    if _INLINE.fullmatch(address):
        return Picture("inline image", inline=address)
    return Picture(address[:500])
