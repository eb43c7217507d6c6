"""The rows as Parquet, JSON lines and CSV: one pass for all, in order, in constant memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import batched
from typing import IO

import msgspec

from mloc_dagster.planning.plan import Plan
from mloc_dagster.results.export_rows import ExportRow, export_rows
from mloc_dagster.results.shard_files import read_rows
from mloc_dagster.results.store import Folder
from mloc_dagster.results.tally import Tally
from mloc_dagster.schema.output import OutputFormat

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
) -> list[str]:
    """Writes `responses.parquet`, `.jsonl` and `.csv` as asked; `json` is `aggregate`'s.

    Equal rows give equal files, byte for byte.

    Args:
        folder: The task's folder.
        plan: What must be there.
        formats: Which files; `json` is passed over.
        model: What answered.
        revision: The model's revision.

    Returns:
        The names of the files written.

    Raises:
        IncompleteResultsError: If rows do not equal the plan; then no file appears.
    """
    wanted = [name for name in ("parquet", "jsonl", "csv") if name in formats]
    if not wanted:
        return []
    names = [f"responses.{name}" for name in wanted]
    with ExitStack() as stack:
        files = [stack.enter_context(folder.create(name)) for name in names]
        sinks = [_sink(name, file, plan, stack) for name, file in zip(wanted, files, strict=True)]
        rows = export_rows(Tally(plan).watch(read_rows(folder)), plan, model, revision)
        for batch in batched(rows, _BATCH_ROWS):
            for sink in sinks:
                sink(batch)
    return names


def _sink(name: str, file: IO[bytes], plan: Plan, stack: ExitStack) -> Sink:
    if name == "parquet":
        from mloc_dagster.results.parquet import ParquetSink

        return stack.enter_context(ParquetSink(file, plan)).write
    return _jsonl_sink(file) if name == "jsonl" else _csv_sink(file)


def _jsonl_sink(file: IO[bytes]) -> Sink:
    encoder = msgspec.json.Encoder()

    def write(rows: Sequence[ExportRow]) -> None:
        file.write(encoder.encode_lines(rows))

    return write


def _csv_sink(file: IO[bytes]) -> Sink:
    columns = ExportRow.__struct_fields__
    outputs_at = columns.index("outputs")

    def write(rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows(rows)  # RFC 4180
        file.write(text.getvalue().encode())

    def values(row: ExportRow) -> tuple[object, ...]:
        cells = msgspec.structs.astuple(row)
        if row.outputs is None:
            return cells
        texts = msgspec.json.encode(row.outputs).decode()
        return (*cells[:outputs_at], texts, *cells[outputs_at + 1 :])

    write([columns])
    return lambda rows: write([values(row) for row in rows])
