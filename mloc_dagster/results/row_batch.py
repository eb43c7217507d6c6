"""Rows of an Arrow table, whose values become Python objects only where something reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class RowBatch:
    """Some rows of a source as columns.

    Attributes:
        table: The Arrow table.
        row_bytes: About what a row takes.

    Args:
        table: The Arrow table.
    """

    __slots__ = ("_values", "row_bytes", "table")

    def __init__(self, table: Any) -> None:
        self.table = table
        self.row_bytes = table.nbytes // max(table.num_rows, 1) + 1
        self._values: dict[str, Sequence[object]] = {}

    def values(self, name: str) -> Sequence[object]:
        """Returns a column as Python objects.

        Raises:
            KeyError: If there is no such column.
        """
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = self.table.column(name).to_pylist()
        return found

    def rows(self) -> Iterator[BatchRow]:
        """Yields the rows in order."""
        return (BatchRow(self, place) for place in range(self.table.num_rows))


class BatchRow(Mapping[str, object]):
    """One row of a batch: its values by column.

    Attributes:
        batch: The batch.
        place: The row's place in it.

    Args:
        batch: The batch.
        place: The row's place in it.
    """

    __slots__ = ("batch", "place")

    def __init__(self, batch: RowBatch, place: int) -> None:
        self.batch = batch
        self.place = place

    def __getitem__(self, name: str) -> object:
        return self.batch.values(name)[self.place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.table.column_names)

    def __len__(self) -> int:
        return self.batch.table.num_columns


class Run:
    """Rows of one batch that follow each other.

    Args:
        batch: The batch.
        start: The place of the first.
    """

    __slots__ = ("_start", "_stop", "batch")

    def __init__(self, batch: RowBatch, start: int) -> None:
        self.batch = batch
        self._start, self._stop = start, start + 1

    def take(self, row: BatchRow) -> bool:
        """Returns whether the row is the next of them; then it is one of them from now on."""
        follows = row.batch is self.batch and row.place == self._stop
        self._stop += follows
        return follows

    def table(self) -> Any:
        """Returns them as an Arrow table."""
        return self.batch.table.slice(self._start, self._stop - self._start)

    def rows(self) -> Iterator[BatchRow]:
        """Yields them one by one."""
        return (BatchRow(self.batch, place) for place in range(self._start, self._stop))
