"""Rows of a task as the viewer reads them: in blocks, a few columns of a few rows at a time.

A block is what can be read at once: a row group of `responses.parquet`, a part file. What the
table shows of a cell is its first characters; these are kept for blocks that were read lately, so
that scrolling through a sorted task decodes each block once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.results import RESERVED_COLUMNS, answer_text, known_calls

_pa: Any = pyarrow  # it has no types
_pc: Any = pyarrow.compute

ColumnKind = Literal["number", "text", "other"]
ColumnGroup = Literal["row", "input", "score"]

SHOWN_CHARS = 240
"""Of a text in the table; the whole of it is read when its row is opened."""

_KEPT_BYTES = 256 << 20
"""Shortened cells that one process keeps."""

LENGTHS = {"prompt_chars": "prompt", "output_chars": "output"}
"""Columns that no file has: how many characters another one has."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        name: Its name.
        kind: What its cells are compared as.
        group: Whether mloc wrote it, the input brought it along, or an evaluation made it.
        stored: Whether it is in the task's files, and so in what is exported.
    """

    name: str
    kind: ColumnKind
    group: ColumnGroup
    stored: bool = True


def columns_of(schema: Any, scores: Sequence[str] = ()) -> tuple[Column, ...]:
    """Returns the columns of an Arrow schema, and the lengths of its texts.

    Args:
        schema: The schema.
        scores: Names of columns that an evaluation made.
    """
    found = [Column(field.name, _kind(field.type), _group(field.name, scores)) for field in schema]
    names = {each.name for each in found}
    for name, of in LENGTHS.items():
        if of in names and name not in names:
            found.append(Column(name, "number", "row", stored=False))
    return tuple(found)


def _group(name: str, scores: Sequence[str]) -> ColumnGroup:
    if name in scores:
        return "score"
    return "row" if name in RESERVED_COLUMNS else "input"


def _kind(kind: Any) -> ColumnKind:
    types = _pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return "text" if types.is_string(kind) or types.is_large_string(kind) else "other"


class RowSource(ABC):
    """Rows of one task, or of a comparison of two.

    Attributes:
        columns: What each row has.
        version: Changes when the rows do.
        starts: The position of each block's first row, and the number of rows.
    """

    def __init__(self, columns: tuple[Column, ...], version: str, starts: np.ndarray) -> None:
        self.columns = columns
        self.version = version
        self.starts = starts
        self._kinds = {each.name: each for each in columns}

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.starts[-1])

    @property
    def stored_names(self) -> list[str]:
        """The columns that exports have."""
        return [each.name for each in self.columns if each.stored]

    def has(self, name: str) -> bool:
        """Tells whether there is such a column."""
        return name in self._kinds

    def kind(self, name: str) -> ColumnKind:
        """Returns what a column's cells are compared as."""
        return self._kinds[name].kind

    @abstractmethod
    def read_block(self, number: int, names: Sequence[str]) -> Any:
        """Returns an Arrow table with some stored columns of a block."""

    def block_column(self, number: int, name: str) -> Any:
        """Returns a column of a block, stored or not, as one Arrow array."""
        if self._kinds[name].stored:
            return _whole(self.read_block(number, [name]).column(0))
        return _pc.utf8_length(_whole(self.read_block(number, [LENGTHS[name]]).column(0)))

    def column(self, name: str) -> Any:
        """Returns a whole column as one Arrow array."""
        blocks = [self.block_column(each, name) for each in range(len(self.starts) - 1)]
        return _pa.concat_arrays(blocks) if blocks else _pa.array([], _pa.null())

    def all_null(self, name: str) -> bool:
        """Tells whether no row has a value in a column."""
        return self.column(name).null_count == self.rows

    def position_of(self, index: int) -> int | None:
        """Returns the place of the row with an index; None if there is no such row."""
        if 0 <= index < self.rows:  # of a task that is done, every row is where its index says
            number = int(np.searchsorted(self.starts, index, side="right")) - 1
            at = self.block_column(number, "index")[index - int(self.starts[number])]
            if at.as_py() == index:
                return index
        places = np.flatnonzero(self.column("index").to_numpy() == index)
        return int(places[0]) if len(places) else None

    def take(self, positions: np.ndarray, names: Sequence[str]) -> Any:
        """Returns an Arrow table with whole cells of stored columns, in the order of `positions`.

        Args:
            positions: Places of rows.
            names: Stored columns.
        """
        return self._gather(positions, lambda number: self.read_block(number, names))

    def window(self, positions: np.ndarray, names: Sequence[str]) -> list[dict[str, object]]:
        """Returns rows as the table shows them: texts shortened, in the order of `positions`."""

        def shortened(number: int) -> Any:
            return _pa.table([self._shortened(number, name) for name in names], names=list(names))

        return [
            {name: shown(cell) for name, cell in row.items()}
            for row in self._gather(positions, shortened).to_pylist()
        ]

    def _gather(self, positions: np.ndarray, read: Any) -> Any:
        if not len(positions):
            # The types of no rows are those of any block.
            return read(0).slice(0, 0) if len(self.starts) > 1 else _pa.table({})
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        parts = []
        for number in np.unique(numbers):
            inside = positions[order[numbers[order] == number]] - self.starts[number]
            parts.append(read(int(number)).take(places(inside)))
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return _pa.concat_tables(parts, promote_options="permissive").take(places(back))

    def _shortened(self, number: int, name: str) -> Any:
        key = (self.version, number, name)
        found = _kept.get(key)
        if found is None:
            found = self.block_column(number, name)
            if self.kind(name) == "text":
                found = _pc.utf8_slice_codeunits(found, 0, SHOWN_CHARS)
            _kept.put(key, found)
        return found


