"""How the values of the selected rows are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.viewer.row_source import RowSource, places

_pa: Any = pyarrow  # it has no types
_pc: Any = pyarrow.compute

_BINS = 40
_MOST_VALUES = 12
_PASSED_OVER = {"index", "shard", "task_id", "prompt_sha256"}
_COUNTED = ("finish_reason", "error", "engine", "worker", "model", "reused")


class Histogram(msgspec.Struct):
    """Values of a column of numbers.

    Attributes:
        name: The column.
        group: As in `Column`.
        count: How many rows have one.
        mean: Of these; with a median and two percentiles.
        edges: One more than `counts`; empty if no row has one.
        counts: Rows between two neighbouring edges.
    """

    name: str
    group: str
    count: int
    mean: float
    p5: float
    p50: float
    p95: float
    edges: list[float]
    counts: list[int]


class Counts(msgspec.Struct):
    """The most frequent values of a column of texts.

    Attributes:
        name: The column.
        values: Each with its number of rows, the most frequent first.
        others: Rows with other values.
    """

    name: str
    values: list[tuple[str, int]]
    others: int


def histograms(source: RowSource, positions: np.ndarray) -> list[Histogram]:
    """Returns the distribution of each column of numbers, the scores first."""
    wanted = [
        each for each in source.columns if each.kind == "number" and each.name not in _PASSED_OVER
    ]
    rank = {"score": 0, "row": 1, "input": 2}
    found = []
    for column in sorted(wanted, key=lambda each: rank[each.group]):
        values = _numbers(source.column(column.name).take(places(positions)))
        # What is the same in every row, such as the first attempt, needs no picture.
        if len(values) and (column.group != "row" or values.min() < values.max()):
            found.append(_histogram(column.name, column.group, values))
    return found


def _numbers(column: Any) -> np.ndarray:
    values = column.drop_null().cast(_pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values[np.isfinite(values)]


def _histogram(name: str, group: str, values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    whole = bool(np.all(values == np.floor(values))) and high - low < _BINS
    # Whole numbers that are few get a bar each.
    edges = np.arange(low - 0.5, high + 1) if whole else np.linspace(low, high, _BINS + 1)
    if low == high and not whole:
        edges = np.array([low - 0.5, high + 0.5])
    counts, edges = np.histogram(values, bins=edges)
    p5, p50, p95 = np.percentile(values, [5, 50, 95])
    return Histogram(
        name,
        group,
        len(values),
        *(float(each) for each in (values.mean(), p5, p50, p95)),
        edges=[float(each) for each in edges],
        counts=[int(each) for each in counts],
    )


def frequent_values(source: RowSource, positions: np.ndarray) -> Sequence[Counts]:
    """Returns the most frequent values of columns that have few."""
    found = []
    for name in _COUNTED:
        if not source.has(name) or source.kind(name) != "text":
            continue
        column = source.column(name).take(places(positions)).drop_null()
        if not len(column):
            continue
        pairs = sorted(
            ((each["values"].as_py(), each["counts"].as_py()) for each in _pc.value_counts(column)),
            key=lambda pair: -pair[1],
        )
        shown = [(text[:200], count) for text, count in pairs[:_MOST_VALUES]]
        others = sum(count for _, count in pairs[_MOST_VALUES:])
        found.append(Counts(name, shown, others))
    return found
