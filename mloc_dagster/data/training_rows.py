"""Rows to train on: from a `TrainingData` block to lines in the task's folder.

Rows are streamed. One that is of no use is left out, counted, and told with its reason; more of
these than the block's error budget allows end the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec
from pydantic import BaseModel, ConfigDict

from mloc_dagster.data.training_source import open_source
from mloc_dagster.errors import DataError
from mloc_dagster.results.budget import allowed_errors
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.data import TrainingData
from mloc_dagster.schema.evaluation_layout import evaluation_layout
from mloc_dagster.schema.training import Evaluation
from mloc_dagster.schema.training_columns import Layout, Record, TrainingRow
from mloc_dagster.schema.training_method import TrainingMethod

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


def training_rows(data: TrainingData, method: TrainingMethod) -> TrainingInput:
    """Opens the rows that a method trains on.

    Raises:
        DataError: If the dataset, the split or a column does not exist; while reading, if the
            source cannot be read.
    """
    opened = open_source(data, method.layout)
    return TrainingInput(*opened)


def evaluation_rows(evaluation: Evaluation, method: TrainingMethod) -> TrainingInput:
    """Opens the rows that a model is measured on; raises as `training_rows` does."""
    metrics = evaluation.metrics
    opened = open_source(
        evaluation.data, lambda columns: evaluation_layout(columns, method, metrics)
    )
    return TrainingInput(*opened)


def write_training_rows(
    data: TrainingData, method: TrainingMethod, folder: Folder, name: str = TRAINING_ROWS_NAME
) -> TrainingInputSummary:
    """Writes the rows to train on to the task's folder, all of them or, when raising, none.

    Raises:
        DataError: If the source cannot be read, gives no rows, or too many are of no use.
    """
    rows = training_rows(data, method)
    return _write(rows, data.error_budget, folder, name)


def write_evaluation_rows(
    evaluation: Evaluation, method: TrainingMethod, folder: Folder, name: str = EVALUATION_ROWS_NAME
) -> TrainingInputSummary:
    """Writes the rows to measure on, like `write_training_rows`."""
    rows = evaluation_rows(evaluation, method)
    return _write(rows, evaluation.data.error_budget, folder, name)


def check_budget(
    count: int, bad_count: int, bad: Sequence[BadRow], budget: float, source: str = "the input"
) -> None:
    """Checks that no more rows are of no use than may be.

    Args:
        count: Rows of the source.
        bad_count: How many are of no use.
        bad: The first of these.
        budget: The share that may be, as `results.budget.allowed_errors` reads it.
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
