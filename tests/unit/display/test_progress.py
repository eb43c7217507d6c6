"""What progress says is true, also after resumes and failed attempts."""

from __future__ import annotations

import io
import re
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from mloc_dagster.display.progress import BarsView, LinesView, Monitor
from mloc_dagster.display.tables import count, duration, rate, short_rate, shorten
from mloc_dagster.display.task_progress import Speeds, TaskProgress, task_figures
from mloc_dagster.events import Payload, ShardPlace, TaskEvent, TaskEventType, TrainingFigures


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


def event(kind: str, shard: int | None = None, attempt: int = 1, **numbers: Any) -> TaskEvent:
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
    task.take(event("TASK_PROGRESS", 0, rows=20, prompt_tokens=2000, tokens=400))
    assert task.rows_done == 20
    assert task.speeds() == Speeds(rows=10.0, prompt_tokens=1000.0, tokens=200.0)
    assert task_figures(task) == (
        "10.0 rows/s · 1,000 prompt + 200 output tokens/s · 0/2 shards · 8.0 s left"
    )


def test_what_a_task_type_counts_is_shown_beside(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=100))
    for shard in (0, 1):
        task.take(event("SHARD_STARTED", shard))
    counts = {"turns": 40, "tool_calls": 1, "failed_calls": 0}
    task.take(event("TASK_PROGRESS", 0, counts=counts))
    task.take(event("TASK_PROGRESS", 1, counts={"turns": 2}))
    assert task_figures(task) == "42 turns · 1 tool call · 0/2 shards", "before the first row"
    clock.now += 2
    task.take(event("TASK_PROGRESS", 0, rows=20, counts={**counts, "failed_calls": 3}))
    shown = task_figures(task)
    assert shown.startswith("10.0 rows/s"), "in 2 s, and not since the last word"
    assert "42 turns · 1 tool call · 3 failed calls" in shown


def test_speed_is_that_of_the_last_seconds(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=10_000))
    clock.now += 300  # a model loads
    for _ in range(60):
        clock.now += 1
        task.take(event("TASK_PROGRESS", 0, rows=5))
    assert task.speeds().rows == pytest.approx(5, rel=0.1)


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
    assert task.speeds().rows == 10.0
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
    assert "1 failed attempt" in task_figures(task)


def test_a_task_is_done_only_when_its_files_are_there(task: TaskProgress) -> None:
    task.take(event("TASK_STARTED", rows=4))
    for shard in range(2):
        task.take(event("SHARD_STARTED", shard))
        task.take(event("TASK_PROGRESS", shard, rows=2, errors=1))
        task.take(event("SHARD_SUCCEEDED", shard))
    assert task_figures(task).endswith("2/2 shards · 2 errors · writing results")
    task.take(event("TASK_SUCCEEDED", rows=4))
    assert task_figures(task) == "2/2 shards · 2 errors · done"


def test_the_time_a_model_takes_to_load_is_in_no_speed(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=1000))
    task.take(event("SHARD_STARTED", 0))
    clock.now += 10
    task.take(event("TASK_PROGRESS", 0, rows=4))
    assert task.speeds() == Speeds()
    assert task_figures(task) == "0/2 shards", "no speed, and no end in hours"
    for _ in range(3):
        clock.now += 0.5
        task.take(event("TASK_PROGRESS", 0, rows=20))
    assert task.speeds().rows == 40.0


def test_the_first_rows_behind_a_load_have_no_speed_however_many(
    task: TaskProgress, clock: Clock
) -> None:
    task.take(event("TASK_STARTED", rows=1319))
    task.take(event("SHARD_STARTED", 0))
    task.take(event("TASK_PROGRESS", 0, resumed=256))
    clock.now += 25  # the engine starts
    task.take(event("TASK_PROGRESS", 0, rows=40))
    assert task_figures(task) == "0/2 shards"
    clock.now += 0.5
    task.take(event("TASK_PROGRESS", 0, rows=20))
    assert task_figures(task) == "0/2 shards", "half a second tells nothing yet"
    clock.now += 0.5
    assert task.speeds().rows == 20.0, "without the 25 s, though no event has come since"
    assert task.remaining_s() == (1319 - 256 - 60) / 20


def test_rows_that_are_slow_themselves_have_a_speed(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=1000))
    task.take(event("SHARD_STARTED", 0))
    clock.now += 10
    task.take(event("TASK_PROGRESS", 0, rows=4))
    clock.now += 6
    assert task.speeds().rows == 0.25


def test_rows_that_were_there_count_from_the_start(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=100))
    task.take(event("SHARD_STARTED", 0))
    task.take(event("TASK_PROGRESS", 0, resumed=40))
    assert task.rows_done == 40
    clock.now += 1
    task.take(event("TASK_PROGRESS", 0, rows=10))
    assert (task.rows_done, task.rows_computed) == (50, 10)
    assert task.remaining_s() == 5.0
    task.take(event("SHARD_SUCCEEDED", 0, rows=40))
    assert task.rows_done == 50


