"""Rows that another asset holds, as a file that a task reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any, cast

from pydantic import JsonValue

from mloc_dagster.compile import Document, Position, tree_of, with_rows
from mloc_dagster.data import Rows, write_rows
from mloc_dagster.errors import InputError
from mloc_dagster.ops.io import TaskRef
from mloc_dagster.results import Folder, open_store, read_tables


def rows_document(
    document: Mapping[str, JsonValue], rows: object, place: str
) -> dict[str, JsonValue]:
    """Returns a template whose first task reads its rows from what an asset holds.

    Args:
        document: The template.
        rows: A path or URL of a file, a table of pyarrow, pandas or polars, an iterable of texts,
            of mappings or of chats, or a task of mloc's.
        place: Where a file of the rows is kept, below `<results>/.dagster/`; without its ending.

    Raises:
        InputError: If it is none of these, or the template reads its rows in several places.
    """
    if isinstance(rows, str | os.PathLike):
        file = os.fspath(rows)
    elif rows is None:
        raise InputError("the asset that the rows come from holds None")
    else:
        given = _rows_of(rows) if isinstance(rows, TaskRef) else rows
        file = _kept(cast("Rows", given), open_store().folder(".dagster"), place)
    root = tree_of(dict(document), Position("template"))
    return with_rows(Document("template", root), str(file), "rows_from").mapping


def _kept(rows: Rows, folder: Folder, place: str) -> str:
    """Writes rows to where every worker can read them; returns the file's address."""
    written = write_rows(rows)
    if written is None:
        raise InputError("there are no rows")
    name = place + written.path.suffix
    try:
        with written.path.open("rb") as source, folder.create(name) as target:
            shutil.copyfileobj(source, target)
    finally:
        written.delete()
    return f"{folder.url}/{name}"


def _rows_of(ref: TaskRef) -> Any:
    """Returns the rows of a task, a batch of them in memory at a time."""
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

    arrow: Any = pa
    tables = read_tables(open_store().task(ref.task_id))
    first = next(tables)
    batches = (batch for table in (first, *tables) for batch in table.to_batches())
    return arrow.RecordBatchReader.from_batches(first.schema, batches)
