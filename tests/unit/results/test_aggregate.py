from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.aggregate import aggregate_rows, allowed_errors, read_summary
from mloc_dagster.results.rows import Message, OutputRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.summary import LatencyCounter, TaskSummary

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def folder() -> Folder:
    return open_store(f"memory://{uuid.uuid4().hex}").task("t")


def _plan(rows: int, shards: int = 1) -> Plan:
    return Plan(
        task_id="t",
        source="a list",
        rows=rows,
        data_version="d" * 64,
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=rows),),
        shards=tuple(cut_shards("t", rows, shards)),
    )


def _write(folder: Folder, plan: Plan, rows: list[OutputRow], attempt: int = 1) -> None:
    for shard in plan.shards:
        with ShardWriter(folder, shard, attempt, flush_rows=99, flush_interval_s=60) as writer:
            for row in rows:
                if shard.start <= row.index < shard.stop:
                    writer.write(row)


def _aggregate(folder: Folder, plan: Plan, budget: float = 0.0) -> TaskSummary:
    return aggregate_rows(
        folder,
        plan,
        model="tiny",
        worker_id="host:1",
        started_at=_STARTED,
        error_budget=budget,
        metadata={"owner": "me"},
        now=_STARTED + timedelta(seconds=10),
    )


def test_responses_hold_every_item_and_the_usage(folder: Folder) -> None:
    plan = _plan(3, 2)
    rows = [
        OutputRow(0, "a", "A", prompt_tokens=1, completion_tokens=2),
        OutputRow(1, "b", "B", outputs=["B", "C"], prompt_tokens=1, completion_tokens=4),
        OutputRow(2, "c", "", "error", error="too long", prompt_tokens=1),
    ]
    _write(folder, plan, rows)
    _aggregate(folder, plan, budget=0.5)

    assert json.loads(folder.read_bytes("responses.json")) == {
        "task_id": "t",
        "worker_id": "host:1",
        "metadata": {"owner": "me"},
        "received_at": "2026-01-01T00:00:10Z",
        "result": {
            "ok": True,
            "model": "tiny",
            "items": [
                {"index": 0, "output": "A", "finish_reason": "stop"},
                {"index": 1, "output": "B", "finish_reason": "stop", "outputs": ["B", "C"]},
                {"index": 2, "output": "", "finish_reason": "error", "error": "too long"},
            ],
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 6,
                "reasoning_tokens": 0,
                "total_tokens": 9,
                "latency_sec": 10.0,
                "num_requests": 3,
                "model": "tiny",
                "cached_tokens": 0,
                "cache_hit_rate": 0.0,
                "padding_tokens": 0,
                "reused_rows": {"task": 0, "cache": 0},
                "reused_tokens": 0,
                "saved_seconds": 0.0,
                "engine_seconds": 0.0,
                "gpu_seconds": 0.0,
                "energy_joules": None,
                "cost": None,
            },
        },
    }


def test_the_summary_says_what_an_asset_page_shows(folder: Folder) -> None:
    plan = _plan(100, 3)
    rows = [
        OutputRow(i, "p" * 1000, "" if i % 10 == 0 else "out", latency_s=(i + 1) / 100, worker="w")
        for i in range(98)
    ]
    rows.append(OutputRow(98, [Message("system", "be kind"), Message("user", "hello")], "hi"))
    rows.append(OutputRow(99, "p", error="boom", finish_reason="error", engine="echo 1"))
    _write(folder, plan, rows)
    summary = _aggregate(folder, plan, budget=0.01)

    assert summary == read_summary(folder)
    assert (summary.ok, summary.rows, summary.errors, summary.allowed_errors) == (True, 100, 1, 1)
    assert (summary.empty_outputs, summary.rows_per_s) == (10, 10.0)
    assert summary.finish_reasons == {"error": 1, "stop": 99}
    assert (summary.engines, summary.workers) == (("echo 1",), ("w",))
    assert [row.index for row in summary.preview] == [0, 1, 2, 3, 4]
    assert len(summary.preview[0].prompt) == 300
    assert [(row.index, row.error) for row in summary.first_errors] == [(99, "boom")]
    assert sum(summary.latency.counts) == 100
    assert len(summary.latency.edges_s) == len(summary.latency.counts) + 1
    assert len(folder.read_bytes("summary.json")) < 20_000


def test_a_chat_is_previewed_by_its_last_message(folder: Folder) -> None:
    plan = _plan(1)
    parts = [{"type": "text", "text": "look:"}, {"type": "image_url"}]
    _write(folder, plan, [OutputRow(0, [Message("system", "s"), Message("user", parts)], "x")])
    assert _aggregate(folder, plan).preview[0].prompt == "look: image_url"


def test_errors_beyond_the_budget_are_not_ok(folder: Folder) -> None:
    plan = _plan(10)
    _write(folder, plan, [OutputRow(i, "p", error="e" if i < 2 else None) for i in range(10)])
    assert not _aggregate(folder, plan, budget=0.1).ok
    assert _aggregate(folder, plan, budget=0.2).ok


def test_new_rows_change_the_result(folder: Folder) -> None:
    plan = _plan(2)
    _write(folder, plan, [OutputRow(0, "p", "a"), OutputRow(1, "p", error="boom")])
    assert _aggregate(folder, plan).errors == 1
    _write(folder, plan, [OutputRow(1, "p", "b")], attempt=2)
    assert _aggregate(folder, plan).errors == 0
    assert b"boom" not in folder.read_bytes("responses.json")


def test_lost_responses_are_written_again(folder: Folder) -> None:
    plan = _plan(1)
    _write(folder, plan, [OutputRow(0, "p", "a")])
    _aggregate(folder, plan)
    before = folder.read_bytes("responses.json")
    folder.delete("responses.json")
    _aggregate(folder, plan)
    assert folder.read_bytes("responses.json") == before


def test_rows_of_another_plan_are_not_mixed_in(folder: Folder) -> None:
    _write(folder, _plan(8, 4), [OutputRow(i, "p", "x") for i in range(8)])
    with pytest.raises(IncompleteResultsError, match=r"planned with 2 shards.*shard 0002"):
        _aggregate(folder, _plan(8, 2))
    with pytest.raises(IncompleteResultsError, match="rows up to index 7, but its plan has 6"):
        _aggregate(folder, _plan(6, 4))


def test_a_task_without_a_summary_says_so(folder: Folder) -> None:
    with pytest.raises(IncompleteResultsError, match="not aggregated yet"):
        read_summary(folder)


@pytest.mark.parametrize(
    ("rows", "budget", "allowed"),
    [(100, 0, 0), (100, 0.29, 29), (100, 0.001, 1), (1, 0.5, 0), (2, 1, 1), (3, 0.99, 2)],
)
def test_the_error_budget_in_rows(rows: int, budget: float, allowed: int) -> None:
    assert allowed_errors(rows, budget) == allowed


@given(st.lists(st.floats(0, 50_000), min_size=1))
def test_percentiles_are_right_to_a_bucket(latencies: list[float]) -> None:
    counter = LatencyCounter()
    for latency in latencies:
        counter.add(latency)
    result = counter.result()

    ordered = sorted(latencies)
    exact = ordered[-(-len(ordered) // 2) - 1]
    assert sum(result.counts) == len(latencies)
    assert (result.min, result.max) == (ordered[0], ordered[-1])
    assert result.min <= result.p50 <= result.p90 <= result.p95 <= result.p99 <= result.max
    if 1e-4 <= exact < 1e4:
        assert exact * 0.999 <= result.p50 <= exact * 1.123
