"""Chunks as columns, and vectors as every engine wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mloc_dagster.errors import DataError
from mloc_dagster.index.protocol import Vectors
from mloc_dagster.results import Passage

PASSAGE_COLUMNS = ("id", "text", "document", "start", "end", "page", "heading", "payload")
"""What is stored of a chunk, in the order in which `passage_of` takes it."""


def passage_of(row: Sequence[Any]) -> Passage:
    """Returns the chunk of a row of `PASSAGE_COLUMNS`; its payload may be JSON."""
    *fields, heading, payload = row
    if isinstance(payload, str | bytes):
        payload = msgspec.json.decode(payload)
    return Passage(*fields, heading=list(heading or ()), payload=payload)


def payload_json(chunk: Passage) -> str | None:
    """Returns a chunk's payload as JSON; None where it has none."""
    return None if chunk.payload is None else msgspec.json.encode(chunk.payload).decode()


def as_vectors(vectors: Vectors, count: int | None, dimension: int) -> Any:
    """Returns vectors as a float32 array with a row for each.

    Args:
        vectors: What was given.
        count: How many there should be; None for any number.
        dimension: What each should have.

    Raises:
        DataError: If their number, their dimension or one of their values is wrong.
    """
    import numpy as np

    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dimension or count not in (None, array.shape[0]):
        wanted = f"({'any' if count is None else count}, {dimension})"
        raise DataError(f"expected vectors of the shape {wanted}, not {array.shape}")
    if not np.isfinite(array).all():
        raise DataError("a vector has a value that is no finite number")
    return array
