"""Columns of rows beside their answers, typed: what they bring along, and their scores.

Both lie in order of index as Arrow IPC files, under `input/columns` and `scores`. Executors see
neither, and part files hold answers only. Each file has the types that its own rows had; the plan
(of scores the summary) says which types all have in common, and readers cast to these.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, cast
from zlib import crc32

import msgspec

from mloc_dagster.planning import CarriedColumns, Chunk, Plan
from mloc_dagster.results.export_row import free_name
from mloc_dagster.results.part_files import read_rows
from mloc_dagster.results.record import damaged, read_plan
from mloc_dagster.results.row_batch import BatchRow, Run
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder
from mloc_dagster.results.summary import SUMMARY_NAME, Scores


def arrow() -> Any:  # it has no types
    """Returns pyarrow, which most processes that import this module never need."""
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    return pyarrow


Columns = Mapping[str, object]
"""What one row brings along, by name."""

COLUMNS_NAME = "input/columns"
SCORES_NAME = "scores"

_CHUNK_ROWS = 8192
_CHUNK_BYTES = 16 << 20
"""A file ends with the row that reaches either bound; one file is held in memory."""

_CELL_BYTES = 16
"""What a cell without text takes, about."""


def _unfit() -> tuple[type[Exception], ...]:
    """Returns what Arrow raises of values that have no type in common, or not the one asked for."""
    return (arrow().ArrowException, TypeError, ValueError, OverflowError)


class ColumnWriter:
    """Writes the columns of a task's rows.

    Args:
        folder: The task's folder.
        types: Arrow types of columns; others have the types of their values.
        name: Where in the folder the files lie.
        taken: Names that other columns have; one with such a name is called `input_` and its name.
    """

    def __init__(
        self,
        folder: Folder,
        types: Mapping[str, Any] = MappingProxyType({}),
        name: str = COLUMNS_NAME,
        taken: Collection[str] = (),
    ) -> None:
        self._folder = folder
        self._name = name
        self._taken = taken
        self._types = types
        self._pieces: list[Run | list[Columns]] = []
        self._run: Run | None = None  # the last piece, if it is one
        self._rows = self._size = self._start = self._bare = 0
        self._chunks: list[Chunk] = []
        self._common: dict[str, Any] = {}

    def add(self, columns: Columns) -> None:
        """Takes the next row's columns."""
        if self._run is not None and isinstance(columns, BatchRow) and self._run.take(columns):
            self._size += columns.batch.row_bytes
        elif not columns and not self._rows and not self._chunks:
            self._bare += 1  # most tasks have rows without columns only, and write nothing
            return
        else:
            self._add_other(columns)
        self._rows += 1
        if self._rows >= _CHUNK_ROWS or self._size >= _CHUNK_BYTES:
            self._write()

    def _add_other(self, columns: Columns) -> None:
        """Takes a row that does not follow the one before in a batch."""
        if self._bare:
            self._pieces.append([{} for _ in range(self._bare)])
            self._rows, self._bare = self._bare, 0
        last = self._pieces[-1] if self._pieces else None
        if isinstance(columns, BatchRow):
            self._run = Run(columns.batch, columns.place)
            self._pieces.append(self._run)
            self._size += columns.batch.row_bytes
            return
        self._run = None
        if isinstance(last, list):
            last.append(columns)
        else:
            self._pieces.append([columns])
        self._size += _size(columns)

    def close(self) -> CarriedColumns | None:
        """Writes what is left; returns what the plan keeps, None if no row had a column."""
        self._write()
        if not self._common:
            return None
        schema = arrow().schema([arrow().field(name, kind) for name, kind in self._common.items()])
        return CarriedColumns(
            names=tuple(self._common),
            arrow_schema=base64.b64encode(schema.serialize().to_pybytes()).decode(),
            chunks=tuple(self._chunks),
        )

    def _write(self) -> None:
        if not self._rows:
            return
        arrays = {free_name(name, self._taken): array for name, array in self._arrays().items()}
        for name, array in arrays.items():
            self._common[name] = _common_type(self._common.get(name), array.type)
        # Rows without any column count, too: a batch without columns would have none.
        batch = arrow().record_batch(
            [*arrays.values(), arrow().nulls(self._rows)], names=[*arrays, _ROWS]
        )
        sink = io.BytesIO()
        options = arrow().ipc.IpcWriteOptions(compression="lz4")
        with arrow().ipc.new_file(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        data = sink.getvalue()
        name = f"{self._name}/{self._start:012d}.arrow"
        self._folder.write_bytes(name, data)
        self._chunks.append(Chunk(name=name, start=self._start, rows=self._rows, crc32=crc32(data)))
        self._start += self._rows
        self._pieces, self._run = [], None
        self._rows = self._size = 0

    def _arrays(self) -> dict[str, Any]:
        tables = [each.table() for each in self._pieces if isinstance(each, Run)]
        alike = all(each.schema == tables[0].schema for each in tables)
        if alike and len(tables) == len(self._pieces):
            table = arrow().concat_tables(tables).combine_chunks()
            return {name: table.column(name).chunk(0) for name in table.column_names}
        rows = [
            row for each in self._pieces for row in (each.rows() if isinstance(each, Run) else each)
        ]
        return {name: self._array(name, values) for name, values in _by_column(rows).items()}

    def _array(self, name: str, values: Sequence[object]) -> Any:
        known = self._types.get(name)
        if known is not None:
            try:
                return arrow().array(values, known)
            except _unfit():
                pass  # another file of the same source has other types
        try:
            return arrow().array(values)
        except _unfit():
            return arrow().array(list(map(_text, values)), arrow().string())


def _size(columns: Columns) -> int:
    size = _CELL_BYTES * len(columns)
    for value in columns.values():
        # `isinstance` with a union, in a generator, takes longer than all the rest.
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(cast("str | bytes", value))
    return size


def _by_column(rows: Sequence[Columns]) -> dict[str, Sequence[object]]:
    """Returns the values of each column; None where a row has none."""
    names = list(rows[0])
    if all(len(row) == len(names) for row in rows):  # nearly always the same names
        with suppress(KeyError):
            return {name: [row[name] for row in rows] for name in names}
    found = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in found}


