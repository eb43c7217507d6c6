"""Reading the rows that shards wrote, in order of index, each index once, in bounded memory."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import msgspec

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

_PART = re.compile(r"shards/(\d{4,})/part-(\d+)-(\d+)-[0-9a-z-]+\.jsonl")


@dataclass(frozen=True, slots=True)
class Part:
    """A part file, as its name describes it.

    Attributes:
        shard: Index of its shard.
        first: Index of its first row.
        last: Index of its last row.
        name: Its name below the task's folder.
    """

    shard: int
    first: int
    last: int
    name: str


class FinishedRows:
    """The indexes of a shard that have a row: a byte each.

    Attributes:
        start: First index of the shard.
        stop: The index after its last.
        count: How many have a row.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.count = 0
        self._finished = bytearray(stop - start)

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop and self._finished[index - self.start] == 1

    def __len__(self) -> int:
        return self.count

    def add(self, index: int) -> None:
        """Marks an index as finished; one outside the shard is none of its business."""
        if self.start <= index < self.stop and not self._finished[index - self.start]:
            self._finished[index - self.start] = 1
            self.count += 1

    def missing(self) -> Iterator[int]:
        """Yields the indexes without a row, in order."""
        place = self._finished.find(0)
        while place >= 0:
            yield self.start + place
            place = self._finished.find(0, place + 1)


class _Mark(msgspec.Struct):
    index: int
    error: str | None = None


_INDEX = attrgetter("index")


def list_parts(folder: Folder, shard: Shard | None = None) -> list[Part]:
    """Returns the part files of a task, or of one shard, by shard, first index and name."""
    below = "shards" if shard is None else f"shards/{shard.key}"
    matches = (_PART.fullmatch(name) for name in folder.list(below, recursive=True))
    parts = [Part(int(m[1]), int(m[2]), int(m[3]), m[0]) for m in matches if m]
    return sorted(parts, key=lambda part: (part.shard, part.first, part.name))


def finished_rows(folder: Folder, shard: Shard, *, retry_errors: bool = False) -> FinishedRows:
    """Finds out which rows of a shard are there already.

    Args:
        folder: The task's folder.
        shard: The shard.
        retry_errors: Whether a row with an error counts as missing.
    """
    finished = FinishedRows(shard.start, shard.stop)
    decoder = msgspec.json.Decoder(_Mark)
    for part in list_parts(folder, shard):
        for mark in _decode(folder, part, decoder):
            if mark.error is None or not retry_errors:
                finished.add(mark.index)
    return finished


def read_shard(folder: Folder, shard: Shard) -> Iterator[OutputRow]:
    """Yields the rows of a shard; see `read_rows`."""
    parts = list_parts(folder, shard)
    return _clip(_merge(folder, parts), shard.start, shard.stop)


def read_rows(folder: Folder, start: int = 0, stop: int | None = None) -> Iterator[OutputRow]:
    """Yields a task's rows in order of index, each index once.

    Of several rows with one index (a shard was tried twice) the first without an error counts, in
    order of part names; the first of all when each has one. Missing rows are simply not there.

    Args:
        folder: The task's folder.
        start: First index to read.
        stop: The index to stop before; all rows by default.

    Raises:
        IncompleteResultsError: If a part file is damaged.
    """
    parts = [
        part
        for part in list_parts(folder)
        if part.last >= start and (stop is None or part.first < stop)
    ]
    for _, of_shard in groupby(parts, key=attrgetter("shard")):
        yield from _clip(_merge(folder, of_shard), start, stop)


def _clip(rows: Iterator[OutputRow], start: int, stop: int | None) -> Iterator[OutputRow]:
    for row in rows:
        if stop is not None and row.index >= stop:
            return
        if row.index >= start:
            yield row


def _merge(folder: Folder, parts: Iterable[Part]) -> Iterator[OutputRow]:
    """Merges parts that come in order of first index.

    All rows below the next part's first index are final. What is left over stays sorted, so
    that sorting it with the next part's rows is one merge of two runs; the sort is stable, so
    equal indexes stay in order of part names.
    """
    decoder = msgspec.json.Decoder(OutputRow)
    open_rows: list[OutputRow] = []
    for part in parts:
        final = bisect_left(open_rows, part.first, key=_INDEX)
        yield from _unique(open_rows[:final])
        del open_rows[:final]
        rows = _decode(folder, part, decoder)
        if open_rows:
            open_rows += rows
            open_rows.sort(key=_INDEX)
        else:
            open_rows = rows
    yield from _unique(open_rows)


def _unique(rows: list[OutputRow]) -> Iterator[OutputRow]:
    kept: OutputRow | None = None
    for row in rows:
        if kept is None:
            kept = row
        elif row.index != kept.index:
            yield kept
            kept = row
        elif kept.error is not None and row.error is None:
            kept = row
    if kept is not None:
        yield kept


def _decode[RowT](folder: Folder, part: Part, decoder: msgspec.json.Decoder[RowT]) -> list[RowT]:
    try:
        return decoder.decode_lines(folder.read_bytes(part.name))
    except msgspec.DecodeError as error:
        raise IncompleteResultsError(
            f"{folder.url}/{part.name} is damaged ({error}); delete that file and resume the task"
        ) from error
