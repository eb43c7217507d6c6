"""The gate that rows pass on their way from a task executor to the store."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

import msgspec

from mloc_dagster.errors import TerminalError
from mloc_dagster.planning import Shard
from mloc_dagster.results import BUDGET_FAULT, InputRow, OutputRow

LOGGED_ERRORS = 20  # the rows carry all of them
NAMED_ROWS = 10


class RowGate:
    """Holds an executor to the protocol: each row of the shard exactly once; stamps and counts.

    Args:
        shard: The shard that is being computed.
        finished: Places that earlier attempts computed; their rows must not come again.
        planned: Whether rows are in an order of the plan's own, so that a row's place is known
            only from its input; see `watch`.
        task_type: Names the executor in errors.
        worker: Stamped on each row.
        attempt: Stamped on each row.
        log: Takes a line for the first errors.
    """

    def __init__(
        self,
        shard: Shard,
        finished: Container[int],
        *,
        planned: bool = False,
        task_type: str,
        worker: str,
        attempt: int,
        log: Callable[[str], None],
    ) -> None:
        self._shard = shard
        self._there = bytearray(place in finished for place in range(shard.start, shard.stop))
        # Places of the rows that were handed out and did not come back yet, by index.
        self._places: dict[int, int] | None = {} if planned else None
        self._task_type = task_type
        self._worker = worker
        self._attempt = attempt
        self._log = log
        self.computed = self.errors = self.prompt_tokens = self.completion_tokens = 0
        self.engine = ""

    def watch(self, rows: Iterable[tuple[int, InputRow]]) -> Iterator[InputRow]:
        """Passes on the shard's input, each row with its place, and keeps the places in mind."""
        places = self._places
        if places is None:
            return (row for _, row in rows)
        return _remember(rows, places)

    def emit_to(
        self,
        write: Callable[[OutputRow], None],
        on_rows: Callable[[OutputRow], None] | None,
        revision: str = "",
    ) -> Callable[[OutputRow], None]:
        """Returns the `emit` of a `ShardContext`.

        Args:
            write: Takes the stamped row to the store.
            on_rows: Hears of it afterwards.
            revision: Of the model; stamped on each row.
        """
        there, start, size, places = self._there, self._shard.start, self._shard.rows, self._places
        stamp, worker, attempt = msgspec.structs.replace, self._worker, self._attempt

        def emit(row: OutputRow) -> None:
            place = row.index if places is None else places.get(row.index, -1)
            offset = place - start
            if not 0 <= offset < size or there[offset]:
                raise TerminalError(self._refusal(row.index))
            if places is None:
                row = stamp(row, worker=worker, attempt=attempt, revision=revision)
            else:
                row = stamp(row, worker=worker, attempt=attempt, revision=revision, place=place)
            write(row)
            there[offset] = 1
            if places is not None:
                del places[row.index]
            self._count(row)
            if on_rows is not None:
                on_rows(row)

        return emit

    @property
    def complete(self) -> bool:
        """Whether each row of the shard is there."""
        return 0 not in self._there

    def places(self) -> Container[int]:
        """Returns the places of the rows that are there by now."""
        return _Places(self._shard.start, self._there)

    def check_complete(self) -> None:
        """Checks that every row of the shard is there.

        Raises:
            TerminalError: If the executor ended too early; names the first rows that lack.
        """
        if self.complete:
            return
        # Of a planned order, rows that were never drawn are known by their places alone.
        lacking = sorted(self._places or ()) or [
            self._shard.start + offset for offset, there in enumerate(self._there) if not there
        ]
        named = ", ".join(map(str, lacking[:NAMED_ROWS]))
        more = f" and {len(lacking) - NAMED_ROWS} more" if len(lacking) > NAMED_ROWS else ""
        raise TerminalError(
            f"the task executor {self._task_type!r} ended without row {named}{more} "
            f"of shard {self._shard.key}"
        )

    def _count(self, row: OutputRow) -> None:
        self.computed += 1
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.engine = row.engine or self.engine
        if row.error is not None:
            self.errors += 1
            if row.fault == BUDGET_FAULT:  # one reason for all of them, which the shard logs once
                return
            if self.errors <= LOGGED_ERRORS:
                self._log(f"row {row.index} ended with an error: {row.error}")

    def _refusal(self, index: int) -> str:
        shard = self._shard
        if self._places is not None:
            return (
                f"the task executor {self._task_type!r} gave row {index} to shard {shard.key}, "
                "a second time or without having got it"
            )
        what = (
            "a second time"
            if shard.start <= index < shard.stop
            else f"whose rows are {shard.start} to {shard.stop - 1}"
        )
        return (
            f"the task executor {self._task_type!r} gave row {index} to shard {shard.key}, {what}"
        )


class _Places(Container[int]):
    def __init__(self, start: int, there: bytearray) -> None:
        self._start = start
        self._there = there

    def __contains__(self, place: object) -> bool:
        return isinstance(place, int) and self._there[place - self._start] == 1


def _remember(rows: Iterable[tuple[int, InputRow]], places: dict[int, int]) -> Iterator[InputRow]:
    for place, row in rows:
        places[row.index] = place
        yield row
