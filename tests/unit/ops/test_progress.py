"""What listeners hear of a shard whose rows end in bursts."""

from __future__ import annotations

import pytest

from mloc_dagster.events import ShardPlace, TaskEvent, TaskEventType
from mloc_dagster.ops import progress
from mloc_dagster.ops.progress import INTERVAL_S, ProgressBatches
from mloc_dagster.results import OutputRow

ABOUT = TaskEvent(
    type=TaskEventType.SHARD_STARTED, task_id="t", run_id="r", shard=ShardPlace(index=0, total=1)
)


class Shard:
    """A shard at work, by a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.heard: list[TaskEvent] = []
        monkeypatch.setattr(progress, "publish", self.heard.append)
        self.batches = ProgressBatches(ABOUT, also=lambda _: 7.5, clock=lambda: self.now)

    def burst(self, rows: int) -> None:
        for index in range(rows):
            self.batches.add(OutputRow(index, "p", "o", completion_tokens=2))

    def rows(self) -> list[int]:
        return [event.payload.rows for event in self.heard]


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    return Shard(monkeypatch)


def test_a_burst_is_heard_of_as_one_and_before_the_next_row(shard: Shard) -> None:
    shard.now = 3.0
    shard.burst(32)
    assert shard.rows() == [], "its first row alone would look like all that 3 s were enough for"
    shard.batches.look()
    assert shard.rows() == [32]
    assert shard.heard[0].payload.tokens == 64
    shard.burst(4)
    shard.batches.look()
    assert shard.rows() == [32], "not more often than promised"
    shard.now += INTERVAL_S
    shard.batches.look()
    shard.now += INTERVAL_S
    shard.batches.look()
    assert shard.rows() == [32, 4]


def test_rows_are_heard_of_though_nobody_looks(shard: Shard) -> None:
    for _ in range(7):
        shard.now += INTERVAL_S * 0.6
        shard.burst(1)
    assert shard.rows() == [3, 3]
    with shard.batches:
        pass
    assert shard.rows() == [3, 3, 1]


def test_rows_of_earlier_attempts_are_told_before_the_first_row(shard: Shard) -> None:
    shard.batches.resumed(0)
    assert not shard.heard
    shard.batches.resumed(12)
    (event,) = shard.heard
    assert (event.payload.resumed, event.payload.rows) == (12, 0)


def test_progress_says_the_time_left(shard: Shard) -> None:
    with shard.batches:
        shard.burst(1)
    (event,) = shard.heard
    assert (event.type, event.payload.eta_s) == (TaskEventType.TASK_PROGRESS, 7.5)


def test_counts_are_told_though_no_row_has_ended(shard: Shard) -> None:
    shard.batches.count({"turns": 1})
    shard.batches.look()
    assert not shard.heard, "a moment ago nothing had happened"
    shard.batches.count({"turns": 2})
    shard.now += INTERVAL_S
    shard.batches.look()
    shard.now += INTERVAL_S
    shard.batches.look()
    assert [event.payload.counts for event in shard.heard] == [{"turns": 2}]
    shard.batches.count({"turns": 3})
    with shard.batches:
        pass
    assert shard.heard[-1].payload.counts == {"turns": 3}
