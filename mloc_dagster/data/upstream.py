"""What a task takes from the results of the tasks before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import msgspec
from pydantic import JsonValue

from mloc_dagster.compile.references import Reference
from mloc_dagster.errors import DataError, UnknownNameError
from mloc_dagster.results.rows import UPSTREAM_FAULT, OutputRow, Prompt, SourceRow
from mloc_dagster.results.shard_files import read_rows
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.data import OnUpstreamError, UpstreamData
from mloc_dagster.schema.placeholders import UPSTREAM_VALUES, parse_placeholders

_SUMMARY = frozenset(("ok", "model", "usage"))


def upstream_rows(data: UpstreamData, folders: Mapping[str, Folder]) -> Iterator[SourceRow]:
    """Streams one row for each row of an upstream node.

    `{prompt}` is the upstream row's text; of a chat, the last user message. A row that failed
    upstream stays in its place, so that indexes agree along a chain; see `built_row`.

    Raises:
        DataError: If the text has an unknown placeholder, or the node is unknown; while reading, if
            a row failed upstream and that is to fail the task.
    """
    text = parse_placeholders(data.text, UPSTREAM_VALUES)
    folder = node_folder(data.node, folders)
    return (
        built_row(
            text.render({"prompt": plain_text(row.prompt), "output": row.output}),
            {data.node: row},
            data.on_upstream_error,
        )
        for row in read_rows(folder)
    )


def built_row(
    prompt: Prompt, parts: Mapping[str, OutputRow], on_error: OnUpstreamError
) -> SourceRow:
    """Returns a row that is built from upstream rows.

    Args:
        prompt: What it became.
        parts: The upstream rows, by their node.
        on_error: What is done where one of them failed.

    Raises:
        DataError: If one failed, and that is to fail the task.
    """
    failed = next(((node, row) for node, row in parts.items() if row.error is not None), None)
    if failed is None or on_error == "empty":
        return SourceRow(prompt)
    node, row = failed
    if on_error == "fail":
        raise DataError(
            f"row {row.index} of {node!r} failed, and data.on_upstream_error is 'fail': {row.error}"
        )
    error = f"upstream: row {row.index} of {node!r} failed: {row.error}"
    if row.fault == UPSTREAM_FAULT:  # the first cause, through any number of stages
        error = str(row.error)
    return SourceRow(prompt, error=error, fault=UPSTREAM_FAULT)


def plain_text(prompt: Prompt) -> str:
    """Returns a prompt as text: of a chat the last user message, or the last message at all."""
    if isinstance(prompt, str):
        return prompt
    users = [message for message in prompt if message.role == "user"]
    content = (users or prompt)[-1].content
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if part.get("type") == "text")


def node_folder(node: str, folders: Mapping[str, Folder]) -> Folder:
    """Returns the folder of an upstream node.

    Raises:
        UnknownNameError: If there is no such node upstream.
    """
    if node not in folders:
        raise UnknownNameError("upstream node", node, folders)
    return folders[node]


def lookup_reference(reference: Reference, folders: Mapping[str, Folder]) -> JsonValue:
    """Returns the value that a reference means.

    A row comes from the shard files and `usage`, `ok` and `model` from `summary.json`, so the
    items are never loaded for them; other keys come from `responses.json`, which a training
    task leaves and which is small there. `items` and `items[*].field` are lists.

    Raises:
        DataError: If there is no such value, or the row failed and has none.
    """
    folder = node_folder(reference.node, folders)
    match reference.path:
        case ("items", int(index), *rest):
            value, path = _item(reference, folder, index, needs_output=rest == ["output"]), rest
        case ("items", "*", *rest):
            return [descend(reference, item_mapping(row), rest) for row in read_rows(folder)]
        case ("items",):
            return [item_mapping(row) for row in read_rows(folder)]
        case (key, *_) if key in _SUMMARY and folder.exists("summary.json"):
            value, path = _json(folder, "summary.json"), list(reference.path)
        case _:
            responses = _json(folder, "responses.json")
            value = responses.get("result") if isinstance(responses, dict) else None
            path = list(reference.path)
    return descend(reference, value, path)


def item_mapping(row: OutputRow) -> dict[str, JsonValue]:
    """Returns a row as the `items` of a result show it, with its prompt and counts."""
    mapping = cast("dict[str, JsonValue]", msgspec.to_builtins(row))
    # Fields at their default are left out of files, but a template may well refer to them.
    return {
        **mapping,
        "output": row.output,
        "finish_reason": row.finish_reason,
        "error": row.error,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "latency_s": row.latency_s,
    }


def _item(reference: Reference, folder: Folder, index: int, *, needs_output: bool) -> JsonValue:
    row = next(iter(read_rows(folder, index, index + 1)), None)
    if row is None or row.index != index:
        raise DataError(f"{reference}: {reference.node!r} has no row {index}")
    if needs_output and row.error is not None:
        raise DataError(f"{reference}: row {index} of {reference.node!r} failed: {row.error}")
    return item_mapping(row)


def _json(folder: Folder, name: str) -> JsonValue:
    try:
        return msgspec.json.decode(folder.read_bytes(name))
    except FileNotFoundError as error:
        raise DataError(f"{folder.url} has no {name}: the task before has not finished") from error


def descend(reference: Reference, value: JsonValue, path: Sequence[str | int]) -> JsonValue:
    """Follows the steps of `path` into `value`.

    Raises:
        DataError: If a step leads nowhere; the message lists what is there.
    """
    for step in path:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list(), int() if step < len(value):
                value = value[step]
            case _:
                raise DataError(f"{reference}: there is no {step!r}; {_contents(value)}")
    return value


def _contents(value: JsonValue) -> str:
    if isinstance(value, dict):
        return f"known: {', '.join(value)}"
    if isinstance(value, list):
        return f"the list has {len(value)} elements"
    return f"the value there is {type(value).__name__}"
