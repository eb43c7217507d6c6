"""What a task type tells of its rows beside the rows themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from pydantic import JsonValue

from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder
from mloc_dagster.schema import Usage


class TaskReport(Protocol):
    """Sees every row of a task once, in order of index, when it is aggregated."""

    def add(self, row: OutputRow) -> None:
        """Takes a row."""
        ...

    def result(self, usage: Usage) -> Mapping[str, JsonValue]:
        """Returns what stands in `result` of `responses.json`, over what every task has there.

        Args:
            usage: What every task says that it took.
        """
        ...

    def counts(self) -> Mapping[str, int]:
        """Returns how often what the task type counts has happened, by name."""
        ...

    def write_files(self, folder: Folder, wanted: Collection[str]) -> None:
        """Writes the files of its own that the template names in `output.artifacts`.

        Those that the task type leaves anyway are written here as well. By default there are none.
        """
