"""Training rows: from a `TrainingData` block to lines in the task's folder.

Rows are streamed. One that is of no use is left out, counted, and told with its reason; more of
these than the block's error budget allows end the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from types import MappingProxyType

import msgspec
from pydantic import BaseModel, ConfigDict

from mloc_dagster.data.dataset import describe_dataset, known_split, open_table, sliced
from mloc_dagster.data.rows import FILTERED, node_folder
from mloc_dagster.data.selection import Selection
from mloc_dagster.data.shuffle import shuffle_all
from mloc_dagster.errors import DataError
from mloc_dagster.results import (
    EXAMPLE_COLUMNS,
    Folder,
    allowed_errors,
    free_name,
    read_examples,
    task_columns,
)
from mloc_dagster.schema import (
    Columns,
    DatasetData,
    Evaluation,
    Layout,
    Record,
    TrainingData,
    TrainingMethod,
    TrainingRow,
    columns_of,
    evaluation_layout,
    inline_records,
    parse_filter,
    parse_split,
)

_PEEKED_ROWS = 20  # JSON lines need not all have the same keys

Folders = Mapping[str, Folder]
"""Folders of the finished tasks before one, by node name."""

NO_FOLDERS: Folders = MappingProxyType({})

LayoutChoice = Callable[[Columns], Layout]

_Opened = tuple[str, Iterator[Record], Layout | None]


def open_source(
    data: TrainingData, choose: LayoutChoice, upstream: Folders = NO_FOLDERS
) -> tuple[str, Iterator[tuple[int, Record]], Layout | None]:
    """Opens the rows that a block means, sliced, shuffled and cut as it says.

    Args:
        data: The block.
        choose: Tells how rows are read, once the columns are known.
        upstream: The tasks before this one.

    Returns:
        Where the rows come from, for people; the rows, each with its place after slicing and
        before the shuffle; how they are read, or None if there are no rows at all.

    Raises:
        DataError: If the dataset, the split or a column does not exist.
    """
    if data.node is not None:
        source, records, layout = _of_node(data, choose, node_folder(data.node, upstream))
    else:
        opened = _inline if data.dataset_name is None else _dataset
        source, records, layout = opened(data, choose)
    if data.only and layout is not None:
        records = Selection(data.only).records(records, source)
    numbered: Iterator[tuple[int, Record]] = enumerate(records)
    if data.shuffle:
        numbered = shuffle_all(numbered, data.seed)
    if data.max_samples is not None:
        source += f", at most {data.max_samples}"
    return source, islice(numbered, data.max_samples), layout


def _of_node(data: TrainingData, choose: LayoutChoice, folder: Folder) -> _Opened:
    """Opens the rows of an earlier stage; those that failed are no examples."""
    source = f"rows of {data.node}"
    chosen = None if data.where is None else parse_filter(data.where)
    if chosen is not None:
        source += f" where {chosen.text}"
        known = [
            free_name(name, EXAMPLE_COLUMNS) for each in task_columns(folder) for name in each.names
        ]
        chosen.check([*known, *FILTERED])

    def kept() -> Generator[Record]:
        for record in read_examples(folder):
            if record["error"] is None and (chosen is None or chosen.holds(record)):
                yield record

    with closing(kept()) as start:
        peeked = list(islice(start, _PEEKED_ROWS))
    if not peeked:
        return source, iter(()), None
    return source, kept(), choose(columns_of(peeked, source, data))


def _inline(data: TrainingData, choose: LayoutChoice) -> _Opened:
    kind, records = inline_records(data)
    source = f"{len(records)} {kind} of the template"
    if data.shuffle:
        source += f" shuffled, seed {data.seed}"
    columns = columns_of(records, source, data)
    Selection(data.only).check_columns(columns.names, source)
    return source, iter(records), choose(columns)


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
    columns = columns_of(peeked, block.url, data)
    Selection(data.only).check_columns(columns.names, block.url)
    layout = choose(columns)
    needed = None if layout.columns is None else [*layout.columns, *data.only]
    records = sliced(table, parts, block.url, lambda split: table.records(split, needed))
    return source, records, layout


TRAINING_ROWS_NAME = "input/train.jsonl"
EVALUATION_ROWS_NAME = "input/eval.jsonl"

_TOLD_ROWS = 20
_TOLD_IN_ERROR = 5

BadRow = tuple[int, str]
"""A row's place after slicing and before the shuffle, and why it is of no use."""


class TrainingInput:
    """Rows to train on, a stream to be read once; and what was wrong with the others.

    Args:
        source: Where they come from.
        records: The source's rows, each with its place.
        layout: How a row is read.

    Attributes:
        source: Where the rows come from, for people.
        count: Rows of the source that were read so far.
        bad_count: How many of them are of no use.
        bad: The first of these.
    """

    def __init__(
        self, source: str, records: Iterator[tuple[int, Record]], layout: Layout | None
    ) -> None:
        self.source = f"{source} ({layout.words})" if layout is not None else source
        self.count = 0
        self.bad_count = 0
        self.bad: list[BadRow] = []
        self._records = records
        self._layout = layout

    @property
    def found(self) -> bool:
        """Whether the source has any rows."""
        return self._layout is not None

    def __iter__(self) -> Iterator[TrainingRow]:
        """Yields the rows that are of use."""
        if self._layout is None:
            return
        rows_of = self._layout.rows_of
        for index, record in self._records:
            self.count += 1
            try:
                rows = rows_of(record)
            except ValueError as error:
                self.bad_count += 1
                if len(self.bad) < _TOLD_ROWS:
                    self.bad.append((index, str(error)))
                continue
            yield from rows


