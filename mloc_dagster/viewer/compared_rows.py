"""Two tasks side by side: rows with the same input, what each answered, and what the scores say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.results import answer_text
from mloc_dagster.viewer.row_source import Column, RowSource

_pa: Any = pyarrow  # it has no types
_pc: Any = pyarrow.compute

_BLOCK_ROWS = 8192
_BOTH = ("output", "error", "completion_tokens", "latency_s")
_KINDS = {"output": "text", "error": "text"}


class Delta(msgspec.Struct):
    """A column of numbers of both tasks, over the rows that both have.

    Attributes:
        name: The column.
        score: Whether an evaluation made it.
        a: Its mean in the first task.
        b: Its mean in the second.
        higher: Rows in which the second has more.
        lower: Rows in which it has less.
        rows: Rows in which both have a value.
    """

    name: str
    score: bool
    a: float | None
    b: float | None
    higher: int
    lower: int
    rows: int


class ComparedRows(RowSource):
    """The rows that two tasks have in common.

    Args:
        a: Rows of the first task.
        b: Rows of the second.
    """

    def __init__(self, a: RowSource, b: RowSource) -> None:
        self._a, self._b = a, b
        self._at_a, self._at_b = _joined(a, b)
        self.scores = [
            each.name
            for each in a.columns
            if each.group == "score" and b.has(each.name) and b.kind(each.name) == "number"
        ]
        columns = [Column("index", "number", "row"), Column("prompt", "text", "row")]
        columns += [
            each
            for each in a.columns
            if each.group == "input" and each.name not in ("changed", "index", "prompt")
        ]
        for name in self.scores:
            columns += [Column(f"{name}_{side}", "number", "score") for side in ("a", "b", "delta")]
        columns.append(Column("changed", "other", "row"))
        for name in _BOTH:
            if a.has(name) and b.has(name):
                kind = "text" if name in _KINDS else "number"
                columns += [Column(f"{name}_{side}", kind, "row") for side in ("a", "b")]
        rows = len(self._at_a)
        starts = np.append(np.arange(0, rows, _BLOCK_ROWS), rows).astype(np.int64)
        super().__init__(tuple(columns), f"{a.version} {b.version}", starts)

    def read_block(self, number: int, names: Sequence[str]) -> Any:
        """Returns some columns of a few thousand rows."""
        some = slice(int(self.starts[number]), int(self.starts[number + 1]))
        sides = {"a": (self._a, self._at_a[some]), "b": (self._b, self._at_b[some])}
        known: dict[tuple[str, str], Any] = {}

        def cells(side: str, name: str) -> Any:
            if (side, name) not in known:
                known[side, name] = _taken(*sides[side], name)
            return known[side, name]

        return _pa.table([self._cells(name, cells) for name in names], names=list(names))

    def _cells(self, name: str, cells: Any) -> Any:
        if name == "changed":
            same = _pc.equal(cells("a", "output"), cells("b", "output"))
            return _pc.invert(_pc.fill_null(same, False))
        stem, _, side = name.rpartition("_")
        if side == "delta" and stem in self.scores:
            return _pc.subtract(cells("b", stem), cells("a", stem))
        if side in ("a", "b") and stem in (*self.scores, *_BOTH):
            return cells(side, stem)
        return cells("a", name)

    def deltas(self) -> list[Delta]:
        """Returns what became of the scores, tokens and times."""
        names = [*self.scores, "completion_tokens", "latency_s"]
        return [
            self._delta(each) for each in names if self.has(f"{each}_a") and self.has(f"{each}_b")
        ]

    def only_in(self) -> tuple[int, int]:
        """Returns how many rows only the first task has, and only the second."""
        return self._a.rows - self.rows, self._b.rows - self.rows

    def _delta(self, name: str) -> Delta:
        a, b = (
            self.column(f"{name}_{side}").cast(_pa.float64()).to_numpy(zero_copy_only=False)
            for side in ("a", "b")
        )
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        return Delta(
            name,
            name in self.scores,
            float(a.mean()) if len(a) else None,
            float(b.mean()) if len(b) else None,
            int((b > a).sum()),
            int((b < a).sum()),
            len(a),
        )


def _taken(source: RowSource, positions: np.ndarray, name: str) -> Any:
    """Returns a column of some rows; what was answered with the calls of tools in it."""
    calls = "tool_calls" if name == "output" and source.has("tool_calls") else None
    table = source.take(positions, [name, calls] if calls else [name])
    cells = table.column(0).combine_chunks()
    if calls is None or table.column(1).null_count == len(positions):
        return cells
    answers = zip(cells.to_pylist(), table.column(1).to_pylist(), strict=True)
    return _pa.array([answer_text(text or "", called) for text, called in answers], _pa.string())


def _joined(a: RowSource, b: RowSource) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of equal inputs in both; of several with one text, in their order."""
    of_a, of_b = (_keys(each) for each in (a, b))
    if len(of_a) == len(of_b) and np.array_equal(of_a, of_b):
        return np.arange(len(of_a)), np.arange(len(of_b))
    _, at_a, at_b = np.intersect1d(_nth(of_a), _nth(of_b), assume_unique=True, return_indices=True)
    order = np.argsort(at_a)
    return at_a[order], at_b[order]


def _keys(source: RowSource) -> np.ndarray:
    """Returns 16 hex digits of each prompt's hash, as bytes."""
    if source.has("prompt_sha256"):
        hashes = source.column("prompt_sha256")
    else:
        import hashlib

        texts = source.column("prompt").to_pylist()
        hashes = _pa.array(
            [hashlib.sha256((each or "").encode()).hexdigest() for each in texts], _pa.string()
        )
    short = _pc.utf8_slice_codeunits(hashes, 0, 16)
    return short.to_numpy(zero_copy_only=False).astype("S16")


def _nth(keys: np.ndarray) -> np.ndarray:
    """Returns each key with how often it came before."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    places = np.arange(len(keys))
    times = places - np.maximum.accumulate(np.where(first, places, 0))
    counted = np.empty(len(keys), dtype="S24")
    counted[order] = np.char.add(ordered, np.char.mod("-%d", times).astype("S8"))
    return counted
