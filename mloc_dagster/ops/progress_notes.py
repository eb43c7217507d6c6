"""How far a shard is, for the run's log: a note now and then, since each is a row in a database."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mloc_dagster.events.payloads import Payload
from mloc_dagster.planning.shards import Shard

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
            self._say(_in_words(figures), figures)
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
    )


def _in_words(figures: Mapping[str, int | float]) -> str:
    parts = [f"{figures['rows']:,} of {figures['rows_total']:,} rows"]
    if "rows_per_s" in figures:
        parts.append(f"{figures['rows_per_s']:.1f} rows/s")
    if "eta_s" in figures:
        parts.append(f"about {figures['eta_s']:.0f} s left")
    if "slo_late_s" in figures:
        parts.append(f"SLO at risk: about {figures['slo_late_s']:.0f} s late")
    return ", ".join(parts)
