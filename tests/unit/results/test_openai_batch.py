from __future__ import annotations

import base64
import io
import json
import struct
import uuid
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai.types.chat import ChatCompletion

from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.export import export_results
from mloc_dagster.results.openai_batch import whole_requests
from mloc_dagster.results.rows import FunctionCall, Message, OutputRow, TokenLogprob, ToolCall
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store

ASKED = datetime(2026, 5, 1, tzinfo=UTC)
CHAT = [Message("user", "hello")]


def written(rows: list[OutputRow]) -> tuple[Folder, Plan]:
    plan = Plan(
        task_id="t",
        source="a list",
        rows=len(rows),
        data_version="abc",
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=len(rows)),),
        shards=tuple(cut_shards("t", len(rows), 2)),
    )
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    for shard in plan.shards:
        with ShardWriter(folder, shard, 1, flush_rows=9, flush_interval_s=60) as writer:
            for row in rows[shard.start : shard.stop]:
                writer.write(row)
    return folder, plan


def batch(*rows: OutputRow) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    folder, plan = written(list(rows))
    names = export_results(folder, plan, ["openai_batch"], model="tiny", submitted_at=ASKED)
    assert names == ["batch_output.jsonl", "batch_errors.jsonl"]
    before = [folder.read_bytes(name) for name in names]
    export_results(folder, plan, ["openai_batch"], model="tiny", submitted_at=ASKED)
    assert [folder.read_bytes(name) for name in names] == before
    output, errors = ([json.loads(line) for line in data.splitlines()] for data in before)
    return output, errors


def test_a_chats_answer() -> None:
    logprobs = [TokenLogprob("hi", -0.5, [("hi", -0.5), ("ho", -1.0)])]
    row = OutputRow(
        0, CHAT, "hi", "length", outputs=["hi", "hey"], custom_id="a",
        prompt_tokens=4, completion_tokens=3, cached_tokens=2, logprobs=[logprobs, []],
    )  # fmt: skip
    (line,), errors = batch(row)
    assert errors == []
    assert line["id"].startswith("batch_req_")
    assert (line["custom_id"], line["error"]) == ("a", None)
    assert line["response"]["status_code"] == 200
    body = line["response"]["body"]
    assert body.pop("id").startswith("chatcmpl-")
    told = {"token": "hi", "logprob": -0.5, "bytes": [104, 105]}
    assert body == {
        "object": "chat.completion",
        "created": int(ASKED.timestamp()),
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
                "logprobs": {
                    "content": [
                        {
                            **told,
                            "top_logprobs": [
                                told,
                                {"token": "ho", "logprob": -1.0, "bytes": [104, 111]},
                            ],
                        }
                    ]
                },
                "finish_reason": "length",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "hey", "refusal": None},
                "logprobs": {"content": []},
                "finish_reason": "length",
            },
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 3,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def call(name: str = "lookup", number: int = 1) -> ToolCall:
    return ToolCall(f"call_{number}", FunctionCall(name, '{"key": "a"}'))


