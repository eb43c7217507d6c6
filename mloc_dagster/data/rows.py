"""From a `data` block to a stream of rows, upstream results and graph templates included."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import cast

import msgspec
from pydantic import JsonValue

from mloc_dagster.compile import Reference, parse_expression
from mloc_dagster.data.dataset import OpenedRows, dataset_rows
from mloc_dagster.data.documents import document_rows
from mloc_dagster.data.openai_batch import batch_rows, block_of
from mloc_dagster.data.row_shape import written
from mloc_dagster.data.shuffle import shuffle_all
from mloc_dagster.errors import DataError, UnknownNameError
from mloc_dagster.results import (
    RESERVED_COLUMNS,
    UPSTREAM_FAULT,
    Folder,
    Message,
    OutputRow,
    Prompt,
    SourceRow,
    answer_text,
    free_name,
    read_rows,
    rows_with_columns,
    schema_of,
    task_columns,
)
from mloc_dagster.schema import (
    COLUMN_PREFIX,
    UPSTREAM_VALUES,
    ChatMessage,
    DatasetData,
    Documents,
    GraphTemplate,
    GraphTemplateData,
    InferenceData,
    ListData,
    OnUpstreamError,
    OpenaiBatchData,
    UpstreamData,
    parse_filter,
    parse_placeholders,
)

_SUMMARY = frozenset(("ok", "model", "usage"))

RowsBlock = InferenceData | Documents
"""What a task whose result has rows says of where they come from."""


def upstream_rows(
    data: UpstreamData, folders: Mapping[str, Folder], takes: Collection[str] = ()
) -> Iterator[SourceRow]:
    """Streams one row for each row of an upstream node, or for each for which `where` holds.

    `{prompt}` is the upstream row's text; of a chat, the last user message. A row that failed
    upstream stays in its place, so that indexes agree along a chain; see `built_row`. What a row
    brought along goes on with it, and so do the fields that `takes` names, with the row's own name.
    One whose `answer` is taken keeps its prompt.

    Raises:
        DataError: If the text has an unknown placeholder, the condition an unknown column, or the
            node is unknown; while reading, if a row failed upstream and that is to fail the task.
    """
    folder = node_folder(data.node, folders)
    known = [name for each in task_columns(folder) for name in each.names]
    text = parse_placeholders(
        data.text, (*UPSTREAM_VALUES, *(COLUMN_PREFIX + name for name in known))
    )
    asked = [name for name in text.names if name not in UPSTREAM_VALUES]
    chosen = None if data.where is None else parse_filter(data.where)
    if chosen is not None:
        chosen.check([*known, *FILTERED])

    def made(row: OutputRow, columns: Mapping[str, object]) -> SourceRow:
        values = {"prompt": plain_text(row.prompt), "output": row.output}
        values |= {name: written(columns, name.removeprefix(COLUMN_PREFIX)) for name in asked}
        built = built_row(text.render(values), {data.node: row}, data.on_upstream_error)
        more = {name: getattr(row, name) for name in ((*takes, "custom_id") if takes else ())}
        if "answer" in takes:
            more["prompt"] = row.prompt
        if columns:
            more["columns"] = columns
        return msgspec.structs.replace(built, **more) if more else built

    rows = rows_with_columns(folder)
    if chosen is None:
        return (made(row, columns) for row, columns in rows)
    place = free_name("index", RESERVED_COLUMNS)  # by which people find the row again
    return (
        made(row, {place: row.index, **columns})
        for row, columns in rows
        if chosen.holds(_filtered(row, columns))
    )


FILTERED = ("index", "prompt", "output", "finish_reason", "error", "steps", "stop")
"""What a condition reads of a row beside its columns."""


def _filtered(row: OutputRow, columns: Mapping[str, object]) -> Mapping[str, object]:
    own = {name: getattr(row, name) for name in FILTERED if name != "prompt"}
    return {**columns, **own, "prompt": plain_text(row.prompt)}


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
            return [
                descend(reference, item_mapping(*row), rest) for row in rows_with_columns(folder)
            ]
        case ("items",):
            return [item_mapping(*row) for row in rows_with_columns(folder)]
        case (key, *_) if key in _SUMMARY and folder.exists("summary.json"):
            value, path = _json(folder, "summary.json"), list(reference.path)
        case _:
            responses = _json(folder, "responses.json")
            value = responses.get("result") if isinstance(responses, dict) else None
            path = list(reference.path)
    return descend(reference, value, path)


def item_mapping(row: OutputRow, columns: Mapping[str, object]) -> dict[str, JsonValue]:
    """Returns a row as the `items` of a result show it, with its prompt, counts and columns."""
    mapping = cast("dict[str, JsonValue]", msgspec.to_builtins(row))
    # Fields at their default are left out of files, but a template may well refer to them.
    return {
        **mapping,
        "output": row.output,
        "finish_reason": row.finish_reason,
        "error": row.error,
        "tool_calls": msgspec.to_builtins(row.tool_calls or []),
        "reasoning": row.reasoning or "",
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "latency_s": row.latency_s,
        "columns": msgspec.to_builtins(columns, enc_hook=str),
    }


def _item(reference: Reference, folder: Folder, index: int, *, needs_output: bool) -> JsonValue:
    found = next(rows_with_columns(folder, index, index + 1), None)
    if found is None:
        raise DataError(f"{reference}: {reference.node!r} has no row {index}")
    row, columns = found
    if needs_output and row.error is not None:
        raise DataError(f"{reference}: row {index} of {reference.node!r} failed: {row.error}")
    return item_mapping(row, columns)


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


_Render = Callable[[dict[str, str]], str]


def graph_template_rows(
    data: GraphTemplateData, folders: Mapping[str, Folder]
) -> Iterator[SourceRow]:
    """Streams the rows of a graph template.

    With an `items[*]` column there is one row for each upstream row; several such columns go
    side by side and must be equally long, and single values repeat. Without one there is one
    row. A row with an upstream row that failed in an `items[*]` column is what
    `on_upstream_error` says; within `items` it says that it failed; asked for by its number it is
    an error.

    Raises:
        DataError: If a label is unknown, a reference has no value, or lengths differ.
    """
    template = data.template
    labels = [column.label for column in template.columns]
    if len(set(labels)) < len(labels):
        raise DataError(f"the columns of a graph template need different labels: {labels}")
    render = _briefing(template) if template.text is None else _inline(template.text, labels)
    references = {column.label: parse_expression(column.reference) for column in template.columns}
    for reference in references.values():
        node_folder(reference.node, folders)
    return _rows(references, folders, render, data.on_upstream_error)


def _rows(
    references: dict[str, Reference],
    folders: Mapping[str, Folder],
    render: _Render,
    on_error: OnUpstreamError,
) -> Iterator[SourceRow]:
    streams = {
        label: rows_with_columns(folders[reference.node])
        for label, reference in references.items()
        if reference.path[:2] == ("items", "*")
    }
    single = {
        label: _single(reference, folders)
        for label, reference in references.items()
        if label not in streams
    }
    if not streams:
        yield SourceRow(render(single))
        return
    number = 0
    while True:
        found = {label: next(stream, None) for label, stream in streams.items()}
        ended = [label for label, row in found.items() if row is None]
        if len(ended) == len(found):
            return
        if ended:
            raise DataError(
                f"columns of a graph template differ in length: {ended[0]!r} "
                f"({references[ended[0]]}) ends after {number} rows, others go on"
            )
        rows = {label: row for label, row in found.items() if row is not None}
        merged = single | {label: _value(references[label], *row) for label, row in rows.items()}
        parts = {references[label].node: row for label, (row, _) in rows.items()}
        prompt = render({label: merged[label] for label in references})
        yield built_row(prompt, parts, on_error)
        number += 1


def _value(reference: Reference, row: OutputRow, columns: Mapping[str, object]) -> str:
    rest = reference.path[2:] or ("output",)
    if rest == ("output",):
        return row.output
    return _text(reference, descend(reference, item_mapping(row, columns), rest))


def _single(reference: Reference, folders: Mapping[str, Folder]) -> str:
    match reference.path:
        case ("items",):
            return "\n".join(map(_numbered, read_rows(folders[reference.node])))
        case ("items", int()):
            reference = Reference(reference.node, (*reference.path, "output"))
        case _:
            pass
    return _text(reference, lookup_reference(reference, folders))


def _numbered(row: OutputRow) -> str:
    if row.error is not None:
        return f"{row.index + 1}. (failed: {row.error})"
    return f"{row.index + 1}. {answer_text(row.output, row.tool_calls)}"


def _text(reference: Reference, value: JsonValue) -> str:
    if value is None:
        raise DataError(f"{reference} is null")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _inline(text: str, labels: list[str]) -> _Render:
    return parse_placeholders(text, labels).render


def _briefing(template: GraphTemplate) -> _Render:
    """`two_column_briefing`: intro, a headed section for each column, closing."""
    options = template.options

    def render(values: dict[str, str]) -> str:
        sections = [f"## {label}\n{value}" for label, value in values.items()]
        return "\n\n".join([*options.intro, *sections, *options.closing])

    return render


def open_rows(
    data: RowsBlock, folders: Mapping[str, Folder], takes: Collection[str] = ()
) -> OpenedRows:
    """Opens the rows that a `data` block means, whatever its type.

    Args:
        data: The block.
        folders: Folders of the finished tasks before this one, by node name.
        takes: What rows of an earlier task bring along; see `RowSpec.takes`.

    Raises:
        DataError: If the block names something that does not exist; while reading, if a row
            cannot be read.
    """
    match data:
        case ListData():
            source, prompts = _list_rows(data)
            return OpenedRows(source, map(SourceRow, prompts))
        case DatasetData():
            return dataset_rows(data)
        case Documents():
            return document_rows(data)
        case OpenaiBatchData():
            return OpenedRows(*batch_rows(data.url, block_of(data)))
        case GraphTemplateData():
            nodes = dict.fromkeys(column.reference for column in data.template.columns)
            name = data.template.name or "inline template"
            source = f"{name} over {', '.join(nodes)}"
            return OpenedRows(source, graph_template_rows(data, folders))
        case UpstreamData():
            schema = schema_of(task_columns(node_folder(data.node, folders)))
            types = {each.name: each.type for each in schema}
            return OpenedRows(f"rows of {data.node}", upstream_rows(data, folders, takes), types)


def _list_rows(data: ListData) -> tuple[str, Iterator[Prompt]]:
    rows: Iterator[Prompt] = (
        item if isinstance(item, str) else [_message(message) for message in item]
        for item in data.items
    )
    description = f"list of {len(data.items)}"
    if not data.shuffle:
        return description, rows
    return f"{description} shuffled, seed {data.seed}", shuffle_all(rows, data.seed)


def _message(message: ChatMessage) -> Message:
    return msgspec.convert(message.model_dump(mode="json", exclude_defaults=True), Message)
