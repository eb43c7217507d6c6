"""Latencies of any number of rows in a few hundred counters."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

# From 0.1 ms to 10,000 s; a bucket is 12 % wide, which bounds the percentiles' error.
_PER_DECADE = 20
_LOWEST_POWER = -4
_BUCKETS = 8 * _PER_DECADE


class Latencies(BaseModel):
    """How long rows took, in seconds.

    Attributes:
        min: The fastest.
        mean: On average.
        p50: Half of them took at most this; percentiles are exact to 12 %.
        p90: Nine in ten.
        p95: 19 in 20.
        p99: 99 in 100.
        max: The slowest.
        edges_s: Edges of the histogram, one more than `counts`; evenly spaced on a log scale.
        counts: Rows between two neighbouring edges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    edges_s: tuple[float, ...]
    counts: tuple[int, ...]


class LatencyCounter:
    """Counts latencies into buckets that are fixed beforehand."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._rows = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0

    def add(self, latency_s: float) -> None:
        """Counts one row."""
        bucket = 0
        if latency_s > 0:
            bucket = int((math.log10(latency_s) - _LOWEST_POWER) * _PER_DECADE)
            bucket = max(0, min(_BUCKETS - 1, bucket))
        self._counts[bucket] += 1
        self._rows += 1
        self._sum += latency_s
        self._min = min(self._min, latency_s)
        self._max = max(self._max, latency_s)

    def result(self) -> Latencies:
        """Returns what was counted, the histogram without empty buckets at its ends."""
        filled = [place for place, count in enumerate(self._counts) if count] or [0]
        first, last = filled[0], filled[-1]
        return Latencies(
            min=self._min if self._rows else 0.0,
            mean=self._sum / self._rows if self._rows else 0.0,
            p50=self._percentile(0.50),
            p90=self._percentile(0.90),
            p95=self._percentile(0.95),
            p99=self._percentile(0.99),
            max=self._max,
            edges_s=tuple(_edge(place) for place in range(first, last + 2)),
            counts=tuple(self._counts[first : last + 1]),
        )

    def _percentile(self, share: float) -> float:
        wanted = math.ceil(share * self._rows)
        seen = 0
        for place, count in enumerate(self._counts):
            seen += count
            if seen >= wanted and count:
                return min(max(_edge(place + 1), self._min), self._max)
        return 0.0


def _edge(place: int) -> float:
    return float(f"{10 ** (_LOWEST_POWER + place / _PER_DECADE):.4g}")
