"""Reuse through the whole of a shard's run: failed rows and their duplicates are computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.executors import InferenceExecutor, ModelCache, ShardReport, run_shard, shard_run
from mloc_dagster.results import open_store, read_rows
from tests.unit.executors.test_row_reuse import CountingEngine, make_spec


def test_failed_rows_and_their_duplicates_are_computed_again_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CountingEngine()
    executor: Any = InferenceExecutor()
    monkeypatch.setattr(executor, "load", lambda _: engine)
    monkeypatch.setattr(shard_run, "task_executor", lambda _: executor)
    spec = make_spec(None)
    data = spec.data.model_copy(update={"items": ("broken", "a", "broken", "a")})
    folder = open_store(str(tmp_path)).task("t")
    plan = spool_input("t", data, folder, 1, 7, {})

    def run(attempt: int, *, retry_errors: bool = False) -> ShardReport:
        engine.asked.clear()
        return run_shard(
            folder, "t", spec, plan, plan.shards[0], attempt=attempt, cache=ModelCache(1),
            cancelled=lambda: False, retry_errors=retry_errors,
        )  # fmt: skip

    first = run(1)
    assert (first.rows_computed, first.errors, sorted(engine.asked)) == (4, 2, [0, 1])
    assert run(2).rows_computed == 0
    again = run(3, retry_errors=True)
    assert (again.rows_computed, again.errors, engine.asked) == (2, 2, [0])
    real = engine._answer
    monkeypatch.setattr(engine, "_answer", lambda request, replies: real(_mended(request), replies))
    mended = run(4, retry_errors=True)
    assert (mended.rows_computed, mended.errors, engine.asked) == (2, 0, [0])
    rows = list(read_rows(folder))
    assert [row.error for row in rows] == [None] * 4
    assert [row.reused for row in rows] == ["", "", "task", "task"]


def _mended(request: Any) -> Any:
    from dataclasses import replace

    from mloc_dagster.executors import Rendered

    return replace(request, rendered=Rendered("mended"))
