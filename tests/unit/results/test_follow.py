"""Rows of a task that runs, as they become durable; tables of what is there of a task."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.columns import ColumnWriter
from mloc_dagster.results.follow import RowFollower
from mloc_dagster.results.record import TaskRecord, write_plan, write_record
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.tables import read_tables

ROWS = 6


@pytest.fixture
def folder() -> Folder:
    """A task that is planned, whose rows bring a column along."""
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    record = TaskRecord(
        task_id="t",
        workflow_id="t",
        run_id="r",
        template={},
        template_name="demo",
        node="demo",
        task_type="echo",
        spec={"taskType": "echo", "resources": {"cost_per_hour": 3.6}},
        submitted_at=datetime(2026, 1, 1, tzinfo=UTC),
        mloc_version="1",
    )
    write_record(folder, record)
    columns = ColumnWriter(folder)
    for index in range(ROWS):
        columns.add({"answer": f"a{index}"})
    plan = Plan(
        task_id="t",
        source="a list",
        rows=ROWS,
        data_version="d" * 64,
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=ROWS),),
        shards=tuple(cut_shards("t", ROWS, 2)),
        columns=columns.close(),
    )
    write_plan(folder, plan)
    return folder


def write(folder: Folder, shard: int, *rows: OutputRow, attempt: int = 1) -> None:
    place = cut_shards("t", ROWS, 2)[shard]
    with ShardWriter(folder, place, attempt, flush_rows=99, flush_interval_s=60) as writer:
        for row in rows:
            writer.write(row)


def row(index: int, error: str | None = None) -> OutputRow:
    return OutputRow(index, "p", f"o{index}", error=error, engine_s=1.0)


def taken(follower: RowFollower) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    while (table := follower.take()) is not None:
        found += [(each["index"], each["answer"]) for each in table.to_pylist()]
    return found


def test_rows_come_once_each_with_its_columns(folder: Folder) -> None:
    follower = RowFollower(folder)
    assert taken(follower) == []
    write(folder, 1, row(5), row(3))
    assert taken(follower) == [(3, "a3"), (5, "a5")]
    write(folder, 0, row(0))
    write(folder, 1, row(3), row(4), attempt=2)  # tried again, from before a row that was there
    assert taken(follower) == [(0, "a0"), (4, "a4")]
    assert follower.rest() is None


def test_a_task_that_is_not_planned_has_none() -> None:
    follower = RowFollower(open_store(f"memory://{uuid.uuid4().hex}").task("t"))
    assert follower.take() is None


def test_errors_that_are_tried_again_wait_for_what_becomes_of_them(folder: Folder) -> None:
    write(folder, 0, row(0, "bad"), row(1, "bad"), row(2))
    assert taken(RowFollower(folder)) == [(0, "a0"), (1, "a1"), (2, "a2")]
    follower = RowFollower(folder, retry_errors=True)
    assert taken(follower) == [(2, "a2")]
    write(folder, 0, row(0), attempt=2)
    assert taken(follower) == [(0, "a0")]
    rest = follower.rest()
    assert rest is not None
    assert [(each["index"], each["error"]) for each in rest.to_pylist()] == [(1, "bad")]


def test_tables_of_a_task_that_is_not_complete_show_what_is_there(folder: Folder) -> None:
    (empty,) = read_tables(folder)
    assert (empty.num_rows, empty.column_names[-1]) == (0, "answer")
    write(folder, 1, row(3), row(5, "bad"))
    write(folder, 0, row(1))
    (table,) = read_tables(folder)
    shown = table.select(["index", "shard", "answer", "error", "model"]).to_pylist()
    assert [tuple(each.values()) for each in shown] == [
        (1, 0, "a1", None, "echo"),
        (3, 1, "a3", None, "echo"),
        (5, 1, "a5", "bad", "echo"),
    ]
    assert table["cost"].to_pylist() == pytest.approx([0.001] * 3)
    (some,) = read_tables(folder, ["answer"])
    assert some.to_pydict() == {"answer": ["a1", "a3", "a5"]}
