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
from mloc_dagster.results.export_rows import ExportRow, VectorRow

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
    "cached_tokens": _pa.int64(),
    "engine_s": _pa.float64(),
    "energy_j": _pa.float64(),
    "gpu_s": _pa.float64(),
    "cost": _pa.float64(),
    "reused": _pa.string(),
    "saved_s": _pa.float64(),
    "custom_id": _pa.string(),
}
_NULLABLE = {"outputs", "error", "revision", "energy_j", "cost", "reused", "custom_id"}

_FEW_ROWS = 64

# Few different values; a dictionary of prompts or hashes would only be built to be given up.
_REPEATED = [
    *("task_id", "shard", "finish_reason", "error", "model", "revision", "engine", "worker"),
    "reused",
]


class ParquetSink:
    """Writes each batch as one row group.

    Vectors are lists of one length; a row whose vector has another one (by an option of its own)
    has null here.

    Args:
        file: Where to.
        plan: Its task and data version go into the file's metadata.
        vector_length: How long the rows' vectors are; None for rows that have none.
    """

    def __init__(self, file: IO[bytes], plan: Plan, *, vector_length: int | None = None) -> None:
        self._length = vector_length
        metadata = {
            "mloc_version": __version__,
            "mloc_task_id": plan.task_id,
            "mloc_data_version": plan.data_version,
        }
        fields = [
            _pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in _TYPES.items()
        ]
        if vector_length is not None:
            fields.append(_pa.field("embedding", _pa.list_(_pa.float32(), vector_length)))
        self._schema: Any = _pa.schema(fields, metadata=metadata)
        self._writer: Any = _pq.ParquetWriter(
            file, self._schema, compression=_compression(plan.rows), use_dictionary=_REPEATED
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
        if self._length is not None:
            vectors = [each if len(each) == self._length else None for each in map(_vector, rows)]
            columns.append(_pa.array(vectors, _pa.list_(_pa.float32(), self._length)))
        self._writer.write_batch(_pa.record_batch(columns, schema=self._schema))


def _compression(rows: int) -> str:
    # Zstandard makes a context for each of the columns, which takes longer than all the rest.
    return "zstd" if rows > _FEW_ROWS else "snappy"


def _vector(row: ExportRow) -> list[float]:
    if isinstance(row, VectorRow) and row.embedding is not None:
        return row.embedding
    return []
