"""What an index task tells of its documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.results import OutputRow, TaskReport
from mloc_dagster.schema import RowSpec, Usage

CHUNKS = "chunks"
EMBEDDED = "embedded_chunks"
COUNTS = (CHUNKS, EMBEDDED)
"""The chunks of all documents, and those that the index did not have."""


class IndexReport(TaskReport):
    """Counts chunks.

    Args:
        spec: The task.
    """

    def __init__(self, spec: RowSpec) -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    def add(self, row: OutputRow) -> None:
        """Counts those of a document."""
        if row.error is None:
            self._counts.update(row.counts or {})

    def result(self, usage: Usage) -> Mapping[str, JsonValue]:
        """Returns nothing: which version was made stands under `index`."""
        return {}

    def counts(self) -> Mapping[str, int]:
        """Returns how many chunks there are, and how many were embedded now."""
        return self._counts
