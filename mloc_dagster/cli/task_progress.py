"""Adding up events: how far a task is, and how fast."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from mloc_dagster.cli.wording import count, duration, rate
from mloc_dagster.events.model import TaskEvent, TaskEventType

WINDOW_S = 20.0
"""Speeds are those of the last seconds: a model that loads first does not spoil the estimate."""


@dataclass(slots=True)
class _Shard:
    rows: int = 0
    rows_this_attempt: int = 0


class TaskProgress:
    """The state of one task, as its events tell it.

    Args:
        node: The stage or node, for people.
        now: A clock.

    Attributes:
        total_rows: Rows of the input; 0 until it is known.
        tokens: Tokens written in this run.
        errors: Rows of this run that ended with an error.
        shards_done: Shards that are complete.
        total_shards: Shards of the task; 0 until the first one starts.
        failed_attempts: Attempts at shards that failed.
        succeeded: Whether everything of the task is done.
    """

    def __init__(self, node: str, now: Callable[[], float] = monotonic) -> None:
        self.node = node
        self.total_rows = self.tokens = self.errors = 0
        self.shards_done = self.total_shards = self.failed_attempts = 0
        self.succeeded = False
        self._now = now
        self._shards: dict[int, _Shard] = {}
        self._rows_done = self._rows_computed = 0
        self._marks: deque[tuple[float, int, int]] = deque()

    @property
    def rows_done(self) -> int:
        """Rows that are there, those of earlier runs included."""
        return self._rows_done

    @property
    def finishing(self) -> bool:
        """Whether all rows are there and the result files are being written."""
        return not self.succeeded and 0 < self.total_shards == self.shards_done

    def take(self, event: TaskEvent) -> None:
        """Counts one event of this task."""
        match event.type:
            case TaskEventType.TASK_STARTED:
                self.total_rows = event.payload.rows
                self._mark()
            case TaskEventType.TASK_SUCCEEDED:
                self.succeeded = True
                self._rows_done = self.total_rows
            case _ if event.shard is not None:
                self.total_shards = event.shard.total
                shard = self._shards.setdefault(event.shard.index, _Shard())
                self._take_of_shard(event, shard)

    def _take_of_shard(self, event: TaskEvent, shard: _Shard) -> None:
        match event.type:
            case TaskEventType.SHARD_STARTED:
                shard.rows_this_attempt = 0
                self._mark()
            case TaskEventType.TASK_PROGRESS:
                shard.rows_this_attempt += event.payload.rows
                self._set_rows(shard, shard.rows + event.payload.rows)
                self._rows_computed += event.payload.rows
                self.tokens += event.payload.tokens
                self.errors += event.payload.errors
                self._mark()
            case TaskEventType.SHARD_SUCCEEDED:
                # Only now it is known how many rows earlier attempts and runs had left.
                self._set_rows(shard, event.payload.rows + shard.rows_this_attempt)
                self.shards_done += 1
            case TaskEventType.SHARD_FAILED:
                self.failed_attempts += 1

    def _set_rows(self, shard: _Shard, rows: int) -> None:
        self._rows_done += rows - shard.rows
        shard.rows = rows

    def _mark(self) -> None:
        now = self._now()
        self._marks.append((now, self._rows_computed, self.tokens))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW_S:
            self._marks.popleft()

    def speeds(self) -> tuple[float, float]:
        """Returns rows and tokens a second, lately."""
        if not self._marks:
            return 0.0, 0.0
        since, rows, tokens = self._marks[0]
        seconds = max(self._now() - since, 1e-3)
        return (self._rows_computed - rows) / seconds, (self.tokens - tokens) / seconds

    def remaining_s(self) -> float | None:
        """Returns the estimated seconds until the last row; None while nothing is known."""
        rows_per_s, _ = self.speeds()
        if not rows_per_s or not self.total_rows:
            return None
        return max(self.total_rows - self._rows_done, 0) / rows_per_s

    def figures(self) -> str:
        """Returns the figures next to the bar: speeds, shards, errors, time left."""
        parts: list[str] = []
        rows_per_s, tokens_per_s = self.speeds()
        if self._rows_computed and not self.succeeded:
            parts += [f"{rate(rows_per_s)} rows/s", f"{rate(tokens_per_s)} tokens/s"]
        if self.total_shards:
            parts.append(f"{self.shards_done}/{self.total_shards} shards")
        if self.errors:
            parts.append(count(self.errors, "error"))
        if self.failed_attempts:
            parts.append(count(self.failed_attempts, "failed attempt"))
        parts += self._outlook()
        return " · ".join(parts)

    def _outlook(self) -> list[str]:
        if self.succeeded:
            return ["done"]
        if self.finishing:
            return ["writing results"]
        remaining = self.remaining_s()
        return [] if remaining is None else [f"{duration(remaining)} left"]
