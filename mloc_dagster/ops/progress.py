"""Progress of a running shard: events a few times a second, notes in the run's log."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple

from mloc_dagster.events import Payload, TaskEvent, TaskEventType, publish
from mloc_dagster.planning import Shard
from mloc_dagster.results import OutputRow

Say = Callable[[str, Mapping[str, int | float]], None]

SETTLED_S = 0.5
"""A shorter time tells no speed: whether a batch has just ended in it or not is chance."""


class _Mark(NamedTuple):
    at: float
    sum: Payload


class ProgressNotes:
    """Sums up what a shard has done, and says it at most once in an interval.

    Speeds are those since the note before; of the first one, since the first rows were there, so
    that the time in which a model loads does not count. None rests on less than half a second.

    Args:
        shard: The shard.
        say: Takes a line for people, and figures by name; what is not known is left out.
        interval_s: Seconds between notes, and before the first one.
        due_s: Seconds that the task's SLO leaves from now on, negative when it is missed already;
            None without an SLO.
        clock: Tells the seconds that have passed since some moment.
    """

    def __init__(
        self,
        shard: Shard,
        say: Say,
        *,
        interval_s: float,
        due_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self._say = say
        self._interval_s = interval_s
        self._clock = clock
        self._said_at = clock()
        self._due = None if due_s is None else self._said_at + due_s
        self._mark: _Mark | None = None
        self._mark_before: _Mark | None = None
        self._resumed = 0
        self._sum = Payload()

    def resumed(self, rows: int) -> None:
        """Takes how many rows earlier attempts had finished."""
        self._resumed = rows

    def add(self, payload: Payload) -> float | None:
        """Counts what was done since the last call; returns the seconds left, where known."""
        now = self._clock()
        self._sum = _plus(self._sum, payload)
        eta_s = self._eta_s(now)
        if now - self._said_at >= self._interval_s:
            figures = self._figures(now)
            self._say(_in_words(figures, self._sum.counts), figures)
            self._said_at = now
            if self._is_settled(now):
                self._mark_before, self._mark = self._mark, _Mark(now, self._sum)
        if self._mark is None:
            self._mark = _Mark(now, self._sum)
        return None if eta_s is None else round(eta_s, 3)

    def _base(self, now: float) -> _Mark | None:
        """Returns since when speeds are; None while they would rest on too short a time."""
        return self._mark if self._is_settled(now) else self._mark_before

    def _is_settled(self, now: float) -> bool:
        return self._mark is not None and now - self._mark.at >= SETTLED_S

    def _eta_s(self, now: float) -> float | None:
        base = self._base(now)
        if base is None or self._sum.rows <= base.sum.rows:
            return None
        left = max(self._shard.rows - self._resumed - self._sum.rows, 0)
        return left / (self._sum.rows - base.sum.rows) * (now - base.at)

    def _slo_figures(self, now: float, eta_s: float | None) -> dict[str, int | float]:
        """Returns how late the task will be at least: a shard's end is not yet that of its task."""
        if self._due is None:
            return {}
        late_s = now + (eta_s or 0.0) - self._due
        return {"slo_late_s": late_s} if late_s > 0 else {}

    def _figures(self, now: float) -> dict[str, int | float]:
        total = self._sum
        done = self._resumed + total.rows
        figures: dict[str, int | float] = {"rows": done, "rows_total": self._shard.rows}
        base = self._base(now)
        if base is not None:
            since, seconds = base.sum, now - base.at
            figures |= {
                "rows_per_s": (total.rows - since.rows) / seconds,
                "prompt_tokens_per_s": (total.prompt_tokens - since.prompt_tokens) / seconds,
                "output_tokens_per_s": (total.tokens - since.tokens) / seconds,
            }
        eta_s = self._eta_s(now)
        figures |= {} if eta_s is None else {"eta_s": eta_s}
        figures |= self._slo_figures(now, eta_s)
        if total.cached_tokens:
            figures["cache_hit_rate"] = total.cached_tokens / total.prompt_tokens
        figures |= {"rows_reused": total.reused} if total.reused else {}
        figures |= {"errors": total.errors} if total.errors else {}
        figures |= total.counts
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in figures.items()
        }


