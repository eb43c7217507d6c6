"""What the run's log hears of a shard at work."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mloc_dagster.events import Payload
from mloc_dagster.ops.progress import ProgressNotes
from mloc_dagster.planning import Shard

SHARD = Shard(task_id="t", index=0, total=1, start=0, stop=100)
BATCH = Payload(rows=10, tokens=40, prompt_tokens=20, cached_tokens=5)


class Listener:
    """A clock that is set by hand, and what was said."""

    def __init__(self, interval_s: float, due_s: float | None = None) -> None:
        self.now = 100.0
        self.heard: list[Mapping[str, int | float]] = []
        self.lines: list[str] = []
        self.notes = ProgressNotes(
            SHARD, self._hear, interval_s=interval_s, due_s=due_s, clock=lambda: self.now
        )

    def _hear(self, line: str, figures: Mapping[str, int | float]) -> None:
        self.lines.append(line)
        self.heard.append(figures)

    def add(self, payload: Payload, after_s: float) -> float | None:
        self.now += after_s
        return self.notes.add(payload)


def test_a_short_shard_says_nothing() -> None:
    listener = Listener(interval_s=10)
    for _ in range(5):
        listener.add(BATCH, after_s=1.9)
    assert listener.heard == []


def test_without_an_interval_each_sum_is_told() -> None:
    listener = Listener(interval_s=0)
    for _ in range(3):
        listener.add(BATCH, after_s=1)
    assert [each["rows"] for each in listener.heard] == [10, 20, 30]


def test_a_long_shard_is_heard_of_once_in_the_interval() -> None:
    listener = Listener(interval_s=10)
    for _ in range(100):
        listener.add(Payload(rows=1), after_s=0.5)
    assert [each["rows"] for each in listener.heard] == [20, 40, 60, 80, 100]


def test_a_note_has_speeds_savings_and_the_time_left() -> None:
    listener = Listener(interval_s=10)
    listener.notes.resumed(30)
    listener.add(BATCH, after_s=60)  # the model was loading: no speed is known yet
    listener.add(BATCH, after_s=5)
    listener.add(Payload(rows=10, reused=10, errors=1), after_s=5)
    first, second = listener.heard
    assert first == {"rows": 40, "rows_total": 100, "cache_hit_rate": 0.25}
    assert second == {
        "rows": 60,
        "rows_total": 100,
        "rows_per_s": 2.0,
        "prompt_tokens_per_s": 2.0,
        "output_tokens_per_s": 4.0,
        "eta_s": 20.0,
        "cache_hit_rate": 0.25,
        "rows_reused": 10,
        "errors": 1,
    }
    assert listener.lines == ["40 of 100 rows", "60 of 100 rows, 2.0 rows/s, about 20 s left"]


def test_the_time_before_the_first_rows_makes_no_shard_slow() -> None:
    listener = Listener(interval_s=10)
    listener.add(BATCH, after_s=8)
    listener.add(BATCH, after_s=5)
    assert listener.heard[0]["rows_per_s"] == pytest.approx(2.0)


def test_a_shard_that_ends_after_its_slo_says_how_late() -> None:
    listener = Listener(interval_s=10, due_s=30)
    listener.add(BATCH, after_s=5)
    listener.add(BATCH, after_s=5)  # 2 rows a second: 80 rows take 40 s, and 20 s are left
    assert listener.heard[0]["slo_late_s"] == pytest.approx(20)
    assert listener.lines[0].endswith("about 40 s left, SLO at risk: about 20 s late")


def test_a_shard_in_time_says_nothing_of_its_slo() -> None:
    listener = Listener(interval_s=10, due_s=60)
    listener.add(BATCH, after_s=5)
    listener.add(BATCH, after_s=5)
    assert "slo_late_s" not in listener.heard[0]
    assert "SLO" not in listener.lines[0]


def test_each_sum_tells_the_time_left_as_soon_as_there_is_a_speed() -> None:
    listener = Listener(interval_s=10)
    assert listener.add(BATCH, after_s=3) is None
    assert listener.add(BATCH, after_s=5) == 40
    assert listener.add(BATCH, after_s=5) == 35
    assert listener.add(BATCH, after_s=5) == 30, "right after a note, too"
    assert listener.add(Payload(rows=1), after_s=0.2) == pytest.approx(59 / 11 * 5.2, abs=1e-3)


def test_a_moment_tells_no_speed() -> None:
    listener = Listener(interval_s=10)
    assert listener.add(BATCH, after_s=9.6) is None
    assert listener.add(BATCH, after_s=0.2) is None
    assert listener.add(BATCH, after_s=0.25) is None
    assert listener.heard == [{"rows": 30, "rows_total": 100, "cache_hit_rate": 0.25}]
    assert listener.add(BATCH, after_s=0.15) == 1.2, "30 rows in 0.6 s since the first ones"


def test_a_note_has_what_the_task_type_counts() -> None:
    listener = Listener(interval_s=10)
    listener.add(Payload(counts={"turns": 7, "failed_calls": 0}), after_s=1)
    listener.add(Payload(rows=10), after_s=9)
    assert listener.lines == ["10 of 100 rows, 7 turns, 1.1 rows/s, about 81 s left"]
    assert listener.heard[0]["turns"] == 7
