"""Rows of a task that runs, as they become durable: each once, in the order in which they do."""

from __future__ import annotations

from typing import Any

import msgspec

from mloc_dagster.results.part_files import decode_part, list_parts
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder
from mloc_dagster.results.tables import TableMaker


class RowFollower:
    """Reads what a task has left since it was last asked.

    A row that is computed anew, as its shard is tried again, is told of once. Scores are not among
    its columns: they are computed when all rows are there.

    Args:
        folder: The task's folder.
        retry_errors: Whether rows that end with an error are computed again, so that none of them
            is final before the task has ended.
    """

    def __init__(self, folder: Folder, *, retry_errors: bool = False) -> None:
        self._folder = folder
        self._waits_with_errors = retry_errors
        self._decoder = msgspec.json.Decoder(OutputRow)
        self._read: set[str] = set()
        self._told: set[int] = set()
        self._failed: dict[int, OutputRow] = {}
        self._tables: TableMaker | None = None

    def take(self) -> Any | None:
        """Returns an Arrow table with new rows, those of one file; None if there are none now."""
        if not self._folder.exists("plan.json"):
            return None
        for part in list_parts(self._folder):
            if part.name in self._read:
                continue
            self._read.add(part.name)
            rows = decode_part(self._folder, part, self._decoder)
            if fresh := self._fresh(rows):
                return self._table(fresh)
        return None

    def rest(self) -> Any | None:
        """Returns rows that were kept back; to be asked once the task has ended."""
        rows = [row for index, row in self._failed.items() if index not in self._told]
        self._failed = {}
        return self._table(rows) if rows else None

    def _fresh(self, rows: list[OutputRow]) -> list[OutputRow]:
        found: list[OutputRow] = []
        for row in rows:
            if row.index in self._told:
                continue
            if row.error is not None and self._waits_with_errors:
                self._failed.setdefault(row.index, row)
                continue
            self._told.add(row.index)
            found.append(row)
        return found

    def _table(self, rows: list[OutputRow]) -> Any:
        if self._tables is None:
            self._tables = TableMaker(self._folder)
        return self._tables.table(rows)
