"""When attempts at shards were at work, as the names of part files tell it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from mloc_dagster.results.part_files import Part


@dataclass(frozen=True, slots=True)
class Span:
    """The time of one attempt at a shard.

    Attributes:
        start_s: When it began, in seconds since 1970.
        stop_s: When its last row was on the store.
    """

    start_s: float
    stop_s: float

    @classmethod
    def between(cls, start: datetime, stop: datetime) -> Span:
        """Returns the span from one moment to another."""
        return cls(start.timestamp(), stop.timestamp())


def attempt_spans(parts: Iterable[Part]) -> list[Span]:
    """Returns the span of each attempt that left rows whose files say when."""
    stops: dict[tuple[int, int], int] = {}
    for part in parts:
        if part.span is not None:
            start, stop = part.span
            attempt = (part.shard, start)
            stops[attempt] = max(stop, stops.get(attempt, start))
    return [Span(start / 1000, stop / 1000) for (_, start), stop in stops.items()]


def covered_s(spans: Sequence[Span]) -> float:
    """Returns the seconds that lie in at least one span."""
    covered, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_s):
        covered += max(span.stop_s - max(span.start_s, until), 0.0)
        until = max(until, span.stop_s)
    return covered


def mean_at_once(spans: Sequence[Span]) -> float | None:
    """Returns how many spans there are at a time, on average, where there is any; None for none."""
    covered = covered_s(spans)
    if covered <= 0:
        return None
    return sum(span.stop_s - span.start_s for span in spans) / covered
