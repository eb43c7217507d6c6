"""From a `data` block to a stream of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mloc_dagster.data.dataset import dataset_rows, describe_dataset
from mloc_dagster.data.graph_template import graph_template_rows
from mloc_dagster.data.shuffle import shuffle_all
from mloc_dagster.data.upstream import upstream_rows
from mloc_dagster.results.rows import Message, Prompt
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.data import (
    DatasetData,
    GraphTemplateData,
    InferenceData,
    ListData,
    UpstreamData,
)


def open_rows(data: InferenceData, folders: Mapping[str, Folder]) -> tuple[str, Iterator[Prompt]]:
    """Opens the rows that a `data` block means, whatever its type.

    Args:
        data: The block.
        folders: Folders of the finished tasks before this one, by node name.

    Returns:
        Where the rows come from, for people; and the rows, a stream to be read once.

    Raises:
        DataError: If the block names something that does not exist; while reading, if a row
            cannot be read.
    """
    match data:
        case ListData():
            return _list_rows(data)
        case DatasetData():
            return describe_dataset(data), dataset_rows(data)
        case GraphTemplateData():
            nodes = dict.fromkeys(column.reference for column in data.template.columns)
            name = data.template.name or "inline template"
            return f"{name} over {', '.join(nodes)}", graph_template_rows(data, folders)
        case UpstreamData():
            return f"rows of {data.node}", upstream_rows(data, folders)


def _list_rows(data: ListData) -> tuple[str, Iterator[Prompt]]:
    rows: Iterator[Prompt] = (
        item
        if isinstance(item, str)
        else [Message(role=message.role, content=message.content) for message in item]
        for item in data.items
    )
    description = f"list of {len(data.items)}"
    if not data.shuffle:
        return description, rows
    return f"{description} shuffled, seed {data.seed}", shuffle_all(rows, data.seed)
