"""Results in the format that was asked for: the file where there is one, else made of Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from mloc_dagster.results.store import Folder

ResultFormat = Literal["json", "parquet", "jsonl", "csv"]

MEDIA_TYPES: dict[ResultFormat, str] = {
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/x-ndjson",
    "csv": "text/csv",
}
_BATCH_ROWS = 4_096


def can_convert(folder: Folder, wanted: ResultFormat) -> bool:
    """Tells whether rows can be written as `wanted` though there is no such file."""
    return wanted in ("jsonl", "csv") and folder.exists("responses.parquet")


def converted(folder: Folder, wanted: ResultFormat) -> Iterator[bytes]:
    """Yields the rows of `responses.parquet` in another format, as `results.export` writes it."""
    from pyarrow import parquet

    with folder.open("responses.parquet") as file, parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        write = _csv if wanted == "csv" else _jsonl_writer(names)
        if wanted == "csv":
            yield _csv([[name] for name in names])
        for batch in table.iter_batches(_BATCH_ROWS):
            yield write([_cells(column) for column in batch.columns])


def _cells(column: Any) -> Sequence[object]:
    if column.null_count == len(column):
        return [None] * len(column)
    if column.null_count or column.type.num_fields:
        return column.to_pylist()
    return column.to_numpy(zero_copy_only=False).tolist()  # several times as fast


def _jsonl_writer(names: Sequence[str]) -> Callable[[Sequence[Sequence[object]]], bytes]:
    row = msgspec.defstruct("Row", [(name, object) for name in names])
    encoder = msgspec.json.Encoder()
    return lambda columns: encoder.encode_lines(
        [row(*cells) for cells in zip(*columns, strict=True)]
    )


def _csv(columns: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    cells = [map(_cell, column) for column in columns]
    csv.writer(text, lineterminator="\r\n").writerows(zip(*cells, strict=True))  # RFC 4180
    return text.getvalue().encode()


def _cell(cell: object) -> object:
    return msgspec.json.encode(cell).decode() if isinstance(cell, list) else cell