def test_calls_and_thoughts_are_the_hosted_apis() -> None:
    (line,), errors = batch(
        OutputRow(
            *(0, CHAT, "", "tool_calls"), custom_id="a", prompt_tokens=9, completion_tokens=8,
            cached_tokens=4, tool_calls=[call(), call("add", 2)], reasoning="I look it up",
            reasoning_tokens=3,
        )
    )  # fmt: skip
    assert errors == []
    answer = ChatCompletion.model_validate(line["response"]["body"], strict=True)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    assert [each.model_dump() for each in choice.message.tool_calls] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "lookup", "arguments": '{"key": "a"}'},
        },
        {
            "id": "call_2",
            "type": "function",
            "function": {"name": "add", "arguments": '{"key": "a"}'},
        },
    ]
    assert choice.message.model_extra == {"reasoning": "I look it up"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_each_of_several_answers_has_calls_and_thoughts_of_its_own() -> None:
    (line,), _ = batch(
        OutputRow(
            *(0, CHAT, "", "tool_calls"), custom_id="a", outputs=["", "So be it", "5"],
            finish_reasons=["tool_calls", "tool_calls", "stop"], tool_calls=[call()],
            all_tool_calls=[[call()], [call("add", 2)], []], all_reasoning=[None, "hm", None],
        )
    )  # fmt: skip
    answer = ChatCompletion.model_validate(line["response"]["body"], strict=True)
    said = [each.message for each in answer.choices]
    assert [each.content for each in said] == [None, "So be it", "5"]
    assert [[one.id for one in each.tool_calls or ()] for each in said] == [
        ["call_1"],
        ["call_2"],
        [],
    ]
    assert [(each.model_extra or {}).get("reasoning") for each in said] == [None, "hm", None]
    assert [each.finish_reason for each in answer.choices] == ["tool_calls", "tool_calls", "stop"]


def test_prompts_of_one_request_are_choices_of_one_answer() -> None:
    first = OutputRow(0, "x", "1", custom_id="a", prompt_tokens=1, completion_tokens=2)
    second = OutputRow(1, "y", "2", custom_id="a", prompt_tokens=1, completion_tokens=2)
    other = OutputRow(2, "z", "3", custom_id="b")
    output, errors = batch(first, second, other)
    assert errors == []
    assert [line["custom_id"] for line in output] == ["a", "b"]
    body = output[0]["response"]["body"]
    assert [(each["index"], each["text"]) for each in body["choices"]] == [(0, "1"), (1, "2")]
    assert body["object"] == "text_completion"
    assert body["usage"]["total_tokens"] == 6
    assert len({line["id"] for line in output}) == 2


@pytest.mark.parametrize(
    ("there", "whole"),
    [
        ([0, 1, 2, 3, 4, 5], "abcd"),
        ([0, 1, 2, 3], "ab"),  # nobody knows if c has another row
        ([0, 1, 2, 3, 4], "ab"),
        ([1, 2, 3, 4, 5], "cd"),
        ([0, 2, 3, 4, 5], "cd"),
        ([0, 1, 3, 4, 5], "ad"),
        ([5], ""),
        ([], ""),
    ],
)
def test_of_a_stopped_task_only_whole_requests_count(there: list[int], whole: str) -> None:
    ids = "abbccd"
    rows = [OutputRow(index, "x", "1", custom_id=ids[index]) for index in there]
    assert [each[0].custom_id for each in whole_requests(rows, len(ids))] == list(whole)


def test_each_of_several_answers_says_why_it_ended() -> None:
    row = OutputRow(
        *(0, CHAT, "1", "stop", ["1", "2"]), custom_id="a", finish_reasons=["stop", "length"]
    )
    (line,), _ = batch(row)
    choices = line["response"]["body"]["choices"]
    assert [each["finish_reason"] for each in choices] == ["stop", "length"]


def test_a_request_fails_as_a_whole_into_the_errors_file() -> None:
    output, (line,) = batch(
        OutputRow(0, "x", "1", custom_id="a"),
        OutputRow(1, "y", "", "error", error="too long", custom_id="a"),
        OutputRow(2, "z", "3"),
    )
    assert [each["custom_id"] for each in output] == ["row-2"]
    assert line["custom_id"] == "a"
    assert line["error"] is None, "the response says it"
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_what_breaks_down_here_is_the_servers_fault() -> None:
    _, (line,) = batch(
        OutputRow(0, "x", "", "error", error="the engine broke", fault="server", custom_id="a")
    )
    assert (line["error"], line["response"]["status_code"]) == (None, 500)
    assert line["response"]["body"]["error"]["type"] == "server_error"


def test_what_the_budget_left_out_is_over_the_quota() -> None:
    row = OutputRow(0, "x", "", "error", error="not computed", fault="budget", custom_id="a")
    _, (line,) = batch(row)
    assert (line["error"], line["response"]["status_code"]) == (None, 429)
    assert line["response"]["body"]["error"]["type"] == "insufficient_quota"


def test_vectors() -> None:
    (line,), _ = batch(
        OutputRow(0, "x", embedding=[0.0, 1.0], custom_id="a", prompt_tokens=2),
        OutputRow(1, "y", embedding=[1.0, 0.0], custom_id="a", prompt_tokens=3),
    )
    assert line["response"]["body"] == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.0]},
        ],
        "model": "tiny",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_vectors_as_bytes_where_the_request_asked_for_them() -> None:
    (line,), _ = batch(OutputRow(0, "x", embedding=[0.5, -2.0], custom_id="a", encoding="base64"))
    (vector,) = line["response"]["body"]["data"]
    assert struct.unpack("<2f", base64.b64decode(vector["embedding"])) == (0.5, -2.0)


def test_many_failed_rows_at_the_beginning_take_no_vector_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mloc_dagster.results.export.BATCH_ROWS", 2)
    failed = [OutputRow(index, "x", "", "error", error="boom") for index in range(5)]
    folder, plan = written([*failed, OutputRow(5, "y", embedding=[0.5, 1.0, 2.0])])
    export_results(folder, plan, ["parquet"], model="tiny", vectors=True)
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
    assert table["embedding"].to_pylist() == [None] * 5 + [[0.5, 1.0, 2.0]]


def test_parquet_has_vectors_as_lists_of_one_length() -> None:
    folder, plan = written(
        [
            OutputRow(0, "x", "", "error", error="boom"),
            OutputRow(1, "y", embedding=[0.5, 1.0]),
            OutputRow(2, "z", embedding=[1.0]),
        ]
    )
    export_results(folder, plan, ["parquet", "csv", "jsonl"], model="tiny", vectors=True)
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert table["embedding"].to_pylist() == [None, [0.5, 1.0], None]
    assert folder.read_bytes("responses.csv").splitlines()[2].endswith(b'"[0.5,1.0]"')
    lines = [json.loads(line) for line in folder.read_bytes("responses.jsonl").splitlines()]
    assert [line["embedding"] for line in lines] == [None, [0.5, 1.0], [1.0]]
    assert table.column_names == list(lines[0])
