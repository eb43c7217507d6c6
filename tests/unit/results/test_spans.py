"""A task takes the time in which it was computed, and no pause between two attempts."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.aggregate import aggregate_rows
from mloc_dagster.results.part_files import list_parts, read_rows
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.spans import Span, covered_s, mean_at_once
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.summary import TaskSummary

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


class Task:
    """A task of 100 rows in two shards, whose rows are written at moments of choice."""

    def __init__(self) -> None:
        self.folder: Folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
        self.plan = Plan(
            task_id="t",
            source="a list",
            rows=100,
            data_version="0",
            seed=1,
            chunks=(Chunk(name="input/0.jsonl", start=0, rows=100),),
            shards=tuple(cut_shards("t", 100, 2)),
        )

    def attempt(
        self, rows: range, began_s: float | None, *written_s: float, worker: str = "h:1"
    ) -> None:
        """Writes the rows in as many parts as there are moments, in seconds from `BEGAN`."""
        moments = iter((began_s or 0.0, *written_s))
        shard = self.plan.shards[0 if rows.start < 50 else 1]
        size = -(-len(rows) // len(written_s))
        with ShardWriter(
            *(self.folder, shard, 1),
            flush_rows=size,
            flush_interval_s=600,
            began=None if began_s is None else BEGAN + timedelta(seconds=began_s),
            clock=lambda: next(moments),
        ) as writer:
            for index in rows:
                writer.write(OutputRow(index, "p", "o", completion_tokens=10, worker=worker))

    def summary(self, run_began_s: float) -> TaskSummary:
        return aggregate_rows(
            self.folder,
            self.plan,
            model="m",
            worker_id="h:1",
            started_at=BEGAN + timedelta(seconds=run_began_s),
            now=BEGAN + timedelta(seconds=run_began_s + 2),
        )


def test_a_task_that_was_killed_near_its_end_and_resumed_is_as_fast_as_it_was() -> None:
    task = Task()
    task.attempt(range(50), 0, 25, 50)
    task.attempt(range(50, 99), 50, 75, 99)  # here it was killed, and a day later resumed
    task.attempt(range(99, 100), 86_400, 86_401, worker="h:2")

    summary = task.summary(run_began_s=86_400)

    assert summary.usage.latency_sec == pytest.approx(100)
    assert summary.rows_per_s == pytest.approx(1.0)
    assert summary.tokens_per_s == pytest.approx(10.0)
    assert summary.started_at == BEGAN
    assert len(summary.workers) == 2
    assert summary.at_once == pytest.approx(1.0)


def test_shards_beside_each_other_take_their_time_once() -> None:
    task = Task()
    task.attempt(range(50), 0, 40)
    task.attempt(range(50, 100), 10, 50)
    summary = task.summary(run_began_s=0)
    assert summary.usage.latency_sec == pytest.approx(50)
    assert summary.at_once == pytest.approx(1.6)


def test_part_files_whose_names_tell_no_time_are_read_and_take_the_runs() -> None:
    task = Task()
    task.attempt(range(100)[:50], None, 0)
    task.attempt(range(50, 100), None, 0)
    names = task.folder.list("shards", recursive=True)
    name = re.compile(r"shards/\d{4}/part-\d{12}-\d{12}-01-[0-9a-f]{8}-c[0-9a-f]{8}\.jsonl")
    assert all(name.fullmatch(each) for each in names)
    assert [part.span for part in list_parts(task.folder)] == [None, None]
    assert [row.index for row in read_rows(task.folder)] == list(range(100))
    summary = task.summary(run_began_s=10)
    assert (summary.usage.latency_sec, summary.at_once) == (pytest.approx(2), None)


def test_spans() -> None:
    assert covered_s([]) == 0
    assert mean_at_once([]) is None
    nested = [Span(0, 10), Span(2, 3), Span(9, 12), Span(20, 21)]
    assert covered_s(nested) == 13
    assert mean_at_once(nested) == pytest.approx(15 / 13)


def test_a_clock_that_is_set_while_rows_are_computed_counts_for_nothing() -> None:
    """The time of day says when an attempt began, and nothing else."""
    task = Task()
    task.attempt(range(50), 0, 25, 50)
    task.attempt(range(50, 100), -86_400, -86_375, -86_350)  # it was set to the day before
    assert task.summary(run_began_s=0).usage.latency_sec == pytest.approx(100)
