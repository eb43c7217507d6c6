"""A task's rows as Arrow tables, with the columns that every export has."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import batched
from operator import attrgetter
from typing import Any

import msgspec

from mloc_dagster.errors import UnknownNameError
from mloc_dagster.results.columns import TaskColumns, arrow, task_columns
from mloc_dagster.results.export_row import (
    MORE_COLUMNS,
    ROW_COLUMNS,
    ExportRow,
    VectorRow,
    export_rows,
)
from mloc_dagster.results.part_files import read_rows
from mloc_dagster.results.rates import Rates
from mloc_dagster.results.record import TaskRecord, read_plan, read_record
from mloc_dagster.results.rows import Judgement, OutputRow, Passage
from mloc_dagster.results.store import Folder
from mloc_dagster.schema import Resources, RowSpec, find_task_type

BATCH_ROWS = 8192
"""Rows that are in memory at a time, and the size of Parquet's row groups."""

PARQUET_NAME = "responses.parquet"


def row_schema(
    carried: Any = (), vector_length: int | None = None, leaves: Sequence[str] = ()
) -> Any:
    """Returns the Arrow schema of a task's rows.

    Args:
        carried: The Arrow schema of the columns beside the answers.
        vector_length: How long the rows' vectors are; None for rows that have none.
        leaves: Which of `MORE_COLUMNS` the rows have.
    """
    pa = arrow()
    fields = [
        pa.field(name, _arrow_type(each.type), nullable=each.nullable)
        for name, each in (*ROW_COLUMNS.items(), *((each, MORE_COLUMNS[each]) for each in leaves))
    ]
    if vector_length is not None:
        fields.append(pa.field("embedding", pa.list_(pa.float32(), vector_length)))
    return pa.schema([*fields, *carried])


def _arrow_type(name: str) -> Any:
    pa = arrow()
    text = pa.string()
    match name:  # those that Arrow has no alias for
        case "list<string>":
            return pa.list_(text)
        case "list<tool_call>":
            function = pa.struct({"name": text, "arguments": text})
            return pa.list_(pa.struct({"id": text, "function": function, "type": text}))
        case "list<passage>":
            return pa.list_(pa.struct(_passage_fields()))
        case "list<citation>":
            place = {"start": pa.int64(), "end": pa.int64(), "score": pa.float64()}
            named = {"n": pa.int32(), "chunk_id": text, "document": text}
            return pa.list_(pa.struct({**named, **place}))
        case "judgement":
            stated = pa.struct({"text": text, "supported": pa.bool_(), "passage": pa.int32()})
            said = {"reason": text, "output": text, "error": text}
            return pa.struct({"score": pa.float64(), "statements": pa.list_(stated), **said})
        case _:
            return pa.type_for_alias(name)


def _passage_fields() -> dict[str, Any]:
    pa = arrow()
    text, whole, number = pa.string(), pa.int64(), pa.float64()
    place = {"document": text, "start": whole, "end": whole, "page": pa.int32()}
    scores = dict.fromkeys(("score", "dense", "keyword", "rerank"), number)
    # Documents bring along what they have: of JSON no two need have one type.
    return {"id": text, "text": text, **place, "heading": pa.list_(text), "payload": text, **scores}


def table_of(rows: Sequence[ExportRow], schema: Any, carried: Any = None) -> Any:
    """Returns rows as an Arrow table.

    A vector of another length than the schema has (by an option of its row) is null.

    Args:
        rows: What the rows became.
        schema: As `row_schema` has it.
        carried: An Arrow table with the columns that they brought along; None without any.
    """
    pa = arrow()
    columns = [
        pa.array(_values(name, rows), _arrow_type(each.type)) for name, each in ROW_COLUMNS.items()
    ]
    more = [name for name in rows[0].__struct_fields__ if name in MORE_COLUMNS] if rows else []
    columns += [pa.array(_values(each, rows), schema.field(each).type) for each in more]
    place = schema.get_field_index("embedding")
    if place == len(ROW_COLUMNS):
        kind = schema.field(place).type
        vectors = [each if len(each) == kind.list_size else None for each in map(_vector, rows)]
        columns.append(pa.array(vectors, kind))
    if carried is not None:
        columns += carried.columns
    return pa.table(columns, schema=schema)


