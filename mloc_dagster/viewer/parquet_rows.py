"""Rows of a task that is done: `responses.parquet`, read by row group and column."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.results import MANIFEST_NAME, Folder
from mloc_dagster.viewer.row_source import RowSource, columns_of

_pa: Any = pyarrow  # neither has types
_pq: Any = pq

PARQUET_NAME = "responses.parquet"


class ParquetRows(RowSource):
    """The rows of `responses.parquet`.

    Args:
        folder: The task's folder.
        scores: Names of columns that an evaluation made.
        version: As `parquet_version` returns it.

    Raises:
        DamagedFileError: If it is no Parquet file, or cut off.
    """

    def __init__(self, folder: Folder, scores: Sequence[str], version: str) -> None:
        self._folder = folder
        self._lock = Lock()  # what reads a file has one place in it
        self._open = ExitStack()
        try:
            source = self._open.enter_context(folder.open(PARQUET_NAME))
            self._file: Any = self._open.enter_context(_pq.ParquetFile(source, pre_buffer=True))
        except (_pa.ArrowException, OSError) as error:
            self._open.close()
            raise self._damaged(error) from error
        metadata = self._file.metadata
        sizes = [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        super().__init__(columns_of(self._file.schema_arrow, scores), version, starts)

    def read_block(self, number: int, names: Sequence[str]) -> Any:
        """Returns some columns of a row group.

        Raises:
            DamagedFileError: If it cannot be decoded.
        """
        try:
            with self._lock:
                # Arrow takes names for paths into nested columns, where dots mean something.
                return self._file.read_row_group(number, columns=self._paths(names)).select(
                    list(names)
                )
        except (_pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def all_null(self, name: str) -> bool:
        """Tells whether no row has a value, from what the file says of its columns."""
        metadata = self._file.metadata
        # Of a nested column the first leaf tells: it is null wherever the column is.
        schema = self._file.schema
        column = next(each for each in range(len(schema)) if _top(schema.column(each).path, {name}))
        found = [metadata.row_group(each).column(column) for each in range(metadata.num_row_groups)]
        return all(
            each.statistics is not None and each.statistics.null_count == each.num_values
            for each in found
        )

    def _paths(self, names: Sequence[str]) -> list[str]:
        wanted = set(names)
        schema = self._file.schema
        return [
            schema.column(each).path
            for each in range(len(schema))
            if _top(schema.column(each).path, wanted)
        ]

    def _damaged(self, error: Exception) -> DamagedFileError:
        name = self._folder.name
        return DamagedFileError(
            f"{PARQUET_NAME} of {name} is damaged ({error}); `mloc run --resume {name}` writes it"
            " again from the task's rows"
        )


def _top(path: str, wanted: set[str]) -> bool:
    return path in wanted or any(path.startswith(f"{each}.") for each in wanted)


def parquet_version(folder: Folder) -> str | None:
    """Returns what changes when the file does; None where there is none."""
    try:
        size = folder.size(PARQUET_NAME)
    except FileNotFoundError:
        return None
    manifest = folder.read_bytes(MANIFEST_NAME) if folder.exists(MANIFEST_NAME) else b""
    return f"{folder.url}-parquet-{size}-{crc32(manifest):08x}"
