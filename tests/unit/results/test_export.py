from __future__ import annotations

import csv
import hashlib
import io
import json
import uuid

import pyarrow.parquet as pq
import pytest

from mloc_dagster import __version__
from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.export import export_results
from mloc_dagster.results.rows import Message, OutputRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store

_ROWS = [
    OutputRow(
        0,
        'say "hi",\nplease',
        "hi, 你好",
        prompt_tokens=4,
        completion_tokens=2,
        latency_s=0.5,
        engine="echo 1",
        worker="h:1",
        attempt=2,
    ),
    OutputRow(1, [Message("user", "hello")], "a", outputs=["a", "b"]),
    OutputRow(2, "=1+1", "", "error", error="boom"),
]


@pytest.fixture
def plan() -> Plan:
    return Plan(
        task_id="t",
        source="a list",
        rows=3,
        data_version="abc",
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=3),),
        shards=tuple(cut_shards("t", 3, 2)),
    )


@pytest.fixture
def folder(plan: Plan) -> Folder:
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    for shard in plan.shards:
        with ShardWriter(folder, shard, 1, flush_rows=9, flush_interval_s=60) as writer:
            for row in _ROWS[shard.start : shard.stop]:
                writer.write(row)
    return folder


def test_parquet_has_every_row_with_where_it_came_from(folder: Folder, plan: Plan) -> None:
    export_results(folder, plan, ["parquet"], model="tiny", revision="main")
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))

    first, chat, failed = table.to_pylist()
    assert first == {
        "task_id": "t",
        "shard": 0,
        "index": 0,
        "prompt": 'say "hi",\nplease',
        "prompt_sha256": hashlib.sha256(b'say "hi",\nplease').hexdigest(),
        "output": "hi, 你好",
        "outputs": None,
        "tool_calls": None,
        "reasoning": None,
        "finish_reason": "stop",
        "stop": None,
        "steps": None,
        "failed_calls": None,
        "error": None,
        "model": "tiny",
        "revision": "main",
        "engine": "echo 1",
        "worker": "h:1",
        "attempt": 2,
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "reasoning_tokens": 0,
        "latency_s": 0.5,
        "cached_tokens": 0,
        "engine_s": 0.0,
        "energy_j": None,
        "gpu_s": 0.0,
        "cost": None,
        "reused": None,
        "saved_s": 0.0,
        "custom_id": None,
    }
    assert json.loads(chat["prompt"]) == [{"role": "user", "content": "hello"}]
    assert chat["outputs"] == ["a", "b"]
    assert (failed["shard"], failed["error"], failed["output"]) == (1, "boom", "")
    assert table.schema.metadata == {
        b"mloc_version": __version__.encode(),
        b"mloc_task_id": b"t",
        b"mloc_data_version": b"abc",
    }


def test_every_format_has_the_same_columns(folder: Folder, plan: Plan) -> None:
    export_results(folder, plan, ["csv", "parquet", "jsonl"], model="tiny")
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
    lines = [json.loads(line) for line in folder.read_bytes("responses.jsonl").splitlines()]
    text = folder.read_bytes("responses.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))

    assert lines == table.to_pylist()
    assert list(rows[0]) == table.column_names
    assert [row["prompt"] for row in rows] == table["prompt"].to_pylist()
    assert [row["error"] for row in rows] == ["", "", "boom"]
    assert rows[1]["outputs"] == '["a","b"]'
    assert text.count("\r\n") == 4


def test_only_what_was_asked_for_is_written(folder: Folder, plan: Plan) -> None:
    assert export_results(folder, plan, ["json"], model="tiny") == []
    assert export_results(folder, plan, ["jsonl"], model="tiny") == ["responses.jsonl"]
    assert folder.list() == ["responses.jsonl", "shards"]


def test_rows_of_agents_say_how_they_ended(plan: Plan) -> None:
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    done = OutputRow(0, "p", "o", "completed", stop="answer", steps=3, failed_calls=1)
    rows = [done, OutputRow(1, "p", "o", stop="budget", steps=2), OutputRow(2, "p", error="none")]
    for shard in plan.shards:
        with ShardWriter(folder, shard, 1, flush_rows=9, flush_interval_s=60) as writer:
            for row in rows[shard.start : shard.stop]:
                writer.write(row)
    export_results(folder, plan, ["parquet", "csv"], model="tiny")
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
    shown = table.select(["stop", "steps", "failed_calls"]).to_pylist()
    assert [tuple(each.values()) for each in shown] == [
        ("answer", 3, 1), ("budget", 2, 0), (None, None, None)
    ]  # fmt: skip
    lines = csv.DictReader(io.StringIO(folder.read_bytes("responses.csv").decode()))
    assert [each["stop"] for each in lines] == ["answer", "budget", ""]
