"""From a `data` block to a stream of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mloc_dagster.data.dataset import dataset_rows, describe_dataset
from mloc_dagster.data.graph_template import graph_template_rows
from mloc_dagster.data.openai_batch import batch_rows
from mloc_dagster.data.openai_request import block_of
from mloc_dagster.data.shuffle import shuffle_all
from mloc_dagster.data.upstream import upstream_rows
from mloc_dagster.results.rows import Message, Prompt, SourceRow
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.data import (
    ChatMessage,
    DatasetData,
    GraphTemplateData,
    InferenceData,
    ListData,
    OpenaiBatchData,
    UpstreamData,
)


def open_rows(
    data: InferenceData, folders: Mapping[str, Folder]
) -> tuple[str, Iterator[SourceRow]]:
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
            source, prompts = _list_rows(data)
        case DatasetData():
            source, prompts = describe_dataset(data), dataset_rows(data)
        case OpenaiBatchData():
            return batch_rows(data.url, block_of(data))
        case GraphTemplateData():
            nodes = dict.fromkeys(column.reference for column in data.template.columns)
            name = data.template.name or "inline template"
            source = f"{name} over {', '.join(nodes)}"
            return source, graph_template_rows(data, folders)
        case UpstreamData():
            return f"rows of {data.node}", upstream_rows(data, folders)
    return source, map(SourceRow, prompts)


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
    if isinstance(message.content, str):
        return Message(message.role, message.content)
    return Message(message.role, [part.model_dump(mode="json") for part in message.content])
