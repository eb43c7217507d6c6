"""The source of a training's rows: a dataset or the template itself, with its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from mloc_dagster.data.dataset import describe_dataset, known_split, open_table, sliced
from mloc_dagster.data.shuffle import shuffle_all
from mloc_dagster.schema.data import DatasetData, TrainingData
from mloc_dagster.schema.split import parse_split
from mloc_dagster.schema.training_columns import (
    Columns,
    Layout,
    Record,
    columns_of,
    inline_records,
)

_PEEKED_ROWS = 20  # JSON lines need not all have the same keys

LayoutChoice = Callable[[Columns], Layout]

_Opened = tuple[str, Iterator[Record], Layout | None]


def open_source(
    data: TrainingData, choose: LayoutChoice
) -> tuple[str, Iterator[tuple[int, Record]], Layout | None]:
    """Opens the rows that a block means, sliced, shuffled and cut as it says.

    Args:
        data: The block.
        choose: Tells how rows are read, once the columns are known.

    Returns:
        Where the rows come from, for people; the rows, each with its place after slicing and
        before the shuffle; how they are read, or None if there are no rows at all.

    Raises:
        DataError: If the dataset, the split or a column does not exist.
    """
    opened = _inline if data.dataset_name is None else _dataset
    source, records, layout = opened(data, choose)
    numbered: Iterator[tuple[int, Record]] = enumerate(records)
    if data.shuffle:
        numbered = shuffle_all(numbered, data.seed, row_type=tuple[int, dict[str, Any]])
    if data.max_samples is not None:
        source += f", at most {data.max_samples}"
    return source, islice(numbered, data.max_samples), layout


def _inline(data: TrainingData, choose: LayoutChoice) -> _Opened:
    kind, records = inline_records(data)
    source = f"{len(records)} {kind} of the template"
    if data.shuffle:
        source += f" shuffled, seed {data.seed}"
    return source, iter(records), choose(columns_of(records, source, data))


def _dataset(data: TrainingData, choose: LayoutChoice) -> _Opened:
    block = DatasetData(
        type="dataset",
        url=data.dataset_name or "",
        name=data.config_name,
        revision=data.revision,
        split=data.split,
        shuffle=data.shuffle,
        seed=data.seed,
    )
    table = open_table(block, ("dataset_name", "config_name"))
    parts = parse_split(data.split)
    first = known_split(parts[0].split, table.splits, block.url)
    with closing(table.records(first)) as start:
        peeked = list(islice(start, _PEEKED_ROWS))
    source = describe_dataset(block)
    if not peeked:
        return source, iter(()), None
    layout = choose(columns_of(peeked, block.url, data))
    records = sliced(table, parts, block.url, lambda split: table.records(split, layout.columns))
    return source, records, layout
