"""Chunks and passages of rows: carried to the next task, and in every export."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mloc_dagster.data import open_rows, read_input, spool_input
from mloc_dagster.planning import cut_shards
from mloc_dagster.results import (
    Folder,
    OutputRow,
    Passage,
    ShardWriter,
    aggregate_rows,
    export_results,
    open_store,
)
from mloc_dagster.schema import ListData, UpstreamData

FOUND = [
    Passage("c1", "Owls hunt at night.", "owls", 3, 22, payload={"lang": "en"}, score=0.5),
    Passage("c2", "Mice hide.", "mice", 0, 10, page=2, heading=["Mice", "Where"]),
]


@pytest.fixture
def searched(tmp_path: Path) -> Folder:
    """A task whose second row failed."""
    folder = open_store(str(tmp_path)).task("t")
    plan = spool_input("t", ListData(type="list", items=("a", "b")), folder, 1, 7, {})
    rows = [OutputRow(0, "a", "x", retrieved=FOUND), OutputRow(1, "b", error="no")]
    (shard,) = cut_shards("t", 2, 1)
    with ShardWriter(folder, shard, 1, flush_rows=2, flush_interval_s=60) as writer:
        for row in rows:
            writer.write(row)
    aggregate_rows(
        *(folder, plan), model="m", worker_id="w", started_at=shard_time(), error_budget=0.5
    )
    export_results(folder, plan, ["parquet", "jsonl", "csv"], model="m", leaves=("retrieved",))
    return folder


def shard_time():
    from datetime import UTC, datetime

    return datetime.now(UTC)


def test_passages_go_on_to_a_task_that_takes_them_and_to_no_other(
    searched: Folder, tmp_path: Path
) -> None:
    data, upstream = UpstreamData(type="upstream", node="t", text="{prompt}"), {"t": searched}
    then = open_store(str(tmp_path)).task("then")
    plan = spool_input("then", data, then, 1, 7, upstream, takes={"retrieved"})
    first, second = read_input(then, plan, 0, 2)
    assert first.retrieved == FOUND
    assert second.retrieved is None
    assert second.fault == "upstream"
    assert [row.retrieved for row in open_rows(data, upstream).rows] == [None, None]


def test_passages_are_nested_lists_of_every_export(searched: Folder) -> None:
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

    with searched.open("responses.parquet") as file:
        one, other = pq.read_table(file).column("retrieved").to_pylist()  # pyright: ignore
    assert [each["id"] for each in one] == ["c1", "c2"]
    assert json.loads(one[0]["payload"]) == {"lang": "en"}
    assert one[1]["heading"] == ["Mice", "Where"]
    assert other is None
    lines = searched.read_bytes("responses.jsonl").splitlines()
    assert json.loads(lines[0])["retrieved"][0]["payload"] == {"lang": "en"}
    (row, _) = csv.DictReader(searched.read_bytes("responses.csv").decode().splitlines())
    assert json.loads(row["retrieved"])[0]["score"] == 0.5
    items = json.loads(searched.read_bytes("responses.json"))["result"]["items"]
    assert items[0]["retrieved"][1] == {
        "id": "c2",
        "text": "Mice hide.",
        "document": "mice",
        "start": 0,
        "end": 10,
        "page": 2,
        "heading": ["Mice", "Where"],
    }
    assert "retrieved" not in items[1]
