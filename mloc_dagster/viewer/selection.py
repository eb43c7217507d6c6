"""Which rows the table shows, and in which order: computed once for each question, then kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.errors import InputError, nearest_hint
from mloc_dagster.viewer.conditions import mask
from mloc_dagster.viewer.row_source import RowSource, places

_pa: Any = pyarrow  # it has no types
_pc: Any = pyarrow.compute

_KEPT = 16
"""Selections that one process keeps: of a million rows each takes 8 MB."""

_SORTED_CHARS = 64
"""Texts are sorted by so many of their first characters."""


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asks of the rows.

    Attributes:
        where: A condition in the language of `data.where`; empty for all rows.
        search: A text that a row's prompt, output, error or input columns hold, whatever its case.
        sort: The column to sort by; empty for the order of the task.
        descending: Largest first. Rows without a value are last either way.
    """

    where: str = ""
    search: str = ""
    sort: str = ""
    descending: bool = False


class Selections:
    """Positions of rows by question; the least recently asked are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, Question], np.ndarray] = OrderedDict()
        self._lock = Lock()

    def positions(self, source: RowSource, question: Question) -> np.ndarray:
        """Returns the positions of the rows that are asked for, in their order.

        Raises:
            InputError: If the condition cannot be read, or a column is not there.
        """
        key = (source.version, question)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = select(source, question)
        with self._lock:
            self._known[key] = found
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found


def select(source: RowSource, question: Question) -> np.ndarray:
    """Computes positions; see `Selections.positions`."""
    if question.sort and not source.has(question.sort):
        names = [each.name for each in source.columns]
        hint = nearest_hint(question.sort, names)
        raise InputError(f"rows have no column {question.sort!r} to sort by{hint}")
    if not (question.where.strip() or question.search or question.sort):
        return np.arange(source.rows)
    chosen = np.ones(source.rows, dtype=bool)
    if question.where.strip():
        chosen &= mask(source, question.where)
    if question.search:
        chosen &= _holding(source, question.search)
    positions = np.flatnonzero(chosen)
    if question.sort:
        positions = positions[_order(source, question, positions)]
    return positions


def _holding(source: RowSource, text: str) -> np.ndarray:
    searched = [
        each.name
        for each in source.columns
        if each.kind == "text" and (each.group == "input" or each.name in _SEARCHED)
    ]
    found = []
    for number in range(len(source.starts) - 1):
        holds = np.zeros(int(source.starts[number + 1] - source.starts[number]), dtype=bool)
        for name in searched:
            column = source.block_column(number, name)
            hits = _pc.fill_null(_pc.match_substring(column, text, ignore_case=True), False)
            holds |= hits.to_numpy(zero_copy_only=False)
        found.append(holds)
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


_SEARCHED = ("prompt", "output", "error", "custom_id", "output_a", "output_b")


def _order(source: RowSource, question: Question, positions: np.ndarray) -> np.ndarray:
    kind = source.kind(question.sort)
    if kind == "other":
        raise InputError(f"the column {question.sort!r} holds neither numbers nor texts: no order")
    column = source.column(question.sort).take(places(positions))
    if kind == "text":
        column = _pc.utf8_slice_codeunits(column, 0, _SORTED_CHARS)
    elif _pa.types.is_floating(column.type):
        # A score that is no number counts as missing: it is neither best nor worst.
        column = _pc.if_else(_pc.is_nan(column), None, column)
    order = "descending" if question.descending else "ascending"
    return _pc.array_sort_indices(column, order=order, null_placement="at_end").to_numpy()
