"""A task executor from a function that answers one row: no model, no batches."""

from __future__ import annotations

import time
from collections.abc import Callable

from mloc_dagster.errors import DataError, TaskCancelled
from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput
from mloc_dagster.results.rows import InputRow, OutputRow, failed_row
from mloc_dagster.schema.task import RowSpec

SECONDS_PER_LOOK = 0.1  # asking whether to stop may cost more than a row


class RowExecutor[SpecT: RowSpec]:
    """Computes rows one after the other, each by itself.

    Args:
        answer: Takes a row and the task's spec; returns the row's output. A `DataError` is the
            row's own error; any other exception ends the attempt.
        engine: What computes rows, with its version; it stands on each of them.
    """

    def __init__(self, answer: Callable[[InputRow, SpecT], str], engine: str) -> None:
        self._answer = answer
        self._engine = engine

    def model_key(self, spec: SpecT) -> ModelKey | None:
        """Returns None: there is no model."""
        return None

    def load(self, spec: SpecT) -> None:
        """Loads nothing."""

    def unload(self, model: None) -> None:
        """Frees nothing."""

    def run(self, shard: ShardInput, spec: SpecT, model: None, context: ShardContext) -> None:
        """Answers every row of a shard.

        Raises:
            TaskCancelled: If the task was asked to stop.
        """
        looked = 0.0
        for done, row in enumerate(shard.rows):
            if time.monotonic() - looked > SECONDS_PER_LOOK:
                if context.cancelled():
                    raise TaskCancelled(f"stopped after {done} rows")
                looked = time.monotonic()
            context.emit(self._output(row, spec))

    def _output(self, row: InputRow, spec: SpecT) -> OutputRow:
        if row.error is not None:
            return failed_row(row, row.error, self._engine)
        began = time.monotonic()
        try:
            output = self._answer(row, spec)
        except DataError as error:
            return failed_row(row, str(error), self._engine)
        seconds = time.monotonic() - began
        return OutputRow(
            index=row.index,
            prompt=row.prompt,
            output=output,
            latency_s=seconds,
            engine=self._engine,
            engine_s=seconds,
            custom_id=row.custom_id,
        )
