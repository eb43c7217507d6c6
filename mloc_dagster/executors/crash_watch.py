"""Finding the rows that kill the whole process, from the deaths of workers.

Before the engine gets rows, a note on the store names them; an orderly end removes it. An attempt
that finds the note of a dead one computes those rows first, one at a time. A row that two workers
died with while it was alone in their hands ends with an error, and the shard goes on. One death
is not enough: workers are also killed for reasons of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from types import TracebackType
from typing import Self

import msgspec

from mloc_dagster.executors.base import ShardContext
from mloc_dagster.planning import Shard
from mloc_dagster.results import (
    Folder,
    InFlight,
    InputRow,
    OutputRow,
    ServerFault,
    delete_in_flight,
    failed_row,
    read_in_flight,
    write_in_flight,
)

DEADLY = ServerFault("the worker died twice while it computed this row alone")
DEATHS_ALONE = 2
NOTE_EVERY_S = 0.5
FEWEST_AHEAD = 16
MOST_AHEAD = 4096

Placed = tuple[int, InputRow]
Run = tuple[Iterator[InputRow], int, ShardContext]
"""Rows, how many, and the context to compute them in."""


class CrashWatch(AbstractContextManager["CrashWatch"]):
    """Keeps the note while a shard runs.

    A note names a few more rows than the engine has: about as many as it takes in half a second,
    so that a fast engine does not wait for the store. It never names fewer.

    Args:
        folder: The task's folder.
        shard: The shard.
        log: Takes a line when a note of a dead worker is there.
    """

    def __init__(self, folder: Folder, shard: Shard, log: Callable[[str], None]) -> None:
        self._folder = folder
        self._shard = shard
        self._log = log
        self._suspects: set[int] = set()
        self._deaths: dict[int, int] = {}
        self._convicted: set[str] = set()
        self._drawn: set[int] = set()
        self._noted: set[int] = set()
        self._noted_at = 0.0
        self._ahead = FEWEST_AHEAD
        self._written = False

    def __enter__(self) -> Self:
        left = read_in_flight(self._folder, self._shard)
        if left is None:
            return self
        self._suspects = {*left.rows, *left.suspects}
        self._deaths = dict(left.deaths)
        self._convicted = set(left.convicted)
        if len(left.rows) == 1:
            self._deaths[left.rows[0]] = self._deaths.get(left.rows[0], 0) + 1
        if self._suspects:
            self._log(
                f"a worker died with {len(left.rows)} rows in its hands: "
                f"{len(self._suspects)} rows are computed one at a time"
            )
        # What dies from here on, in loading the model say, is no fault of these rows.
        self._write(set(), self._suspects)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._convicted:
            self._write(set(), set())
        elif self._written:
            delete_in_flight(self._folder, self._shard)

    def runs(
        self,
        read: Callable[[], Iterable[Placed]],
        hand_out: Callable[[Iterable[Placed]], Iterator[InputRow]],
        count: int,
        context: ShardContext,
    ) -> Iterator[Run]:
        """Yields what to compute in turn: each suspect alone, then all other rows.

        Args:
            read: Reads the missing rows, with their places.
            hand_out: Passes rows on to whoever keeps account of their places.
            count: How many rows are missing.
            context: The shard's; each run gets one that keeps the note.
        """
        suspects = self._suspects
        rows = [pair for pair in read() if pair[1].index in suspects] if suspects else []
        waiting = {row.index for _, row in rows}
        for pair in rows:
            (row,) = hand_out([pair])
            waiting.discard(row.index)
            if self._is_guilty(row):
                context.emit(failed_row(row, DEADLY))
            else:
                self._write({row.index}, waiting)
                yield iter([row]), 1, replace(context, log=_nowhere)
        self._suspects = set()
        others = (pair for pair in read() if pair[1].index not in suspects)
        context = replace(context, emit=self._forgetting(context.emit), started=self._started)
        yield self._watched(hand_out(others), context.emit), count - len(rows), context

    def _watched(
        self, rows: Iterator[InputRow], emit: Callable[[OutputRow], None]
    ) -> Iterator[InputRow]:
        while chunk := list(islice(rows, self._ahead)):
            soon = time.monotonic() - self._noted_at < NOTE_EVERY_S
            self._ahead = (
                min(2 * self._ahead, MOST_AHEAD) if soon else max(self._ahead // 2, FEWEST_AHEAD)
            )
            self._drawn.update(row.index for row in chunk)
            self._write(self._drawn, set())
            for row in chunk:
                if self._convicted and self._is_guilty(row):
                    emit(failed_row(row, DEADLY))
                else:
                    yield row

    def _started(self, indexes: Sequence[int]) -> None:
        """Hears from an engine which of the rows that it drew it computes now."""
        batch = set(indexes)
        rested = time.monotonic() - self._noted_at >= NOTE_EVERY_S
        if not batch <= self._noted:
            self._write(batch if rested else self._drawn | batch, set())
        elif rested and len(self._noted) > 2 * len(batch):
            self._write(batch, set())

    def _forgetting(self, emit: Callable[[OutputRow], None]) -> Callable[[OutputRow], None]:
        drawn = self._drawn

        def emit_and_forget(row: OutputRow) -> None:
            emit(row)
            drawn.discard(row.index)

        return emit_and_forget

    def _is_guilty(self, row: InputRow) -> bool:
        if self._deaths.get(row.index, 0) >= DEATHS_ALONE:
            self._convicted.add(_digest(row))
            return True
        return _digest(row) in self._convicted

    def _write(self, rows: set[int], suspects: set[int]) -> None:
        note = InFlight(
            sorted(rows), sorted(suspects - rows), self._deaths, sorted(self._convicted)
        )
        write_in_flight(self._folder, self._shard, note)
        self._noted = set(rows)
        self._noted_at = time.monotonic()
        self._written = True


class NoWatch(AbstractContextManager["NoWatch"]):
    """Stands in for the watch where no model runs."""

    def __exit__(self, *_: object) -> None:
        """Ends nothing."""

    def runs(
        self,
        read: Callable[[], Iterable[Placed]],
        hand_out: Callable[[Iterable[Placed]], Iterator[InputRow]],
        count: int,
        context: ShardContext,
    ) -> Iterator[Run]:
        """Yields all rows at once."""
        yield hand_out(read()), count, context


def _digest(row: InputRow) -> str:
    """Tells rows apart by what the model gets: an equal row kills as well."""
    same = msgspec.structs.replace(row, index=0, custom_id=None)
    return blake2b(msgspec.json.encode(same), digest_size=16).hexdigest()


def _nowhere(_: str) -> None:
    """Takes the log of a row that runs alone, which would say the same each time."""
