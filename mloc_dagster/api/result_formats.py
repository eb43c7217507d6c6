"""Results in the format that was asked for: the file where there is one, else made of Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from mloc_dagster.results.store import Folder

ResultFormat = Literal["json", "parquet", "jsonl", "csv"]

MEDIA_TYPES: dict[ResultFormat, str] = {
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/x-ndjson",
    "csv": "text/csv",
}
_BATCH_ROWS = 1_024


def can_convert(folder: Folder, wanted: ResultFormat) -> bool:
    """Tells whether rows can be written as `wanted` though there is no such file."""
    return wanted in ("jsonl", "csv") and folder.exists("responses.parquet")


def converted(folder: Folder, wanted: ResultFormat) -> Iterator[bytes]:
    """Yields the rows of `responses.parquet` in another format, as `results.export` writes it."""
    from pyarrow import parquet

    write = _csv if wanted == "csv" else _jsonl
    with folder.open("responses.parquet") as file, parquet.ParquetFile(file) as table:
        if wanted == "csv":
            yield _csv([dict.fromkeys(table.schema_arrow.names)], header=True)
        for batch in table.iter_batches(_BATCH_ROWS):
            yield write(batch.to_pylist())


def _jsonl(rows: list[dict[str, object]]) -> bytes:
    return msgspec.json.Encoder().encode_lines(rows)


def _csv(rows: Sequence[Mapping[str, object]], *, header: bool = False) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    if header:
        writer.writerow(rows[0])
    else:
        writer.writerows([_cell(cell) for cell in row.values()] for row in rows)
    return text.getvalue().encode()


def _cell(cell: object) -> object:
    return msgspec.json.encode(cell).decode() if isinstance(cell, list) else cell