_ROWS = "\0rows"
"""A column that no row can have: it keeps the number of rows."""


def _text(value: object) -> str | None:
    """Returns a value of a column whose values have no type in common."""
    if value is None or isinstance(value, str):
        text = value
    else:
        text = msgspec.json.encode(value, enc_hook=str).decode()
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _common_type(known: Any, new: Any) -> Any:
    if known is None or known == new:
        return new
    before, after = (arrow().schema([arrow().field("", kind)]) for kind in (known, new))
    try:
        return arrow().unify_schemas([before, after], promote_options="permissive").field(0).type
    except arrow().ArrowException:
        return arrow().string()


class ColumnReader:
    """Reads columns of a task's rows in order of index.

    Args:
        folder: The task's folder.
        carried: Where they are.
        start: The first row.
    """

    def __init__(self, folder: Folder, carried: CarriedColumns, start: int = 0) -> None:
        self._folder = folder
        self._carried = carried
        self._schema = schema_of([carried])
        self._batches = self._read(start)
        self._rest: Any = None

    def take(self, rows: int) -> Any:
        """Returns a table with the columns of the next rows.

        Raises:
            DamagedFileError: If a file is not what was written, or there are fewer rows.
        """
        found: list[Any] = []
        while rows:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise damaged(self._folder, COLUMNS_NAME, "rows are missing at its end")
            some = self._rest.slice(0, rows)
            self._rest = self._rest.slice(some.num_rows)
            found.append(some)
            rows -= some.num_rows
        return arrow().concat_tables(found) if found else self._schema.empty_table()

    def _read(self, start: int) -> Iterator[Any]:
        for chunk in self._carried.chunks:
            if chunk.start + chunk.rows > start:
                yield self._table(chunk).slice(max(start - chunk.start, 0))

    def _table(self, chunk: Chunk) -> Any:
        data = self._folder.read_bytes(chunk.name)
        if crc32(data) != chunk.crc32:
            raise damaged(self._folder, chunk.name, "its checksum is another one")
        table = arrow().ipc.open_file(data).read_all()
        columns = [_cast(table, field) for field in self._schema]
        return arrow().table(columns, schema=self._schema)


def task_columns(folder: Folder, plan: Plan | None = None) -> tuple[CarriedColumns, ...]:
    """Returns where the columns of a planned task's rows are: the input's, then the scores.

    Args:
        folder: The task's folder.
        plan: Its plan, where that has been read.
    """
    plan = plan or read_plan(folder)
    found = [] if plan is None else [plan.columns]
    if folder.exists(SUMMARY_NAME):
        scores = msgspec.json.decode(folder.read_bytes(SUMMARY_NAME)).get("scores")
        found.append(None if scores is None else Scores.model_validate(scores).columns)
    return tuple(each for each in found if each is not None)


def schema_of(carried: Iterable[CarriedColumns]) -> Any:
    """Returns the Arrow schema that all rows have in common."""
    each_schema = (
        arrow().ipc.read_schema(arrow().py_buffer(base64.b64decode(each.arrow_schema)))
        for each in carried
    )
    return arrow().schema([field for schema in each_schema for field in schema])


def _cast(table: Any, field: Any) -> Any:
    if field.name not in table.column_names:
        return arrow().nulls(table.num_rows, field.type)
    column = table.column(field.name)
    if column.type == field.type:
        return column
    if field.type == arrow().string() and not arrow().types.is_null(column.type):
        return arrow().array(list(map(_text, column.to_pylist())), field.type)
    try:
        return column.cast(field.type)
    except arrow().ArrowException:  # Arrow casts no structs that have got fields
        return arrow().array(column.to_pylist(), field.type)


class TaskColumns:
    """Reads all columns of a task's rows side by side.

    Args:
        folder: The task's folder.
        carried: Where they are.
        start: The first row.
    """

    def __init__(self, folder: Folder, carried: Sequence[CarriedColumns], start: int = 0) -> None:
        self._readers = [ColumnReader(folder, each, start) for each in carried]
        self._start = start
        self._stop = max(
            (each.chunks[-1].start + each.chunks[-1].rows for each in carried), default=0
        )
        self.schema = schema_of(carried)

    def take(self, rows: int) -> Any:
        """Returns a table with the columns of the next rows.

        Raises:
            DamagedFileError: If a file is not what was written, or there are fewer rows.
        """
        columns = [column for each in self._readers for column in each.take(rows).columns]
        return arrow().table(columns, schema=self.schema)

    def rows(self, batch_rows: int = 1024) -> Iterator[dict[str, object]]:
        """Yields the columns of each row, as Python objects."""
        for at in range(self._start, self._stop, batch_rows):
            some = self.take(min(batch_rows, self._stop - at))
            yield from cast("Sequence[dict[str, object]]", some.to_pylist())


def rows_with_columns(
    folder: Folder, start: int = 0, stop: int | None = None
) -> Iterator[tuple[OutputRow, dict[str, object]]]:
    """Yields the finished rows of a task from `start` to before `stop`, each with its columns."""
    carried = task_columns(folder)
    rows = read_rows(folder, start, stop)
    if not carried:
        yield from ((row, {}) for row in rows)
        return
    every = enumerate(TaskColumns(folder, carried, start).rows(), start)
    for row in rows:
        yield row, next(columns for index, columns in every if index == row.index)
