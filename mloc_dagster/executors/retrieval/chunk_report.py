"""What a `chunk` task tells of its documents."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.results import OutputRow, TaskReport
from mloc_dagster.schema import ChunkSpec, Usage

DOCUMENTS, CHUNKS = "documents", "chunks"
COUNTS = (DOCUMENTS, CHUNKS)


class ChunkReport(TaskReport):
    """Counts documents and chunks.

    Args:
        spec: The task.
    """

    def __init__(self, spec: ChunkSpec) -> None:
        self._documents = self._chunks = self._characters = 0

    def add(self, row: OutputRow) -> None:
        """Counts a document, if it could be read."""
        if row.error is not None:
            return
        self._documents += 1
        self._chunks += len(row.chunks or ())
        self._characters += len(row.output)

    def result(self, usage: Usage) -> Mapping[str, JsonValue]:
        """Returns the usage with the counts."""
        counts = {**self.counts(), "characters": self._characters}
        return {"usage": {**usage.model_dump(), **counts}}

    def counts(self) -> Mapping[str, int]:
        """Returns how many documents could be read, and the chunks of all."""
        return {DOCUMENTS: self._documents, CHUNKS: self._chunks}
