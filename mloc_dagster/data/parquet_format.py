"""Reading Parquet as a stream of cells or rows; memory is bounded by a record batch."""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import BinaryIO

from mloc_dagster.data.formats import Cell, Row, RowError

_BATCH_ROWS = 1024
_BYTES_BATCH_ROWS = 16  # a row of such a column may well be an image of some megabytes


class Parquet:
    """Apache Parquet, by record batches of the one column that is needed."""

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the schema's top-level names."""
        return list(self._open(file).schema_arrow.names)

    def cells(self, file: BinaryIO, column: str) -> Generator[Cell]:
        """Yields `column` of each row."""
        number = 1
        opened = self._open(file)
        holds_bytes = "binary" in str(opened.schema_arrow.field(column).type)
        rows = _BYTES_BATCH_ROWS if holds_bytes else _BATCH_ROWS
        for batch in opened.iter_batches(batch_size=rows, columns=[column]):
            for cell in batch.column(0).to_pylist():
                yield f"row {number}", cell
                number += 1

    def rows(self, file: BinaryIO, columns: Collection[str] | None = None) -> Generator[Row]:
        """Yields each row; columns that are not needed are not read."""
        opened = self._open(file)
        names = opened.schema_arrow.names
        wanted = names if columns is None else [name for name in names if name in columns]
        for batch in opened.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            yield from batch.to_pylist()

    def count(self, file: BinaryIO) -> int:
        """Reads the footer."""
        return int(self._open(file).metadata.num_rows)

    def _open(self, file: BinaryIO):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(file)
        except ArrowException as error:
            raise RowError("", f"not a Parquet file: {error}") from None
