"""Export rows in every format that a template asks for: one pass, in order, in constant memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import batched
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from mloc_dagster import __version__
from mloc_dagster.planning import Plan
from mloc_dagster.results.columns import TaskColumns, task_columns
from mloc_dagster.results.export_row import ExportRow, VectorRow, export_rows, row_kind
from mloc_dagster.results.json_columns import with_columns
from mloc_dagster.results.openai_batch import BatchFiles
from mloc_dagster.results.part_files import read_rows
from mloc_dagster.results.rates import UNPRICED, Rates
from mloc_dagster.results.store import Folder
from mloc_dagster.results.tables import BATCH_ROWS, row_schema, table_of
from mloc_dagster.results.tally import Tally
from mloc_dagster.schema import BATCH_ERRORS_NAME, BATCH_OUTPUT_NAME, OutputFormat

_FEW_ROWS = 64

# Few different values; a dictionary of prompts or hashes would only be built to be given up.
_REPEATED = [
    *("task_id", "shard", "finish_reason", "error", "model", "revision", "engine", "worker"),
    "reused",
]


class ParquetSink:
    """Writes each batch as one row group.

    Vectors are lists of one length; a row whose vector has another one (by an option of its own)
    has null here.

    Args:
        file: Where to.
        plan: Its task and data version go into the file's metadata.
        carried: The Arrow schema of the columns beside the answers.
        vector_length: How long the rows' vectors are; None for rows that have none.
        leaves: Which of `MORE_COLUMNS` the rows have.
    """

    def __init__(
        self,
        file: IO[bytes],
        plan: Plan,
        carried: Any = (),
        *,
        vector_length: int | None = None,
        leaves: Sequence[str] = (),
    ) -> None:
        import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

        metadata = {
            "mloc_version": __version__,
            "mloc_task_id": plan.task_id,
            "mloc_data_version": plan.data_version,
        }
        self._schema: Any = row_schema(carried, vector_length, leaves).with_metadata(metadata)
        writer: Any = pq.ParquetWriter  # it has no types
        self._writer: Any = writer(
            file, self._schema, compression=_compression(plan.rows), use_dictionary=_REPEATED
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, rows: Sequence[ExportRow], carried: Any = None) -> None:
        """Appends a row group.

        Args:
            rows: What the rows became.
            carried: An Arrow table with the columns that they brought along.
        """
        self._writer.write_table(table_of(rows, self._schema, carried))


def _compression(rows: int) -> str:
    # Zstandard makes a context for each of the columns, which takes longer than all the rest.
    return "zstd" if rows > _FEW_ROWS else "snappy"


Sink = Callable[[Sequence[ExportRow], Any], None]
"""Takes rows, and an Arrow table with the columns that they brought along; None without any."""


def export_results(
    folder: Folder,
    plan: Plan,
    formats: Sequence[OutputFormat],
    *,
    model: str,
    revision: str | None = None,
    rates: Rates = UNPRICED,
    submitted_at: datetime | None = None,
    vectors: bool = False,
    leaves: tuple[str, ...] = (),
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
        leaves: Which of `MORE_COLUMNS` the rows have.

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
    columns = TaskColumns(folder, task_columns(folder, plan))
    length = _vector_length(folder) if vectors else None
    with ExitStack() as stack:
        files = [stack.enter_context(folder.create(name)) for name in names]
        sinks = [
            _sink(name, file, plan, columns.schema, stack, length, leaves)
            for name, file in zip(wanted, files, strict=True)
        ]
        read = Tally(plan).watch(read_rows(folder))
        if batch:
            output, errors = (stack.enter_context(folder.create(name)) for name in batch)
            read = BatchFiles(output, errors, plan, model, submitted_at).watch(read)
        rows = export_rows(read, plan, model, revision, rates, vectors=vectors, leaves=leaves)
        for some in batched(rows, BATCH_ROWS):
            carried = columns.take(len(some)) if columns.schema.names else None
            for sink in sinks:
                sink(some, carried)
    return [*names, *batch]


def _vector_length(folder: Folder) -> int:
    """Returns the length of the first vector; 1 where there is none at all.

    Parquet must know it before the first row, which may have failed, and so may many behind it.
    """
    vectors = (row.embedding for row in read_rows(folder))
    return next((len(vector) for vector in vectors if vector), 1)


def _sink(
    name: str,
    file: IO[bytes],
    plan: Plan,
    carried: Any,
    stack: ExitStack,
    length: int | None,
    leaves: tuple[str, ...],
) -> Sink:
    if name == "parquet":
        sink = ParquetSink(file, plan, carried, vector_length=length, leaves=leaves)
        return stack.enter_context(sink).write
    if name == "jsonl":
        return _jsonl_sink(file)
    return _csv_sink(file, row_kind(leaves) if length is None else VectorRow, carried.names)


def _jsonl_sink(file: IO[bytes]) -> Sink:
    encode = msgspec.json.Encoder().encode
    encode_lines = msgspec.json.Encoder().encode_lines

    def write(rows: Sequence[ExportRow], carried: Any) -> None:
        if carried is None:
            file.write(encode_lines(rows))
            return
        heads = [encode(row)[:-1] for row in rows]
        for block in with_columns(heads, ",", carried, "}\n"):
            file.write(block)

    return write


def _csv_sink(file: IO[bytes], kind: type[ExportRow], names: Sequence[str]) -> Sink:
    encode = msgspec.json.Encoder(enc_hook=str).encode

    def put(records: Sequence[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows(records)  # RFC 4180
        file.write(text.getvalue().encode())

    def cell(value: object) -> object:
        plain = value is None or isinstance(value, str | int | float)
        return value if plain else encode(value).decode().strip('"')

    def write(rows: Sequence[ExportRow], carried: Any) -> None:
        brought = (
            [()] * len(rows)
            if carried is None
            else zip(*map(_values, carried.columns), strict=True)
        )
        put(
            [
                [*map(cell, msgspec.structs.astuple(row)), *map(cell, columns)]
                for row, columns in zip(rows, brought, strict=True)
            ]
        )

    put([[*kind.__struct_fields__, *names]])
    return write


def _values(column: Any) -> list[object]:
    return column.to_pylist()
