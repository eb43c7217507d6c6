"""The rows in every format that a template asks for: one pass, in order, in constant memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import batched
from typing import IO

import msgspec

from mloc_dagster.planning.plan import Plan
from mloc_dagster.results.export_rows import ExportRow, VectorRow, export_rows
from mloc_dagster.results.openai_batch import BatchFiles
from mloc_dagster.results.shard_files import read_rows
from mloc_dagster.results.store import Folder
from mloc_dagster.results.tally import Tally
from mloc_dagster.results.usage import UNPRICED, Rates
from mloc_dagster.schema.output import BATCH_ERRORS_NAME, BATCH_OUTPUT_NAME, OutputFormat

# Rows that are in memory at a time, and the size of Parquet's row groups.
_BATCH_ROWS = 8192


Sink = Callable[[Sequence[ExportRow]], None]


def export(
    folder: Folder,
    plan: Plan,
    formats: Sequence[OutputFormat],
    *,
    model: str,
    revision: str | None = None,
    rates: Rates = UNPRICED,
    submitted_at: datetime | None = None,
    vectors: bool = False,
) -> list[str]:
    """Writes `responses.parquet`, `.jsonl`, `.csv` and a batch's files; `json` is `aggregate`'s.

    Equal rows give equal files, byte for byte.

    Args:
        folder: The task's folder.
        plan: What must be there.
        formats: Which files; `json` is passed over.
        model: What answered.
        revision: The model's revision.
        rates: What a second of engine time costs.
        submitted_at: When the task was submitted.
        vectors: Whether the rows are those of an embedding task.

    Returns:
        The names of the files written.

    Raises:
        IncompleteResultsError: If rows do not equal the plan; then no file appears.
    """
    wanted = [name for name in ("parquet", "jsonl", "csv") if name in formats]
    batch = [BATCH_OUTPUT_NAME, BATCH_ERRORS_NAME] if "openai_batch" in formats else []
    if not wanted and not batch:
        return []
    names = [f"responses.{name}" for name in wanted]
    with ExitStack() as stack:
        files = [stack.enter_context(folder.create(name)) for name in names]
        sinks = [
            _sink(name, file, plan, stack, _vector_length(folder) if vectors else None)
            for name, file in zip(wanted, files, strict=True)
        ]
        read = Tally(plan).watch(read_rows(folder))
        if batch:
            output, errors = (stack.enter_context(folder.create(name)) for name in batch)
            read = BatchFiles(output, errors, plan, model, submitted_at).watch(read)
        rows = export_rows(read, plan, model, revision, rates, vectors=vectors)
        for some in batched(rows, _BATCH_ROWS):
            for sink in sinks:
                sink(some)
    return [*names, *batch]


def _vector_length(folder: Folder) -> int:
    """Returns the length of the first vector; 1 where there is none at all.

    Parquet must know it before the first row, which may have failed, and so may many behind it.
    """
    vectors = (row.embedding for row in read_rows(folder))
    return next((len(vector) for vector in vectors if vector), 1)


def _sink(name: str, file: IO[bytes], plan: Plan, stack: ExitStack, length: int | None) -> Sink:
    if name == "parquet":
        from mloc_dagster.results.parquet import ParquetSink

        return stack.enter_context(ParquetSink(file, plan, vector_length=length)).write
    if name == "jsonl":
        return _jsonl_sink(file)
    return _csv_sink(file, ExportRow if length is None else VectorRow)


def _jsonl_sink(file: IO[bytes]) -> Sink:
    encoder = msgspec.json.Encoder()

    def write(rows: Sequence[ExportRow]) -> None:
        file.write(encoder.encode_lines(rows))

    return write


def _csv_sink(file: IO[bytes], kind: type[ExportRow]) -> Sink:

    def write(rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows(rows)  # RFC 4180
        file.write(text.getvalue().encode())

    def values(row: ExportRow) -> tuple[object, ...]:
        cells = msgspec.structs.astuple(row)
        return tuple(
            msgspec.json.encode(cell).decode() if isinstance(cell, list) else cell for cell in cells
        )

    write([kind.__struct_fields__])
    return lambda rows: write([values(row) for row in rows])
