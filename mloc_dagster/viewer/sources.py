"""Opened rows of tasks, by task; the least recently asked for are closed."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from mloc_dagster.results import RECORD_NAME, Folder, plan_of
from mloc_dagster.viewer.compared_rows import ComparedRows
from mloc_dagster.viewer.live_rows import LiveRows, PartReader
from mloc_dagster.viewer.parquet_rows import ParquetRows, parquet_version
from mloc_dagster.viewer.row_source import RowSource
from mloc_dagster.viewer.task_view import score_names

_KEPT = 8


class _Least[T]:
    """The values that were used lately."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> T | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: T) -> T:
        with self._lock:
            self._values[key] = value
            while len(self._values) > _KEPT:
                self._values.popitem(last=False)
        return value


class Sources:
    """The rows of tasks, opened once and again when they have changed."""

    def __init__(self) -> None:
        self._parquet: _Least[ParquetRows] = _Least()
        self._parts: _Least[PartReader] = _Least()
        self._compared: _Least[ComparedRows] = _Least()

    def rows(self, folder: Folder) -> RowSource:
        """Returns the rows of a task: of its Parquet file, or those that are there already.

        Raises:
            DamagedFileError: If the Parquet file cannot be read.
        """
        version = parquet_version(folder)
        if version is not None:
            known = self._parquet.get(folder.url)
            if known is not None and known.version == version:
                return known
            return self._parquet.put(folder.url, ParquetRows(folder, score_names(folder), version))
        reader = self._parts.get(folder.url) or self._parts.put(folder.url, PartReader(folder))
        plan = plan_of(folder) if folder.exists(RECORD_NAME) else None
        return reader.rows(plan, score_names(folder))

    def compared(self, a: Folder, b: Folder) -> ComparedRows:
        """Returns the rows that two tasks have in common."""
        of_a, of_b = self.rows(a), self.rows(b)
        key = f"{of_a.version} {of_b.version}"
        return self._compared.get(key) or self._compared.put(key, ComparedRows(of_a, of_b))


def notes(source: RowSource) -> list[str]:
    """Returns what to know of rows that are not all there."""
    if not isinstance(source, LiveRows):
        return []
    cut = [f"the first {source.rows:,} rows are shown until the task is done"] if source.cut else []
    return [*source.damaged, *cut]


_RARE = ("error", "tool_calls", "reasoning", "citation_error")
"""Columns that are shown as soon as a row has something in them."""


def idle_columns(source: RowSource) -> list[str]:
    """Returns columns that say nothing here: no row has any, or the input's text is the prompt."""
    idle = [each for each in _RARE if source.has(each) and source.all_null(each)]
    if source.has("prompt") and source.rows:
        prompts = source.block_column(0, "prompt")
        idle += [
            each.name
            for each in source.columns
            if each.group == "input"
            and each.kind == "text"
            and source.block_column(0, each.name).equals(prompts)
        ]
    return idle