def _plus(one: Payload, other: Payload) -> Payload:
    return Payload(
        rows=one.rows + other.rows,
        tokens=one.tokens + other.tokens,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        reused=one.reused + other.reused,
        errors=one.errors + other.errors,
        counts=other.counts or one.counts,  # they are sums already
    )


def _in_words(figures: Mapping[str, int | float], counts: Mapping[str, int]) -> str:
    parts = [f"{figures['rows']:,} of {figures['rows_total']:,} rows"]
    parts += [f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items() if number]
    if "rows_per_s" in figures:
        parts.append(f"{figures['rows_per_s']:.1f} rows/s")
    if "eta_s" in figures:
        parts.append(f"about {figures['eta_s']:.0f} s left")
    if "slo_late_s" in figures:
        parts.append(f"SLO at risk: about {figures['slo_late_s']:.0f} s late")
    return ", ".join(parts)


INTERVAL_S = 0.2
_NOTHING: Mapping[str, int] = {}


class ProgressBatches:
    """Adds up finished rows and publishes the sum as TASK_PROGRESS; safe to use from threads.

    Rows that end together are told of together: a listener that hears of the first one alone, after
    a pause, would take it for all that was done in that time. Tokens of reused rows are in no sum:
    no model read or wrote them.

    Args:
        about: An event of the shard, whose task, run and place are taken over.
        also: Called with each sum, too; returns the seconds until the shard's last row, if known.
        clock: Tells the seconds that have passed since some moment.
    """

    def __init__(
        self,
        about: TaskEvent,
        also: Callable[[Payload], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._about = about
        self._also = also
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting_since = self._published_at = clock()
        self._counts = self._told_counts = _NOTHING
        self._clear()

    def _clear(self) -> None:
        self._rows = self._tokens = self._errors = 0
        self._prompt_tokens = self._cached_tokens = self._reused = 0

    def resumed(self, rows: int) -> None:
        """Publishes how many rows earlier attempts had finished, before the first row."""
        if rows:
            self._send(Payload(resumed=rows))

    def add(self, row: OutputRow) -> None:
        """Counts one finished row."""
        with self._lock:
            if not self._rows:
                self._waiting_since = self._clock()
            self._rows += 1
            self._errors += row.error is not None
            if row.reused:
                self._reused += 1
            else:
                self._tokens += row.completion_tokens
                self._prompt_tokens += row.prompt_tokens
                self._cached_tokens += row.cached_tokens
            if self._clock() - self._waiting_since >= INTERVAL_S:
                self._publish()

    def count(self, counts: Mapping[str, int]) -> None:
        """Takes what has happened in the shard; it is published with the next look or row.

        It never waits: whoever counts may be the loop on which all rows go on.
        """
        self._counts = counts

    def look(self) -> None:
        """Publishes what waits, unless there was a sum a moment ago.

        To be called now and then, between two batches above all: the rows of one are known as soon
        as it has ended, and not with the next one's.
        """
        with self._lock:
            waits = self._rows or self._counts is not self._told_counts
            if waits and self._clock() - self._published_at >= INTERVAL_S:
                self._publish()

    def _publish(self) -> None:
        counts = self._counts
        payload = Payload(
            rows=self._rows,
            tokens=self._tokens,
            errors=self._errors,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            reused=self._reused,
            counts={} if counts is self._told_counts else dict(counts),
        )
        eta_s = None if self._also is None else self._also(payload)
        self._send(payload.model_copy(update={"eta_s": eta_s}))
        self._published_at = self._clock()
        self._told_counts = counts
        self._clear()

    def _send(self, payload: Payload) -> None:
        update = {
            "type": TaskEventType.TASK_PROGRESS,
            "payload": payload,
            "ts": datetime.now(UTC),
        }
        publish(self._about.model_copy(update=update))

    def __enter__(self) -> "ProgressBatches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._rows or self._counts is not self._told_counts:
                self._publish()
