from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mloc_dagster.executors import ShardReport
from mloc_dagster.ops.aggregate import plan_metadata, shard_imbalance
from mloc_dagster.planning import Chunk, Expectation, Plan, ShardLoad, cut_shards
from mloc_dagster.results import UNPRICED, OutputRow, UsageCounter


def report(shard: int, seconds: float, resumed: int = 0) -> ShardReport:
    now = datetime.now(UTC)
    return ShardReport.model_construct(
        task_id="t",
        shard=shard,
        attempt=1,
        rows_computed=5,
        rows_resumed=resumed,
        errors=0,
        prompt_tokens=0,
        completion_tokens=0,
        seconds=seconds + 10,
        load_seconds=10.0,
        worker="w",
        engine="e",
        started_at=now,
        finished_at=now,
    )


def a_plan(expected: Expectation | None) -> Plan:
    return Plan(
        task_id="t",
        source="list",
        rows=10,
        data_version="0",
        seed=1,
        chunks=(Chunk(name="input/0", start=0, rows=10),),
        shards=tuple(cut_shards("t", 10, 2)),
        windows=() if expected is None else (0,),
        expected=expected,
    )


def test_what_was_planned_stands_beside_what_was_measured() -> None:
    loads = (
        ShardLoad(prompt_tokens=60, cached_tokens=32, output_tokens=5, cost=110.0),
        ShardLoad(prompt_tokens=40, cached_tokens=0, output_tokens=5, cost=90.0),
    )
    expected = Expectation(
        tokens="counted by X", counted=True, prefill=1, decode=4, block_tokens=16, shards=loads
    )
    counter = UsageCounter()
    counter.add(
        OutputRow(
            0, "a", prompt_tokens=80, completion_tokens=10, cached_tokens=20, padding_tokens=10
        )
    )
    usage = counter.result(model="m", wall_s=1.0, rates=UNPRICED)

    shown = plan_metadata(a_plan(expected), usage, [report(0, 2.0), report(1, 1.0)])

    values = {name: each.value for name, each in shown.items()}
    assert values["shard_imbalance"] == pytest.approx(4 / 3, abs=1e-3)
    assert values["shard_imbalance_planned"] == 1.1
    assert values["prefix_hit_rate"] == 0.25
    assert values["prefix_hit_rate_planned"] == 0.32
    assert values["padding_waste"] == 0.1
    assert values["prompt_tokens_planned"] == 100
    assert "| 0 | 5 | 60 | 32 | 5 | 110 | 2.00 |" in str(values["plan"])


def test_padding_is_told_of_plans_that_only_counted_rows_too() -> None:
    counter = UsageCounter()
    counter.add(OutputRow(0, "a", prompt_tokens=50, completion_tokens=10, padding_tokens=20))
    usage = counter.result(model="m", wall_s=1.0, rates=UNPRICED)
    shown = plan_metadata(a_plan(None), usage, [report(0, 2.0)])
    assert {name: each.value for name, each in shown.items()} == {"padding_waste": 0.25}


def test_a_resumed_shard_says_nothing_of_the_balance() -> None:
    assert shard_imbalance([report(0, 2.0), report(1, 1.0, resumed=3)]) is None
    usage = UsageCounter().result(model="m", wall_s=1.0, rates=UNPRICED)
    assert plan_metadata(a_plan(None), usage, [report(0, 2.0)]) == {}