class TrainingInputSummary(BaseModel):
    """What was written.

    Attributes:
        name: The file in the task's folder: JSON lines in TRL's formats.
        rows: Its rows.
        read: Rows of the source; a comparison may become two rows.
        bad: Rows of the source that were left out.
        first_bad: The first of these.
        data_version: SHA-256 over the lines.
        source: Where the rows come from, for people.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    read: int
    bad: int
    first_bad: tuple[BadRow, ...]
    data_version: str
    source: str


def open_training_rows(
    data: TrainingData,
    method: TrainingMethod,
    upstream: Folders = NO_FOLDERS,
) -> TrainingInput:
    """Opens the rows that a method trains on.

    Args:
        data: The block.
        method: What trains on them.
        upstream: The tasks before this one.

    Raises:
        DataError: If the dataset, the split or a column does not exist; while reading, if the
            source cannot be read.
    """
    opened = open_source(data, method.layout, upstream)
    return TrainingInput(*opened)


def evaluation_rows(
    evaluation: Evaluation,
    method: TrainingMethod,
    upstream: Folders = NO_FOLDERS,
) -> TrainingInput:
    """Opens the rows that a model is measured on; raises as `open_training_rows` does."""
    metrics = evaluation.metrics
    opened = open_source(
        evaluation.data, lambda columns: evaluation_layout(columns, method, metrics), upstream
    )
    return TrainingInput(*opened)


def write_training_rows(
    data: TrainingData,
    method: TrainingMethod,
    folder: Folder,
    upstream: Folders = NO_FOLDERS,
    *,
    name: str = TRAINING_ROWS_NAME,
) -> TrainingInputSummary:
    """Writes the rows to train on to the task's folder, all of them or, when raising, none.

    Args:
        data: The block.
        method: What trains on them.
        folder: The task's folder.
        upstream: The tasks before this one.
        name: The file.

    Raises:
        DataError: If the source cannot be read, gives no rows, or too many are of no use.
    """
    rows = open_training_rows(data, method, upstream)
    return _write(rows, data.error_budget, folder, name)


def write_evaluation_rows(
    evaluation: Evaluation,
    method: TrainingMethod,
    folder: Folder,
    upstream: Folders = NO_FOLDERS,
    *,
    name: str = EVALUATION_ROWS_NAME,
) -> TrainingInputSummary:
    """Writes the rows to measure on, like `write_training_rows`."""
    rows = evaluation_rows(evaluation, method, upstream)
    return _write(rows, evaluation.data.error_budget, folder, name)


def check_budget(
    count: int, bad_count: int, bad: Sequence[BadRow], budget: float, source: str = "the input"
) -> None:
    """Checks that no more rows are of no use than may be.

    Args:
        count: Rows of the source.
        bad_count: How many are of no use.
        bad: The first of these.
        budget: The share that may be, as `results.aggregate.allowed_errors` reads it.
        source: Where the rows come from, for the message.

    Raises:
        DataError: If there are more; the message has the first ones' reasons.
    """
    allowed = allowed_errors(count, budget)
    if bad_count <= allowed:
        return
    told = "; ".join(f"row {index}: {reason}" for index, reason in bad[:_TOLD_IN_ERROR])
    more = " …" if bad_count > _TOLD_IN_ERROR else ""
    raise DataError(
        f"{bad_count} of {count} rows of {source} cannot be used, where data.error_budget {budget} "
        f"allows {allowed}: {told}{more}"
    )


def _write(rows: TrainingInput, budget: float, folder: Folder, name: str) -> TrainingInputSummary:
    encode = msgspec.json.Encoder().encode
    digest = hashlib.sha256()
    written = 0
    with folder.create(name) as file:
        try:
            for row in rows:
                line = encode(row) + b"\n"
                digest.update(line)
                file.write(line)
                written += 1
        except (UnicodeEncodeError, TypeError) as error:
            what = "is not valid Unicode" if isinstance(error, ValueError) else "is no JSON"
            raise DataError(f"{rows.source}: row {rows.count - 1} {what}: {error}") from error
        if not rows.count:
            raise DataError(f"the input is empty: {rows.source} gave no rows")
        check_budget(rows.count, rows.bad_count, rows.bad, budget, rows.source)
    return TrainingInputSummary(
        name=name,
        rows=written,
        read=rows.count,
        bad=rows.bad_count,
        first_bad=tuple(rows.bad),
        data_version=digest.hexdigest(),
        source=rows.source,
    )
