"""What a task took is what its rows took, added up."""

from __future__ import annotations

import io
import json
import uuid
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results.aggregate import aggregate_rows
from mloc_dagster.results.export import export_results
from mloc_dagster.results.rates import UNPRICED, Rates, TokenRates
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.summary import TaskSummary, UsageCounter, usage_by_model
from mloc_dagster.schema import Usage, Usage as UsageSchema

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)
_RATES = Rates(cost_per_hour=3.6)


def usage_of(*rows: OutputRow, rates: Rates = _RATES) -> Usage:
    counter = UsageCounter()
    for row in rows:
        counter.add(row)
    return counter.result(model="tiny", wall_s=2.0, rates=rates)


def test_a_second_of_the_engine_has_gpus_and_a_price() -> None:
    usage = usage_of(
        OutputRow(0, "a", engine_s=1.5, gpu_s=3.0), OutputRow(1, "b", engine_s=0.5, gpu_s=1.0)
    )
    assert (usage.engine_seconds, usage.gpu_seconds, usage.cost) == (2.0, 4.0, 0.002)
    free = usage_of(OutputRow(0, "a", engine_s=1.5), rates=UNPRICED)
    assert (free.engine_seconds, free.gpu_seconds, free.cost) == (1.5, 0.0, None)


def test_tokens_have_prices_of_their_own() -> None:
    rates = Rates(tokens=TokenRates(input=0.5, output=2.0, cached=0.25))
    usage = usage_of(
        OutputRow(0, "a", prompt_tokens=10, completion_tokens=5, cached_tokens=4, engine_s=9),
        OutputRow(1, "a", prompt_tokens=10, completion_tokens=5, reused="task"),
        rates=rates,
    )
    assert usage.cost == 6 * 0.5 + 4 * 0.25 + 5 * 2.0, "nothing for the reused row"


def test_tasks_of_one_model_are_added_up() -> None:
    first = _summary("tiny", OutputRow(0, "a", "o", engine_s=1.5, gpu_s=3.0, prompt_tokens=4))
    other = _summary("large", OutputRow(0, "a", "o", engine_s=9.0), rates=UNPRICED)
    again = _summary("tiny", OutputRow(0, "b", "o", engine_s=0.5, energy_j=7.0, prompt_tokens=5))
    tiny, large = usage_by_model([first, other, again])
    assert (tiny.model, tiny.tasks, tiny.rows, tiny.prompt_tokens) == ("tiny", 2, 2, 9)
    assert (tiny.engine_seconds, tiny.gpu_seconds, tiny.energy_joules) == (2.0, 3.0, 7.0)
    assert tiny.cost == pytest.approx(0.002)
    assert (large.model, large.engine_seconds, large.cost) == ("large", 9.0, None)


def test_nothing_measured_is_not_zero_joules() -> None:
    assert usage_of(OutputRow(0, "a")).energy_joules is None
    measured = usage_of(OutputRow(0, "a"), OutputRow(1, "b", energy_j=2.5), OutputRow(2, "c"))
    assert measured.energy_joules == 2.5


def test_reused_rows_are_counted_by_where_they_come_from() -> None:
    usage = usage_of(
        OutputRow(0, "a", prompt_tokens=10, completion_tokens=5, cached_tokens=4, engine_s=1),
        OutputRow(1, "a", prompt_tokens=10, completion_tokens=5, reused="task", saved_s=1),
        OutputRow(2, "b", prompt_tokens=6, completion_tokens=1, reused="cache", saved_s=0.25),
    )
    assert (usage.reused_rows.task, usage.reused_rows.cache) == (1, 1)
    assert (usage.reused_tokens, usage.saved_seconds) == (22, 1.25)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.num_requests) == (26, 11, 3)
    assert usage.cache_hit_rate == 0.4, "4 of the 10 tokens that were really read"


def test_the_published_schema_knows_every_figure() -> None:
    UsageSchema.model_validate_json(usage_of(OutputRow(0, "a")).model_dump_json())
    assert set(UsageSchema.model_fields) == set(Usage.model_fields)


def test_usage_of_earlier_versions_is_still_read() -> None:
    old = {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "total_tokens": 2,
        "latency_sec": 1.0,
        "num_requests": 1,
    }
    assert Usage.model_validate(old).cost is None


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.one_of(st.none(), st.floats(0, 1000)), st.integers(0, 5000)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_exported_rows_add_up_to_the_task(figures: list[tuple[float, float | None, int]]) -> None:
    rows = [
        OutputRow(
            *(index, "p", "o"),
            engine_s=engine_s,
            gpu_s=2 * engine_s,
            saved_s=engine_s / 2,
            reused="cache",
            energy_j=energy_j,
            cached_tokens=cached,
        )
        for index, (engine_s, energy_j, cached) in enumerate(figures)
    ]
    folder, plan = _written(rows)
    usage = aggregate_rows(
        folder,
        plan,
        model="tiny",
        worker_id="w",
        started_at=_STARTED,
        rates=_RATES,
        now=_STARTED + timedelta(seconds=1),
    ).usage
    export_results(folder, plan, ["parquet", "jsonl"], model="tiny", rates=_RATES)

    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet"))).to_pylist()
    lines = [json.loads(line) for line in folder.read_bytes("responses.jsonl").splitlines()]
    for exported in (table, lines):
        energies = [row["energy_j"] for row in exported if row["energy_j"] is not None]
        assert sum(row["engine_s"] for row in exported) == pytest.approx(
            usage.engine_seconds, abs=1e-6
        )
        assert sum(row["gpu_s"] for row in exported) == pytest.approx(usage.gpu_seconds, abs=1e-6)
        assert sum(row["saved_s"] for row in exported) == pytest.approx(
            usage.saved_seconds, abs=1e-6
        )
        assert sum(row["cost"] for row in exported) == pytest.approx(usage.cost, abs=1e-9)
        assert sum(row["cached_tokens"] for row in exported) == usage.cached_tokens
        assert sum(energies) == pytest.approx(usage.energy_joules or 0, abs=1e-6)
        assert (usage.energy_joules is None) == (not energies)


def _summary(model: str, *rows: OutputRow, rates: Rates = _RATES) -> TaskSummary:
    folder, plan = _written(list(rows))
    return aggregate_rows(
        folder, plan, model=model, worker_id="w", started_at=_STARTED, rates=rates
    )


def _written(rows: list[OutputRow]) -> tuple[Folder, Plan]:
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    plan = Plan(
        task_id="t",
        source="a list",
        rows=len(rows),
        data_version="d" * 64,
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=len(rows)),),
        shards=tuple(cut_shards("t", len(rows), 1)),
    )
    with ShardWriter(folder, plan.shards[0], 1, flush_rows=99, flush_interval_s=60) as writer:
        for row in rows:
            writer.write(row)
    return folder, plan
