"""Putting rows that were computed in planned order back in input order.

The plan lets rows change places within windows only, so one window's rows are all that is in
memory: encoded, and decoded one by one as they are handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from mloc_dagster.results.part_list import Part, read_part, refuse_damaged
from mloc_dagster.results.plan_file import read_plan
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder


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
