"""Rows of a task that still runs, or left no Parquet: its part files, each read once."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import msgspec
import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning import Plan
from mloc_dagster.results import (
    Folder,
    OutputRow,
    Part,
    TaskColumns,
    list_parts,
    part_rows,
    prompt_text,
    row_schema,
    task_columns,
)
from mloc_dagster.viewer.row_source import RowSource, columns_of

_pa: Any = pyarrow  # it has no types

MOST_ROWS = 200_000
"""Rows of running tasks are held in memory; the rest of a longer task shows when it is done."""

_FIELDS: dict[str, Any] = {
    "index": _pa.int64(),
    "prompt": _pa.string(),
    "output": _pa.string(),
    "outputs": _pa.list_(_pa.string()),
    "tool_calls": row_schema().field("tool_calls").type,
    "reasoning": _pa.string(),
    "finish_reason": _pa.string(),
    "error": _pa.string(),
    "prompt_tokens": _pa.int64(),
    "completion_tokens": _pa.int64(),
    "reasoning_tokens": _pa.int64(),
    "latency_s": _pa.float64(),
    "engine": _pa.string(),
    "worker": _pa.string(),
    "attempt": _pa.int32(),
    "custom_id": _pa.string(),
}


class LiveRows(RowSource):
    """What a task's part files held when this was made.

    Attributes:
        damaged: Why some part files could not be read; their rows are missing.
        cut: Whether there are more rows than are held.
    """

    def __init__(
        self,
        blocks: Sequence[Any],
        version: str,
        scores: Sequence[str],
        damaged: Sequence[str],
        cut: bool,
    ) -> None:
        self._blocks = blocks
        self.damaged = tuple(damaged)
        self.cut = cut
        self._schema = _pa.unify_schemas(
            [each.schema for each in blocks] or [_pa.schema(list(_FIELDS.items()))],
            promote_options="permissive",
        )
        starts = np.concatenate([[0], np.cumsum([each.num_rows for each in blocks])])
        super().__init__(columns_of(self._schema, scores), version, starts.astype(np.int64))

    def read_block(self, number: int, names: Sequence[str]) -> Any:
        """Returns some columns of the rows of a part file."""
        block = self._blocks[number]
        return _pa.table([self._cells(block, name) for name in names], names=list(names))

    def _cells(self, block: Any, name: str) -> Any:
        kind = self._schema.field(name).type
        if name not in block.schema.names:
            return _pa.nulls(block.num_rows, kind)
        return block.column(name).cast(kind)


class PartReader:
    """Reads the part files of one task as they appear.

    Args:
        folder: The task's folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lock = Lock()
        self._blocks: dict[str, Any] = {}
        self._seen: dict[int, bool] = {}
        """Whether the row of an index has an error; a later one without takes its place."""
        self._damaged: dict[str, str] = {}
        self._columns: Any = None
        self._latest: LiveRows | None = None

    def rows(self, plan: Plan | None, scores: Sequence[str]) -> LiveRows:
        """Returns the rows that are there now."""
        with self._lock:
            parts = list_parts(self._folder)
            known = {*self._blocks, *self._damaged}
            if known - {each.name for each in parts}:  # the task was started over
                self._blocks, self._damaged, self._seen = {}, {}, {}
                self._latest, known = None, set()
            new = [each for each in parts if each.name not in known]
            if self._latest is None or new:
                for part in new:
                    if len(self._seen) >= MOST_ROWS:
                        break
                    self._read(part, plan)
                self._latest = self._snapshot(scores)
            return self._latest

    def _snapshot(self, scores: Sequence[str]) -> LiveRows:
        blocks = [each for each in self._blocks.values() if each.num_rows]
        version = f"{self._folder.url}-parts-{len(self._blocks)}-{len(self._damaged)}"
        cut = len(self._seen) >= MOST_ROWS
        return LiveRows(blocks, version, scores, list(self._damaged.values()), cut)

    def _read(self, part: Part, plan: Plan | None) -> None:
        try:
            rows = [each for each in part_rows(self._folder, part) if self._is_new(each)]
            self._blocks[part.name] = _table(rows, self._carried(rows, plan))
        except (DamagedFileError, FileNotFoundError) as error:
            self._damaged[part.name] = str(error)

    def _is_new(self, row: OutputRow) -> bool:
        failed = row.error is not None
        before = self._seen.get(row.index)
        if before is None:
            self._seen[row.index] = failed
            return True
        if not before or failed:
            return False
        # A retry answered a row that had failed: the failure is no row any more.
        self._seen[row.index] = False
        for name, block in self._blocks.items():
            others = _pa.compute.not_equal(block.column("index"), row.index)
            if block.num_rows and not _pa.compute.all(others).as_py():
                self._blocks[name] = block.filter(others)
        return True

    def _carried(self, rows: Sequence[OutputRow], plan: Plan | None) -> Any:
        if plan is None or not rows:
            return None
        carried = task_columns(self._folder, plan)
        if not carried:
            return None
        first, last = min(each.index for each in rows), max(each.index for each in rows)
        columns = TaskColumns(self._folder, carried, first).take(last - first + 1)
        return columns.take(_pa.array([each.index - first for each in rows]))


def _table(rows: Sequence[OutputRow], carried: Any) -> Any:
    arrays = []
    for name, kind in _FIELDS.items():
        values = [getattr(each, name) for each in rows]
        if name == "prompt":
            values = [prompt_text(each) for each in values]
        elif name == "tool_calls":
            values = msgspec.to_builtins(values)
        arrays.append(_pa.array(values, kind))
    names = list(_FIELDS)
    if any(each.embedding for each in rows):
        arrays.append(_pa.array([each.embedding for each in rows], _pa.list_(_pa.float32())))
        names.append("embedding")
    if carried is not None:
        arrays += carried.columns
        names += carried.schema.names
    return _pa.table(arrays, names=names)
