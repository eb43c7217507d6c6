"""What progress says is true, also after resumes and failed attempts."""

from __future__ import annotations

import pytest

from mloc_dagster.cli.task_progress import TaskProgress
from mloc_dagster.cli.wording import count, duration, rate, shorten
from mloc_dagster.events.model import ShardPlace, TaskEvent, TaskEventType
from mloc_dagster.events.payloads import Payload


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def task(clock: Clock) -> TaskProgress:
    return TaskProgress("draft", clock)


def event(kind: str, shard: int | None = None, attempt: int = 1, **numbers: int) -> TaskEvent:
    return TaskEvent(
        type=TaskEventType(kind),
        task_id="t",
        run_id="r",
        node="draft",
        attempt=attempt,
        shard=None if shard is None else ShardPlace(index=shard, total=2),
        payload=Payload(**numbers),
    )


def test_figures_show_speed_and_time_left(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=100))
    task.take(event("SHARD_STARTED", 0))
    clock.now += 2
    task.take(event("TASK_PROGRESS", 0, rows=20, tokens=400))
    assert task.rows_done == 20
    assert task.speeds() == (10.0, 200.0)
    assert task.figures() == "10.0 rows/s · 200 tokens/s · 0/2 shards · 8.0 s left"


def test_speed_is_that_of_the_last_seconds(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=10_000))
    clock.now += 300  # a model loads
    for _ in range(60):
        clock.now += 1
        task.take(event("TASK_PROGRESS", 0, rows=5))
    rows_per_s, _ = task.speeds()
    assert rows_per_s == pytest.approx(5, rel=0.1)


def test_rows_of_earlier_runs_count_as_done_and_not_as_speed(
    task: TaskProgress, clock: Clock
) -> None:
    task.take(event("TASK_STARTED", rows=100))
    task.take(event("SHARD_STARTED", 0))
    task.take(event("SHARD_SUCCEEDED", 0, rows=50))
    assert task.rows_done == 50
    task.take(event("SHARD_STARTED", 1))
    clock.now += 1
    task.take(event("TASK_PROGRESS", 1, rows=10))
    assert task.speeds()[0] == 10.0
    assert task.remaining_s() == 4.0


def test_a_retried_shard_counts_each_row_once(task: TaskProgress) -> None:
    task.take(event("TASK_STARTED", rows=20))
    task.take(event("SHARD_STARTED", 0))
    task.take(event("TASK_PROGRESS", 0, rows=6))
    task.take(event("SHARD_FAILED", 0))
    task.take(event("SHARD_STARTED", 0, attempt=2))
    task.take(event("TASK_PROGRESS", 0, attempt=2, rows=4))
    task.take(event("SHARD_SUCCEEDED", 0, attempt=2, rows=6))
    assert task.rows_done == 10
    assert "1 failed attempt" in task.figures()


def test_a_task_is_done_only_when_its_files_are_there(task: TaskProgress) -> None:
    task.take(event("TASK_STARTED", rows=4))
    for shard in range(2):
        task.take(event("SHARD_STARTED", shard))
        task.take(event("TASK_PROGRESS", shard, rows=2, errors=1))
        task.take(event("SHARD_SUCCEEDED", shard))
    assert task.figures().endswith("2/2 shards · 2 errors · writing results")
    task.take(event("TASK_SUCCEEDED", rows=4))
    assert task.figures() == "2/2 shards · 2 errors · done"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.99, "1:00"), (187, "3:07"), (3723, "1:02:03")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_and_texts() -> None:
    assert [rate(0.844), rate(31.24), rate(4096.2)] == ["0.84", "31.2", "4,096"]
    assert [count(1, "row"), count(1024, "row")] == ["1 row", "1,024 rows"]
    assert shorten("one\n two   three", 8) == "one two…"
