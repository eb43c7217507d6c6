from __future__ import annotations

from mloc_dagster.ops.metadata import plan_metadata, shard_imbalance
from mloc_dagster.planning import Chunk, Expectation, Plan, ShardLoad, cut_shards
from mloc_dagster.results import UNPRICED, OutputRow, UsageCounter


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

    shown = plan_metadata(a_plan(expected), usage, [2.0, 1.0])

    assert list(shown) == ["plan", "shards"]
    lines = str(shown["plan"].value).splitlines()[2:]
    assert lines == [
        "| slowest shard over the mean | 1.333 | 1.1 |",
        "| padding, share of tokens | 0.1 |  |",
        "| prefix cache hits, share | 0.25 | 0.32 |",
        "| prompt tokens | 80 | 100 |",
        "| output tokens | 10 | 10 |",
    ]
    assert "| 0 | 5 | 60 | 32 | 5 | 110 | 2.00 |" in str(shown["shards"].value)


def test_padding_is_told_of_plans_that_only_counted_rows_too() -> None:
    counter = UsageCounter()
    counter.add(OutputRow(0, "a", prompt_tokens=50, completion_tokens=10, padding_tokens=20))
    usage = counter.result(model="m", wall_s=1.0, rates=UNPRICED)
    shown = plan_metadata(a_plan(None), usage, [2.0])
    assert str(shown["plan"].value).endswith("| padding, share of tokens | 0.25 |  |")


def test_a_resumed_shard_says_nothing_of_the_balance() -> None:
    assert shard_imbalance([2.0, None]) is None
    usage = UsageCounter().result(model="m", wall_s=1.0, rates=UNPRICED)
    assert plan_metadata(a_plan(None), usage, [2.0]) == {}
