"""Export rows as a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from types import TracebackType
from typing import IO, Any, Self

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster import __version__
from mloc_dagster.planning.plan import Plan
from mloc_dagster.results.export_rows import ExportRow

_pa: Any = pyarrow  # neither has types
_pq: Any = pq

_TYPES: dict[str, Any] = {
    "task_id": _pa.string(),
    "shard": _pa.int32(),
    "index": _pa.int64(),
    "prompt": _pa.string(),
    "prompt_sha256": _pa.string(),
    "output": _pa.string(),
    "outputs": _pa.list_(_pa.string()),
    "finish_reason": _pa.string(),
    "error": _pa.string(),
    "model": _pa.string(),
    "revision": _pa.string(),
    "engine": _pa.string(),
    "worker": _pa.string(),
    "attempt": _pa.int32(),
    "prompt_tokens": _pa.int64(),
    "completion_tokens": _pa.int64(),
    "latency_s": _pa.float64(),
}
_NULLABLE = {"outputs", "error", "revision"}

# Few different values; a dictionary of prompts or hashes would only be built to be given up.
_REPEATED = ["task_id", "shard", "finish_reason", "error", "model", "revision", "engine", "worker"]


class ParquetSink:
    """Writes each batch as one row group.

    Args:
        file: Where to.
        plan: Its task and data version go into the file's metadata.
    """

    def __init__(self, file: IO[bytes], plan: Plan) -> None:
        metadata = {
            "mloc_version": __version__,
            "mloc_task_id": plan.task_id,
            "mloc_data_version": plan.data_version,
        }
        fields = [
            _pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in _TYPES.items()
        ]
        self._schema = _pa.schema(fields, metadata=metadata)
        self._writer = _pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=_REPEATED
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Appends a row group."""
        columns = [
            _pa.array(list(map(attrgetter(name), rows)), kind) for name, kind in _TYPES.items()
        ]
        self._writer.write_batch(_pa.record_batch(columns, schema=self._schema))
