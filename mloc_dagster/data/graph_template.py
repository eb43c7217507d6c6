"""Prompts built from upstream results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from pydantic import JsonValue

from mloc_dagster.compile.references import Reference, parse_expression
from mloc_dagster.data.upstream import (
    built_row,
    descend,
    item_mapping,
    lookup_reference,
    node_folder,
)
from mloc_dagster.errors import DataError
from mloc_dagster.results.rows import OutputRow, SourceRow
from mloc_dagster.results.shard_files import read_rows
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.data import GraphTemplate, GraphTemplateData, OnUpstreamError
from mloc_dagster.schema.placeholders import parse_placeholders

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
        label: read_rows(folders[reference.node])
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
        rows = {label: next(stream, None) for label, stream in streams.items()}
        ended = [label for label, row in rows.items() if row is None]
        if len(ended) == len(rows):
            return
        if ended:
            raise DataError(
                f"columns of a graph template differ in length: {ended[0]!r} "
                f"({references[ended[0]]}) ends after {number} rows, others go on"
            )
        there = {label: row for label, row in rows.items() if row is not None}
        merged = single | {label: _value(references[label], row) for label, row in there.items()}
        parts = {references[label].node: row for label, row in there.items()}
        prompt = render({label: merged[label] for label in references})
        yield built_row(prompt, parts, on_error)
        number += 1


def _value(reference: Reference, row: OutputRow) -> str:
    rest = reference.path[2:] or ("output",)
    if rest == ("output",):
        return row.output
    return _text(reference, descend(reference, item_mapping(row), rest))


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
    return f"{row.index + 1}. {row.output if row.error is None else f'(failed: {row.error})'}"


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