def places(positions: np.ndarray) -> Any:
    """Returns positions as an Arrow array; `pyarrow.array` would load pandas first, to ask it."""
    numbers = np.ascontiguousarray(positions, dtype=np.int64)
    buffers = [None, _pa.py_buffer(numbers)]
    return _pa.Array.from_buffers(_pa.int64(), len(numbers), buffers)


def _whole(column: Any) -> Any:
    if isinstance(column, _pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, _pa.ChunkedArray):  # of no chunks, or of a type that has none
            column = _pa.concat_arrays(column.chunks) if column.num_chunks else column.chunk(0)
    return column.dictionary_decode() if _pa.types.is_dictionary(column.type) else column


class _Kept:
    """Arrow arrays, the least recently used of which go first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._arrays: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: tuple[str, int, str]) -> Any:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: tuple[str, int, str], array: Any) -> None:
        with self._lock:
            if key in self._arrays:
                return
            self._arrays[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._most_bytes and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes


_kept = _Kept(_KEPT_BYTES)

_SHOWN_NUMBERS = 4


def shown(cell: object) -> object:
    """Returns a cell as the table shows it: what is neither text nor number as a short text."""
    match cell:
        case None | bool() | int() | float():
            return cell
        case str():
            return cell[:SHOWN_CHARS]
        case bytes():
            return f"{len(cell):,} bytes"
        case [dict(), *_] if calls := known_calls(cell):
            return answer_text("", calls)[:SHOWN_CHARS]
        case [{"document": str()}, *_]:
            return _documents([each["document"] for each in cell])
        case [float(), *_] if len(cell) > _SHOWN_NUMBERS:
            first = ", ".join(f"{each:.4g}" for each in cell[:_SHOWN_NUMBERS])
            return f"{len(cell)} numbers: {first}, …"
        case _:
            return msgspec.json.encode(cell, enc_hook=str).decode()[:SHOWN_CHARS]


def _documents(documents: Sequence[str]) -> str:
    """Returns the documents of passages in their order, and how many passages of each there are."""
    counts = Counter(documents)
    names = (f"{name} ({count})" if count > 1 else name for name, count in counts.items())
    return ", ".join(names)[:SHOWN_CHARS]
