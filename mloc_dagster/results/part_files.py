"""Part files: which a task has, and their rows in order of index, each once, in bounded memory.

The plan lets rows change places within windows only, so one window's rows are all that is in
memory: encoded, and decoded one by one as they are handed on.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from typing import NoReturn
from zlib import crc32

import msgspec

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning import Shard
from mloc_dagster.results.record import read_plan
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

_PART = re.compile(
    r"shards/(\d{4,})/part-(\d+)-(\d+)-(?:(\d+)-(\d{13})-(\d{13})-)?[0-9a-z-]+?(?:-c([0-9a-f]{8}))?\.jsonl"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part file, as its name describes it.

    Attributes:
        shard: Index of its shard.
        first: Place of its first row.
        last: Place of its last row.
        name: Its name below the task's folder.
        attempt: The shard's attempt that wrote it; 0 when its name does not say.
        span: When the attempt that wrote it began, and when it was written; in milliseconds since
            1970. None when its name does not say.
        crc32: Checksum of its bytes; None when its name does not say.
    """

    shard: int
    first: int
    last: int
    name: str
    attempt: int = 0
    span: tuple[int, int] | None = None
    crc32: int | None = None


def part_name(
    shard: Shard,
    first: int,
    last: int,
    attempt: int,
    unique: str,
    span: tuple[int, int] | None,
    data: bytes,
) -> str:
    """Returns the name of a part file; see `Part`."""
    times = "" if span is None else f"{span[0]:013d}-{span[1]:013d}-"
    where = f"shards/{shard.key}/part-{first:012d}-{last:012d}"
    return f"{where}-{attempt:02d}-{times}{unique}-c{crc32(data):08x}.jsonl"


def list_parts(folder: Folder, shard: Shard | None = None) -> list[Part]:
    """Returns the part files of a task, or of one shard, by shard, first place and name."""
    below = "shards" if shard is None else f"shards/{shard.key}"
    matches = (_PART.fullmatch(name) for name in folder.list(below, recursive=True))
    parts = [_part(match) for match in matches if match]
    return sorted(parts, key=lambda part: (part.shard, part.first, part.name))


def _part(match: re.Match[str]) -> Part:
    span = None if match[4] is None else (int(match[5]), int(match[6]))
    checksum = None if match[7] is None else int(match[7], 16)
    places = int(match[1]), int(match[2]), int(match[3])
    return Part(*places, match[0], int(match[4] or 0), span, checksum)


def read_part(folder: Folder, part: Part) -> bytes:
    """Returns the content of a part file.

    Raises:
        DamagedFileError: If it is not what was written.
    """
    data = folder.read_bytes(part.name)
    if part.crc32 is not None and crc32(data) != part.crc32:
        refuse_damaged(folder, part, "its checksum is another one")
    return data


def decode_part[RowT](
    folder: Folder, part: Part, decoder: msgspec.json.Decoder[RowT]
) -> list[RowT]:
    """Returns the rows of a part file.

    Raises:
        DamagedFileError: If it is not what was written.
    """
    try:
        return decoder.decode_lines(read_part(folder, part))
    except msgspec.DecodeError as error:
        refuse_damaged(folder, part, error)


def part_rows(folder: Folder, part: Part) -> list[OutputRow]:
    """Returns the rows of one part file, as they were written.

    Raises:
        DamagedFileError: If it is not what was written.
    """
    return decode_part(folder, part, msgspec.json.Decoder(OutputRow))


def refuse_damaged(folder: Folder, part: Part, reason: object) -> NoReturn:
    """Says which part file is damaged, and what helps.

    Raises:
        DamagedFileError: Always.
    """
    raise DamagedFileError(
        f"{folder.url}/{part.name} is damaged ({reason}); resume the task, which computes its "
        "rows again"
    )


class Mark(msgspec.Struct):
    """What tells which row a line is, and if it counts.

    Attributes:
        index: The input's place in the whole input.
        place: Its place in the plan's order; -1 when that is its index.
        error: Why it has no output.
    """

    index: int
    place: int = -1
    error: str | None = None


def place_of(row: Mark | OutputRow) -> int:
    """Returns the row's place in the plan's order."""
    return row.place if row.place >= 0 else row.index


def read_windows(folder: Folder) -> Sequence[int]:
    """Returns the first index of each window; none when rows are in input order.

    Raises:
        DamagedFileError: If the plan is not what was written.
    """
    plan = read_plan(folder)
    return () if plan is None else plan.windows


def restored_rows(
    folder: Folder, parts: Sequence[Part], windows: Sequence[int], start: int, stop: int | None
) -> Iterator[OutputRow]:
    """Yields rows in order of index, each index once, reading one window at a time.

    Args:
        folder: The task's folder.
        parts: Its part files, by shard, first place and name.
        windows: The first index of each window.
        start: First index to read.
        stop: The index to stop before; all rows when None.

    Raises:
        DamagedFileError: If a part file is not what was written.
    """
    decode = msgspec.json.Decoder(OutputRow).decode
    for first, after in pairwise([*windows, None]):
        assert first is not None  # noqa: S101 - only the last bound is None
        if stop is not None and first >= stop:
            return
        if after is not None and after <= start:
            continue
        of_window = [p for p in parts if p.last >= first and (after is None or p.first < after)]
        lines = _window_lines(folder, of_window, max(start, first), _least(after, stop))
        for index in sorted(lines):
            part, line, _ = lines.pop(index)
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                refuse_damaged(folder, part, error)


def _window_lines(
    folder: Folder, parts: Sequence[Part], start: int, stop: int | None
) -> dict[int, tuple[Part, bytes, bool]]:
    # As everywhere: of equal indexes the first without an error, else the first.
    decode = msgspec.json.Decoder(Mark).decode
    lines: dict[int, tuple[Part, bytes, bool]] = {}
    for part in parts:
        for line in read_part(folder, part).splitlines():
            try:
                mark = decode(line)
            except msgspec.DecodeError as error:
                refuse_damaged(folder, part, error)
            if mark.index < start or (stop is not None and mark.index >= stop):
                continue
            held = lines.get(mark.index)
            if held is None or (held[2] and mark.error is None):
                lines[mark.index] = (part, line, mark.error is not None)
    return lines


def _least(one: int | None, other: int | None) -> int | None:
    bounds = [bound for bound in (one, other) if bound is not None]
    return min(bounds) if bounds else None


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
