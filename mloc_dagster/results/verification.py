"""Counting what is there, apart from whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mloc_dagster.results.rows import UPSTREAM_FAULT, OutputRow


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What a pass over a task's output rows found.

    Attributes:
        rows: How many there are.
        first_gap: The first index that is missing or out of order; None when there is none.
        errors: Rows that ended with an error.
        first_error: Index and text of the first of them.
        empty: Rows without an error whose output is empty.
        upstream: Those of the errors that are an earlier task's.
    """

    rows: int
    first_gap: int | None
    errors: int
    first_error: tuple[int, str] | None
    empty: int
    upstream: int = 0


def count_rows(rows: Iterable[OutputRow]) -> RowCounts:
    """Counts rows, gaps, errors and empty outputs in one pass."""
    expected = errors = empty = upstream = 0
    first_gap: int | None = None
    first_error: tuple[int, str] | None = None
    for row in rows:
        if row.index != expected and first_gap is None:
            first_gap = expected
        expected += 1
        if row.error is not None:
            errors += 1
            upstream += row.fault == UPSTREAM_FAULT
            first_error = first_error or (row.index, row.error)
        elif not row.output and row.embedding is None:
            empty += 1
    return RowCounts(expected, first_gap, errors, first_error, empty, upstream)