def test_a_stall_is_seen_while_no_event_comes(task: TaskProgress, clock: Clock) -> None:
    task.take(event("TASK_STARTED", rows=1000))
    task.take(event("SHARD_STARTED", 0))
    clock.now += 1
    task.take(event("TASK_PROGRESS", 0, rows=50))
    clock.now += 9
    assert task.speeds().rows == 5.0


def promised(seconds: float, rows: int = 100) -> TaskEvent:
    """Returns the start of a task with an SLO."""
    start = event("TASK_STARTED")
    due = start.ts + timedelta(seconds=seconds)
    payload = Payload(rows=rows, slo_s=seconds, due=due)
    return start.model_copy(update={"payload": payload})


def test_the_slo_is_on_time_at_risk_or_missed(task: TaskProgress, clock: Clock) -> None:
    task.take(promised(60))
    assert task_figures(task) == ""
    clock.now += 8
    task.take(event("TASK_PROGRESS", 0, rows=20))
    clock.now += 2
    assert task_figures(task).endswith("40.0 s left · SLO 60 s: on time")
    clock.now += 10
    task.take(event("TASK_PROGRESS", 0))
    assert task_figures(task).endswith("1:20 left · SLO 60 s: at risk, about 40 s late")
    assert task_figures(task, 12) == "1:20 left"
    assert "SLO +40 s" in task_figures(task, 30)
    late = TaskProgress("late", clock)
    late.take(promised(5))
    clock.now += 6
    assert task_figures(late) == "SLO 5 s: at risk, about 1 s late", "also before the first row"


def everything(task: TaskProgress, clock: Clock) -> None:
    """Gives a task all figures that there are."""
    task.take(promised(60, rows=1319))
    task.take(event("SHARD_STARTED", 0))
    clock.now += 8
    numbers = {"tokens": 9300, "prompt_tokens": 98_000, "cached_tokens": 81_000}
    task.take(event("TASK_PROGRESS", 0, rows=128, errors=2, reused=40, **numbers))
    clock.now += 2
    task.take(event("SHARD_FAILED", 0))


@pytest.mark.parametrize("width", [None, 120, 80, 60, 40, 10])
def test_figures_fit_and_the_important_ones_stay(
    task: TaskProgress, clock: Clock, width: int | None
) -> None:
    everything(task, clock)
    line = task_figures(task, width)
    assert len(line) <= (width or 1000)
    assert "1:33 left" in line
    assert ("SLO" in line) == (width != 10)
    if width is None:
        assert line == (
            "12.8 rows/s · 9,800 prompt + 930 output tokens/s · 83% cache hits · 40 rows reused"
            " · 0/2 shards · 2 errors · 1 failed attempt · 1:33 left"
            " · SLO 60 s: at risk, about 43 s late"
        )
    elif width == 80:
        assert line == (
            "12.8/s · 9.8k+930 tok/s · 83% hits · 40 reused · 2 err · 1:33 left · SLO +43 s"
        )


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_has_one_line_for_a_task(task: TaskProgress, clock: Clock, columns: int) -> None:
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    view = BarsView(console)
    everything(task, clock)
    view.show(task, event("TASK_PROGRESS", 0))
    view.close()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [each for each in re.split(r"[\r\n]+", written) if "SLO" in each][-1:]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip()
    assert len(text) <= columns
    for said in (
        "draft",
        "128/1,319",
        "12.8/s",
        "9.8k+930 tok/s",
        "83% hits",
        "1:33 left",
        "SLO +43 s",
        *(["40 reused", "2 err"] if columns == 120 else []),
    ):
        assert said in text, text


def test_short_rates() -> None:
    values = (0.04, 9.96, 31.4, 999.6, 4096, 12_345, 1_250_000)
    assert [short_rate(each) for each in values] == [
        "0.0", "10", "31", "1.0k", "4.1k", "12k", "1.2M",
    ]  # fmt: skip


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


def test_a_training_shows_its_steps_and_figures(task: TaskProgress, clock: Clock) -> None:
    figures = TrainingFigures(
        step=3, steps=12, steps_per_s=1.5, metrics={"loss": 0.25, "learning_rate": 1e-4}
    )
    about = event("TASK_PROGRESS", shard=0)
    task.take(about.model_copy(update={"payload": Payload(training=figures, eta_s=6.0)}))
    assert task.done == (3, 12, "step")
    assert task_figures(task).startswith("1.5 steps/s · loss 0.25 · lr 0.0001")
    assert task.remaining_s() == 6.0
    clock.now += 4
    assert task.remaining_s() == 2.0


def test_what_a_shard_warns_of_stays_to_be_read() -> None:
    out = io.StringIO()
    monitor = Monitor(LinesView(Console(file=out, width=80)))
    warning = event("TASK_PROGRESS", 0)
    monitor.hear(warning.model_copy(update={"payload": Payload(reason="part-1 was damaged")}))
    assert f"{warning.node}: part-1 was damaged" in out.getvalue().splitlines()
