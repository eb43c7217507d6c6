from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.data import (
    InputPlanning,
    RowForecast,
    read_input,
    read_places,
    spool,
    spool_input,
)
from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.executors import TokenCounter
from mloc_dagster.planning import CostWeights, Plan
from mloc_dagster.results.aggregate import aggregate_rows
from mloc_dagster.results.part_files import finished_rows, read_rows, read_shard
from mloc_dagster.results.rows import InputRow, OutputRow, SourceRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.schema import ListData


def forecast(row: SourceRow) -> RowForecast:
    return RowForecast(output_tokens=4, result_bytes=16, repeatable=True)


def new_folder() -> Folder:
    folder = open_store("memory://input-order").task("t")
    for name in ("plan.json", "input", "shards"):
        folder.delete(name)
    return folder


def spooled(folder: Folder, prompts: list[str], shards: int, window_rows: int = 1 << 17) -> Plan:
    planning = InputPlanning(TokenCounter(None), forecast, CostWeights())
    data = ListData(type="list", items=tuple(prompts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "WINDOW_ROWS", window_rows)
        patch.setattr(spool, "CHUNK_ROWS", 7)
        return spool_input("t", data, folder, shards, 1, {}, planning)


def answer(place: int, row: InputRow, **more: Any) -> OutputRow:
    return OutputRow(row.index, row.prompt, output=f"{row.prompt}!", place=place, **more)


@settings(deadline=None, max_examples=60)
@given(
    prompts=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=40),
    shards=st.integers(1, 5),
    window_rows=st.integers(1, 50),
    flush_rows=st.integers(1, 9),
    bounds=st.tuples(st.integers(0, 45), st.integers(0, 45)),
    seed=st.integers(),
)
def test_whatever_the_order_on_disk_rows_come_back_in_input_order(
    prompts: list[str],
    shards: int,
    window_rows: int,
    flush_rows: int,
    bounds: tuple[int, int],
    seed: int,
) -> None:
    folder = new_folder()
    plan = spooled(folder, prompts, shards, window_rows)
    assert plan.windows == tuple(range(0, len(prompts), window_rows))
    for shard in plan.shards:
        rows = list(read_places(folder, plan, shard.start, shard.stop))
        assert [place for place, _ in rows] == list(range(shard.start, shard.stop))
        Random(seed).shuffle(rows)
        with ShardWriter(folder, shard, 1, flush_rows=flush_rows, flush_interval_s=60) as writer:
            for place, row in rows:
                writer.write(answer(place, row))
        assert finished_rows(folder, shard).count == shard.rows
        places = [row.place for row in read_shard(folder, shard)]
        assert places == list(range(shard.start, shard.stop))

    everything = [(index, f"{prompt}!") for index, prompt in enumerate(prompts)]
    assert [(row.index, row.output) for row in read_rows(folder)] == everything
    start, stop = bounds
    some = [(row.index, row.output) for row in read_rows(folder, start, stop)]
    assert some == everything[start:stop]


@settings(deadline=None, max_examples=60)
@given(
    prompts=st.lists(st.sampled_from(["a", "ab", "abc", "b" * 400]), min_size=1, max_size=60),
    shards=st.integers(1, 6),
)
def test_equal_rows_share_a_shard(prompts: list[str], shards: int) -> None:
    folder = new_folder()
    plan = spooled(folder, prompts, shards)
    assert plan.expected is not None
    mean = sum(load.cost for load in plan.expected.shards) / shards
    read = [list(read_input(folder, plan, each.start, each.stop)) for each in plan.shards]
    for prompt in set(prompts):
        holders = [rows for rows in read if any(row.prompt == prompt for row in rows)]
        count = prompts.count(prompt)
        # Computed once: the first costs its prompt and answer, each copy 1.
        assert len(holders) == 1 or 16 + len(prompt) + count > mean


def test_the_data_version_does_not_depend_on_the_order() -> None:
    folder = new_folder()
    planned = spooled(folder, ["c", "a", "b"], 1)
    assert [row.index for row in read_input(folder, planned, 0, 3)] == [1, 2, 0]
    folder = new_folder()
    plain = spool_input("t", ListData(type="list", items=("c", "a", "b")), folder, 1, 1, {})
    assert planned.data_version == plain.data_version
    assert plain.windows == ()
    assert plain.expected is None


def test_a_good_row_of_a_later_attempt_counts() -> None:
    folder = new_folder()
    plan = spooled(folder, ["c", "a", "b"], 1)
    (shard,) = plan.shards
    rows = list(read_places(folder, plan, 0, 3))
    with ShardWriter(folder, shard, 1, flush_rows=9, flush_interval_s=60) as writer:
        for place, row in rows:
            writer.write(answer(place, row, error="broken" if place == 1 else None))
    retried = finished_rows(folder, shard, retry_errors=True)
    assert list(retried.missing()) == [1]
    with ShardWriter(folder, shard, 2, flush_rows=9, flush_interval_s=60) as writer:
        writer.write(answer(*rows[1], attempt=2))
    assert [(row.index, row.error, row.attempt) for row in read_rows(folder)] == [
        (0, None, 1),
        (1, None, 1),
        (2, None, 2),
    ]


def test_missing_rows_are_named_by_index() -> None:
    from datetime import UTC, datetime

    folder = new_folder()
    plan = spooled(folder, ["c", "a", "b"], 2)
    place, row = next(iter(read_places(folder, plan, 0, 3)))
    with ShardWriter(folder, plan.shards[0], 1, flush_rows=9, flush_interval_s=60) as writer:
        writer.write(answer(place, row))
    with pytest.raises(IncompleteResultsError, match=r"has 1 of 3 rows: it lacks 2 \(0, 2\)"):
        aggregate_rows(folder, plan, model="m", worker_id="w", started_at=datetime.now(UTC))


def test_a_damaged_part_is_named() -> None:
    folder = new_folder()
    spooled(folder, ["c", "a", "b"], 1)
    folder.write_bytes("shards/0000/part-000000000000-000000000002-01-0a.jsonl", b'{"index":0,\n')
    with pytest.raises(IncompleteResultsError, match=r"part-000000000000.* is damaged"):
        list(read_rows(folder))
