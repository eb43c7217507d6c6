"""What a shard stamps on its rows: GPU seconds, whose fault an error is, and when it began."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.executors import shard_run
from mloc_dagster.executors.engines.protocol import EngineRequest, Replies
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.executors.shard_run import run_shard
from mloc_dagster.results import (
    Folder,
    OutputRow,
    ServerFault,
    ShardWriter,
    list_parts,
    open_store,
    read_plan,
    read_rows,
)
from mloc_dagster.schema import InferenceSpec
from tests.unit.executors.test_row_reuse import CountingEngine


class Engine(CountingEngine):
    def __init__(self, device: str | None) -> None:
        super().__init__()
        self.device = device  # type: ignore[assignment]

    def _answer(self, request: EngineRequest, replies: Replies) -> None:
        if "deadly" in request.rendered.text:
            replies.failed(request, ServerFault("this row breaks the engine"))
        else:
            super()._answer(request, replies)


class Executor(InferenceExecutor):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, spec: Any) -> Any:
        return self._engine


@pytest.fixture
def cache() -> Iterator[ModelCache]:
    cache = ModelCache(1)
    yield cache
    cache.clear()


def spec_of(prompts: list[str], **changes: object) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {"source": {"type": "local", "identifier": os.devnull}},
            "data": {"type": "list", "items": prompts},
            "inference": {"temperature": 0},
            **changes,
        }
    )


def ran(
    monkeypatch: pytest.MonkeyPatch,
    cache: ModelCache,
    prompts: list[str],
    device: str | None = "cpu",
    **changes: object,
) -> tuple[Folder, list[OutputRow], datetime]:
    monkeypatch.setattr(shard_run, "task_executor", lambda _: Executor(Engine(device)))
    spec = spec_of(prompts, **changes)
    assert spec.data is not None
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    plan = spool_input("t", spec.data, folder, 1, 7, {})
    report = run_shard(
        *(folder, "t", spec, plan, plan.shards[0]),
        attempt=1,
        cache=cache,
        cancelled=lambda: False,
    )
    return folder, list(read_rows(folder)), report.started_at


@pytest.mark.parametrize(
    ("device", "gpus"), [("cpu", 0), ("cuda:0", 1), ("cuda:0-3", 4), ("cuda", 1)]
)
def test_gpu_seconds_are_those_of_the_gpus_that_the_model_is_on(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache, device: str, gpus: int
) -> None:
    _, rows, _ = ran(monkeypatch, cache, ["one", "two", "one"], device)
    assert [row.engine_s for row in rows] == [0.25, 0.25, 0.0]
    assert [row.gpu_s for row in rows] == [0.25 * gpus, 0.25 * gpus, 0.0]


def test_an_executor_that_does_not_say_where_it_runs_has_what_was_asked_for() -> None:
    rows: list[OutputRow] = []
    spec: Any = SimpleNamespace(
        enforce_cpu=False,
        resources=SimpleNamespace(hardware=SimpleNamespace(gpu=SimpleNamespace(count=2))),
    )
    shard_run._counting_gpus(rows.append, spec, object())(OutputRow(0, "p", engine_s=1.5))
    assert rows[0].gpu_s == 3.0


def test_an_engine_that_breaks_is_no_fault_of_the_row(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache
) -> None:
    _, rows, _ = ran(monkeypatch, cache, ["fine", "deadly", "broken", "deadly"])
    assert [(row.error, row.fault) for row in rows] == [
        (None, ""),
        ("this row breaks the engine", "server"),
        ("the engine cannot digest this", ""),
        ("this row breaks the engine", "server"),
    ]


def test_part_files_say_when_their_attempt_began(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache
) -> None:
    folder, _, started_at = ran(monkeypatch, cache, ["one"])
    (part,) = list_parts(folder)
    assert part.span is not None
    began, written = part.span
    assert began == round(started_at.timestamp() * 1000)
    assert began <= written


def test_the_time_of_an_attempt_begins_before_its_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache
) -> None:
    loading = threading.Event()

    def load(executor: Executor, _: object) -> object:
        loading.wait(0.2)
        return executor._engine

    monkeypatch.setattr(Executor, "load", load)
    folder, _, _ = ran(monkeypatch, cache, ["one"])
    (part,) = list_parts(folder)
    assert part.span is not None
    assert part.span[1] - part.span[0] >= 200


def test_a_damaged_part_is_named_and_its_rows_are_computed_again(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache
) -> None:
    folder, rows, _ = ran(monkeypatch, cache, ["one", "two"])
    (part,) = list_parts(folder)
    folder.write_bytes(part.name, folder.read_bytes(part.name).replace(b"ONE", b"0NE"))
    plan = read_plan(folder)
    assert plan is not None
    warnings: list[str] = []
    report = run_shard(
        *(folder, "t", spec_of(["one", "two"]), plan, plan.shards[0]),
        attempt=1,
        cache=cache,
        cancelled=lambda: False,
        on_damaged=warnings.append,
    )
    assert (report.rows_resumed, report.rows_computed) == (0, 2)
    assert [row.output for row in read_rows(folder)] == [row.output for row in rows]
    assert [part.name in warning for warning in warnings] == [True]
    assert "rows 0 to 1" in warnings[0]


def test_attempts_count_over_all_runs(monkeypatch: pytest.MonkeyPatch, cache: ModelCache) -> None:
    folder, rows, _ = ran(monkeypatch, cache, ["one", "two"])
    plan = read_plan(folder)
    assert plan is not None
    folder.delete(list_parts(folder)[0].name)
    with ShardWriter(
        folder, plan.shards[0], 1, flush_rows=9, flush_interval_s=60, began=datetime.now(UTC)
    ) as writer:
        writer.write(rows[0])  # the first run was killed behind it
    report = run_shard(
        *(folder, "t", spec_of(["one", "two"]), plan, plan.shards[0]),
        attempt=1,
        cache=cache,
        cancelled=lambda: False,
    )
    assert report.attempt == 2
    assert [row.attempt for row in read_rows(folder)] == [1, 2]
