"""Rows of a program as a file that a task reads: whatever they come from, one batch in memory."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched, chain
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import msgspec

from mloc_dagster.errors import DataError, InputError
from mloc_dagster.settings import settings

_BATCH_ROWS = 1024
_INDEX = re.compile(r"__index_level_\d+__")
"""What Arrow calls the index of a pandas table that has no name."""

_EXPECTED = (
    "a pyarrow table, a pandas or polars data frame, or an iterable of texts, of mappings, or of "
    "chats (lists of messages)"
)


@runtime_checkable
class ArrowStream(Protocol):
    """A table of any library that speaks Arrow's stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Returns a capsule with the stream."""
        ...


Rows = ArrowStream | Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]]
"""A table, or an iterable of texts, of mappings (columns by name), or of chats."""


@dataclass(frozen=True, slots=True)
class RowsFile:
    """Rows of the caller's in a file.

    Attributes:
        path: The file, alone in its folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """How it is called in messages, and where it is sent to."""
        return self.path.name

    def delete(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def write_rows(rows: Rows | None) -> RowsFile | None:
    """Writes rows into a file of their own, below `MLOC_HOME`; None of no rows.

    Args:
        rows: The rows; an iterable is read once.

    Raises:
        InputError: If there are none in it, or one is nothing that a row can be.
    """
    if rows is None:
        return None
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, ArrowStream | Iterable):
        raise InputError(f"data is a {type(rows).__name__}: expected {_EXPECTED}")
    folder = settings().home.resolve() / "given-rows" / uuid.uuid4().hex
    folder.mkdir(parents=True, mode=0o700)
    reader = _reader(rows)
    file = RowsFile(folder / ("data.jsonl" if reader is None else "data.parquet"))
    try:
        if reader is not None:
            count = _write_parquet(reader, file.path)
        else:
            with file.path.open("xb") as lines:
                count = _write_lines(_plain_iterable(rows), lines)
        if not count:
            raise DataError("data has no rows")  # noqa: TRY301
    except BaseException:
        file.delete()
        raise
    return file


def _reader(rows: Rows) -> Any | None:
    """Returns a reader of record batches; None of what is no table."""
    if not isinstance(rows, ArrowStream):
        return None
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    arrow: Any = pyarrow
    try:
        return arrow.RecordBatchReader.from_stream(rows)
    except (arrow.ArrowException, TypeError):
        return None  # one column, not a table: its values are rows


def _write_parquet(reader: Any, path: Path) -> int:
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

    arrow: Any = pa
    parquet: Any = pq
    names = [each for each in reader.schema.names if not _INDEX.fullmatch(each)]
    count = 0
    writer = None
    try:
        for batch in reader:
            table = arrow.Table.from_batches([batch]).select(names).replace_schema_metadata()
            if writer is None:
                writer = parquet.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return count


def _plain_iterable(rows: Any) -> Iterator[object]:
    for row in rows:
        # Arrow's own arrays hold scalars of Arrow.
        as_py = getattr(row, "as_py", None)
        yield as_py() if callable(as_py) else row


def _write_lines(rows: Iterator[object], file: IO[bytes]) -> int:
    first = next(rows, None)
    if first is None:
        return 0
    make = _row_maker(first)
    encode = msgspec.json.Encoder(enc_hook=_number).encode
    count = 0
    for some in batched(chain([first], rows), _BATCH_ROWS):
        for row in some:
            try:
                file.write(encode(make(row)) + b"\n")
            except (TypeError, ValueError) as error:
                raise InputError(f"row {count} of data: {error}") from error
            count += 1
    return count


def _row_maker(first: object) -> Any:
    """Returns what makes a mapping of each row, which are all of one kind."""
    if isinstance(first, str):
        return lambda row: {"prompt": _of_kind(row, str, "a text")}
    if isinstance(first, Mapping):
        return lambda row: _columns(_of_kind(row, Mapping, "a mapping"))
    if isinstance(first, list | tuple):
        return lambda row: {"messages": _of_kind(row, (list, tuple), "a list of messages")}
    raise InputError(f"row 0 of data is a {type(first).__name__}: expected {_EXPECTED}")


def _of_kind(row: object, kind: Any, wanted: str) -> Any:
    if not isinstance(row, kind):
        raise TypeError(f"a {type(row).__name__}, where the first row is {wanted}")
    return row


def _columns(row: Mapping[Any, object]) -> dict[str, object]:
    for name, value in row.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a column is a text, not {name!r}")
        if isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"column {name!r} holds bytes: give a table, which has types")
    return dict(row)


def _number(value: object) -> object:
    item = getattr(value, "item", None)  # a number of numpy or torch
    if callable(item):
        return item()
    raise TypeError(f"holds a {type(value).__name__}, which is no JSON")
