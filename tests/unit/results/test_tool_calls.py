"""Calls of tools and thoughts in what a task leaves behind."""

from __future__ import annotations

import csv
import io
import json
import uuid
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.aggregate import aggregate_rows, count_rows
from mloc_dagster.results.export import export_results
from mloc_dagster.results.part_files import read_rows
from mloc_dagster.results.rows import FunctionCall, Message, OutputRow, ToolCall
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.tool_calls import answer_text

CALL = ToolCall("call_1", FunctionCall("lookup", '{"key": "a"}'))
AS_JSON = {
    "id": "call_1",
    "function": {"name": "lookup", "arguments": '{"key": "a"}'},
    "type": "function",
}
ROWS = [
    OutputRow(
        *(0, "x", "", "tool_calls"), tool_calls=[CALL, CALL], reasoning="hm", reasoning_tokens=3,
        completion_tokens=9,
    ),
    OutputRow(1, "y", "said", completion_tokens=2),
    OutputRow(2, [Message("assistant", "", tool_calls=[CALL])], ""),
]  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    return Plan(
        task_id="t",
        source="a list",
        rows=len(ROWS),
        data_version="abc",
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=len(ROWS)),),
        shards=tuple(cut_shards("t", len(ROWS), 1)),
    )


@pytest.fixture
def folder(plan: Plan) -> Folder:
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    with ShardWriter(folder, plan.shards[0], 1, flush_rows=9, flush_interval_s=60) as writer:
        for row in ROWS:
            writer.write(row)
    return folder


def test_exports_have_calls_and_thoughts_in_every_format(folder: Folder, plan: Plan) -> None:
    export_results(folder, plan, ["parquet", "jsonl", "csv"], model="tiny")
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
    assert table["tool_calls"].to_pylist() == [[AS_JSON, AS_JSON], None, None]
    assert table["reasoning"].to_pylist() == ["hm", None, None]
    assert table["reasoning_tokens"].to_pylist() == [3, 0, 0]
    lines = [json.loads(line) for line in folder.read_bytes("responses.jsonl").splitlines()]
    assert lines == table.to_pylist()
    text = folder.read_bytes("responses.csv").decode()
    first, second, _ = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    assert json.loads(first["tool_calls"]) == [AS_JSON, AS_JSON]
    assert (first["reasoning"], first["reasoning_tokens"]) == ("hm", "3")
    assert (second["tool_calls"], second["reasoning"]) == ("", "")


def test_the_result_and_its_figures(folder: Folder, plan: Plan) -> None:
    summary = aggregate_rows(
        folder, plan, model="tiny", worker_id="h:1", started_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    result = json.loads(folder.read_bytes("responses.json"))["result"]
    first, second, _ = result["items"]
    assert first == {
        "index": 0,
        "output": "",
        "finish_reason": "tool_calls",
        "tool_calls": [AS_JSON, AS_JSON],
        "reasoning": "hm",
    }
    assert not {"tool_calls", "reasoning"} & second.keys()
    assert result["usage"]["reasoning_tokens"] == 3
    assert summary.finish_reasons == {"tool_calls": 1, "stop": 2}
    # A call is no empty output; one that says nothing at all is.
    assert summary.empty_outputs == count_rows(read_rows(folder)).empty == 1
    called = 'lookup({"key": "a"})'
    assert [each.output for each in summary.preview] == [f"{called}\n{called}", "said", ""]
    assert summary.preview[2].prompt == called


def test_an_answer_in_one_text() -> None:
    assert answer_text("said", None) == "said"
    assert answer_text("A moment.", [CALL]) == 'A moment.\nlookup({"key": "a"})'
    assert answer_text("", [AS_JSON]) == 'lookup({"key": "a"})'
    assert answer_text("said", ["what has another form"]) == "said"