def _values(name: str, rows: Sequence[ExportRow]) -> list[Any]:
    values = list(map(attrgetter(name), rows))
    if name in ("chunks", "retrieved"):
        return [None if each is None else list(map(_passage, each)) for each in values]
    if name == "judgement":
        return [None if each is None else _judgement(each) for each in values]
    nested = name in ("tool_calls", "citations")
    return msgspec.to_builtins(values) if nested and any(values) else values


def _passage(passage: Passage) -> dict[str, Any]:
    found = msgspec.structs.asdict(passage)
    if passage.payload is not None:
        found["payload"] = msgspec.json.encode(passage.payload, enc_hook=str).decode()
    return found


def _judgement(judgement: Judgement) -> dict[str, Any]:
    # Arrow reads fields of structs by their names, and msgspec leaves those out that are empty.
    found = msgspec.structs.asdict(judgement)
    return {**found, "statements": list(map(msgspec.structs.asdict, judgement.statements))}


def _vector(row: ExportRow) -> list[float]:
    if isinstance(row, VectorRow) and row.embedding is not None:
        return row.embedding
    return []


def read_tables(folder: Folder, columns: Sequence[str] | None = None) -> Generator[Any]:
    """Yields a task's rows in order of index, as Arrow tables of one schema, at least one.

    They are those of `responses.parquet`, where the task has one; else they are put together from
    what its shards left, be it complete or not.

    Args:
        folder: The task's folder.
        columns: Which columns, of those that there are; all by default.
    """
    wanted = None if columns is None else list(columns)
    if folder.exists(PARQUET_NAME):
        with folder.open(PARQUET_NAME) as file:
            import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

            parquet: Any = pq.ParquetFile(file)
            yield (
                parquet.schema_arrow.remove_metadata()
                .empty_table()
                .select(wanted or parquet.schema_arrow.names)
            )
            for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted):
                yield arrow().table(batch).replace_schema_metadata()
        return
    made = TableMaker(folder)
    empty = True
    for rows in batched(read_rows(folder), BATCH_ROWS):
        table, empty = made.table(rows), False
        yield table if wanted is None else table.select(wanted)
    if empty:
        table = made.table(())
        yield table if wanted is None else table.select(wanted)


def read_schema(folder: Folder) -> Any:
    """Returns the Arrow schema of a task's rows, as `read_tables` yields them."""
    with closing(read_tables(folder)) as tables:
        return next(tables).schema


class TableMaker:
    """Makes tables of rows of a task, as far as they are there.

    Args:
        folder: The task's folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._plan = read_plan(folder)
        self._carried = task_columns(folder, self._plan) if self._plan is not None else ()
        self._beside = TaskColumns(folder, self._carried).schema if self._carried else ()
        self._record = read_record(folder)
        self._leaves = _leaves(self._record)
        self._schema: Any = None

    def table(self, rows: Sequence[OutputRow]) -> Any:
        """Returns rows, in any order, as an Arrow table; the schema is that of the first rows."""
        length = next((len(each.embedding) for each in rows if each.embedding), None)
        if self._schema is None:
            self._schema = row_schema(self._beside, length, self._leaves)
        if not rows or self._plan is None:
            return self._schema.empty_table()
        record = self._record
        exported = export_rows(
            iter(rows),
            self._plan,
            _model(record),
            None,
            _rates(record),
            vectors=length is not None,
            leaves=self._leaves,
        )
        return table_of(list(exported), self._schema, self._columns(rows))

    def _columns(self, rows: Sequence[OutputRow]) -> Any:
        if not self._carried:
            return None
        # Rows between them may be missing: the columns of all from the first to the last are read.
        indexes = [row.index for row in rows]
        first, last = min(indexes), max(indexes)
        every = TaskColumns(self._folder, self._carried, first).take(last - first + 1)
        return every.take(arrow().array([each - first for each in indexes], arrow().int64()))


def _leaves(record: TaskRecord) -> tuple[str, ...]:
    try:
        spec = find_task_type(record.task_type).spec
    except UnknownNameError:  # of a plugin that is not installed here
        return ()
    return spec.leaves if issubclass(spec, RowSpec) else ()


def _model(record: TaskRecord) -> str:
    model = record.spec.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    named = source.get("identifier") if isinstance(source, dict) else None
    return named if isinstance(named, str) else record.task_type


def _rates(record: TaskRecord) -> Rates:
    resources = record.spec.get("resources")
    return Rates.of(Resources.model_validate({} if resources is None else resources))
