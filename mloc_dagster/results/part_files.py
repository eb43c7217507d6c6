"""Reading the rows that shards wrote, in order of index, each index once, in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import attrgetter

import msgspec

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.input_order import Mark, place_of, read_windows, restored_rows
from mloc_dagster.results.part_list import Part, decode_part, list_parts
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

__all__ = ["FinishedRows", "Part", "finished_rows", "list_parts", "read_rows", "read_shard"]


class FinishedRows:
    """The places of a shard that have a row: a byte each.

    Attributes:
        start: First place of the shard.
        stop: The place after its last.
        count: How many have a row.
        attempts: The latest attempt that left a row; 0 without any.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.count = 0
        self.attempts = 0
        self._finished = bytearray(stop - start)

    def __contains__(self, place: int) -> bool:
        return self.start <= place < self.stop and self._finished[place - self.start] == 1

    def __len__(self) -> int:
        return self.count

    def add(self, place: int) -> None:
        """Marks a place as finished; one outside the shard is none of its business."""
        if self.start <= place < self.stop and not self._finished[place - self.start]:
            self._finished[place - self.start] = 1
            self.count += 1

    def missing(self) -> Iterator[int]:
        """Yields the places without a row, in order."""
        offset = self._finished.find(0)
        while offset >= 0:
            yield self.start + offset
            offset = self._finished.find(0, offset + 1)


_Key = Callable[[OutputRow], int]
_INDEX: _Key = attrgetter("index")


def finished_rows(
    folder: Folder,
    shard: Shard,
    *,
    retry_errors: bool = False,
    on_damaged: Callable[[Part, DamagedFileError], None] | None = None,
) -> FinishedRows:
    """Finds out which rows of a shard are there already.

    Args:
        folder: The task's folder.
        shard: The shard.
        retry_errors: Whether a row with an error counts as missing.
        on_damaged: Hears of each part file that is not what was written; its rows are missing.
    """
    finished = FinishedRows(shard.start, shard.stop)
    decoder = msgspec.json.Decoder(Mark)
    for part in list_parts(folder, shard):
        finished.attempts = max(finished.attempts, part.attempt)
        try:
            marks = decode_part(folder, part, decoder)
        except DamagedFileError as error:
            if on_damaged is not None:
                on_damaged(part, error)
            continue
        for mark in marks:
            if mark.error is None or not retry_errors:
                finished.add(place_of(mark))
    return finished


def read_shard(folder: Folder, shard: Shard) -> Iterator[OutputRow]:
    """Yields the rows of a shard in order of place; else as `read_rows`."""
    parts = list_parts(folder, shard)
    key = place_of if read_windows(folder) else _INDEX
    return _clip(_merge(folder, parts, key), key, shard.start, shard.stop)


def read_rows(folder: Folder, start: int = 0, stop: int | None = None) -> Iterator[OutputRow]:
    """Yields a task's rows in order of index, each index once.

    Of several rows with one index (a shard was tried twice) the first without an error counts, in
    order of part names; the first of all when each has one. Missing rows are simply not there.
    Where the plan put rows in an order of its own, one of its windows is in memory at a time.

    Args:
        folder: The task's folder.
        start: First index to read.
        stop: The index to stop before; all rows by default.

    Raises:
        DamagedFileError: If a part file is not what was written.
    """
    windows = read_windows(folder)
    if windows:
        yield from restored_rows(folder, list_parts(folder), windows, start, stop)
        return
    parts = [
        part
        for part in list_parts(folder)
        if part.last >= start and (stop is None or part.first < stop)
    ]
    for _, of_shard in groupby(parts, key=attrgetter("shard")):
        yield from _clip(_merge(folder, of_shard, _INDEX), _INDEX, start, stop)


def _clip(
    rows: Iterator[OutputRow], key: _Key, start: int, stop: int | None
) -> Iterator[OutputRow]:
    for row in rows:
        place = key(row)
        if stop is not None and place >= stop:
            return
        if place >= start:
            yield row


def _merge(folder: Folder, parts: Iterable[Part], key: _Key) -> Iterator[OutputRow]:
    """Merges parts that come in order of first place.

    All rows below the next part's first place are final. What is left over stays sorted, so
    that sorting it with the next part's rows is one merge of two runs; the sort is stable, so
    equal places stay in order of part names.
    """
    decoder = msgspec.json.Decoder(OutputRow)
    open_rows: list[OutputRow] = []
    for part in parts:
        final = bisect_left(open_rows, part.first, key=key)
        yield from _unique(open_rows[:final])
        del open_rows[:final]
        rows = decode_part(folder, part, decoder)
        if open_rows:
            open_rows += rows
            open_rows.sort(key=key)
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
