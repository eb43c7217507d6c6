"""The selected rows as a file, in their order, with all columns, block by block."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.viewer.row_source import RowSource

_pq: Any = pq  # it has no types

ExportFormat = Literal["csv", "jsonl", "parquet"]

MEDIA_TYPES: dict[ExportFormat, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}

_BATCH_ROWS = 32_768
"""Rows in memory at a time. Of a sorted selection each batch may need every block of the file."""


def export_blocks(
    source: RowSource, positions: np.ndarray, wanted: ExportFormat
) -> Iterator[bytes]:
    """Yields a file with some rows, in this order."""
    names = source.stored_names
    batches = (
        source.take(positions[start : start + _BATCH_ROWS], names)
        for start in range(0, max(len(positions), 1), _BATCH_ROWS)
    )
    if wanted == "parquet":
        yield from _parquet(batches)
        return
    if wanted == "csv":
        yield _csv_lines([names])
    write = _csv_table if wanted == "csv" else _json_lines
    for batch in batches:
        for some in batch.to_batches(max_chunksize=1024):
            yield write(some)


def _json_lines(batch: Any) -> bytes:
    encode = msgspec.json.Encoder(enc_hook=str).encode_lines
    return encode(batch.to_pylist())


def _csv_table(batch: Any) -> bytes:
    columns = [map(_cell, column.to_pylist()) for column in batch.columns]
    return _csv_lines(zip(*columns, strict=True))


def _csv_lines(records: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(records)  # RFC 4180
    return text.getvalue().encode()


def _cell(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    return msgspec.json.encode(value, enc_hook=str).decode().strip('"')


class _Pipe(io.RawIOBase):
    """A file that is only written; what was written is taken out as it comes."""

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self._length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        self._length += len(data)
        return len(data)

    def tell(self) -> int:
        return self._length

    def taken(self) -> bytes:
        data = b"".join(self._written)
        self._written.clear()
        return data


def _parquet(batches: Iterator[Any]) -> Iterator[bytes]:
    pipe = _Pipe()
    writer: Any = None
    for batch in batches:
        if writer is None:
            writer = _pq.ParquetWriter(pipe, batch.schema, compression="zstd")
        writer.write_table(batch.cast(writer.schema), row_group_size=8192)
        yield pipe.taken()
    if writer is not None:
        writer.close()
    yield pipe.taken()
