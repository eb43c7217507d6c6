"""A row that kills its process ends with an error; a worker that others kill costs none."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.executors import (
    EngineRequest,
    InferenceExecutor,
    ModelCache,
    Replies,
    run_shard,
    shard_run,
)
from mloc_dagster.results import Folder, OutputRow, open_store, read_in_flight, read_plan, read_rows
from mloc_dagster.schema import spec_of
from tests.unit.executors.test_row_reuse import CountingEngine

ROWS = 40
DEATH = 37
POISON = "poison"
SPEC = {
    "taskType": "inference",
    "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}, "engine": "transformers"},
    "inference": {"temperature": 0},
}


class MortalEngine(CountingEngine):
    """Dies with its whole process on a poisoned prompt, or as often as somebody else kills it."""

    def __init__(self, kills: Path) -> None:
        super().__init__(capacity=8)
        self._kills = kills

    def _answer(self, request: EngineRequest, replies: Replies) -> None:
        if POISON in request.rendered.text:
            os._exit(DEATH)
        if request.row.index == 21 and self._kills.exists():
            self._kills.unlink()
            os._exit(DEATH)
        super()._answer(request, replies)


class MortalExecutor(InferenceExecutor):
    def __init__(self, kills: Path) -> None:
        self._kills = kills

    def load(self, spec: Any) -> Any:
        return MortalEngine(self._kills)


def attempt(root: str, kills: str, retry_errors: bool) -> None:
    """One attempt at the only shard, in a process of its own."""
    shard_run.task_executor = lambda _: MortalExecutor(Path(kills))  # type: ignore[assignment]
    folder = open_store(root).task("t")
    plan = read_plan(folder)
    assert plan is not None
    document = {**SPEC, "data": {"type": "list", "items": ["unused"]}}
    spec = spec_of(document)
    run_shard(
        folder,
        "t",
        spec,  # type: ignore[arg-type]
        plan,
        plan.shards[0],
        attempt=1,
        cache=ModelCache(1),
        cancelled=lambda: False,
        retry_errors=retry_errors,
    )


class Shard:
    def __init__(self, root: Path, prompts: list[str]) -> None:
        self.root = root
        self.kills = root / "kills"
        self.folder: Folder = open_store(str(root)).task("t")
        document = {**SPEC, "data": {"type": "list", "items": prompts}}
        spec: Any = spec_of(document)
        self.plan = spool_input("t", spec.data, self.folder, 1, 7, {})

    def run_until_done(self, *, retry_errors: bool = False) -> int:
        """Returns how many workers died on the way."""
        for deaths in range(8):
            process = multiprocessing.get_context("spawn").Process(
                target=attempt, args=(str(self.root), str(self.kills), retry_errors)
            )
            process.start()
            process.join()
            if process.exitcode == 0:
                return deaths
            assert process.exitcode == DEATH
        raise AssertionError("the shard never ends")

    def rows(self) -> list[OutputRow]:
        return list(read_rows(self.folder))

    def failed(self) -> list[int]:
        rows = self.rows()
        assert [row.index for row in rows] == list(range(len(rows)))
        assert all(row.error or row.output == str(row.prompt).upper() for row in rows)
        return [row.index for row in rows if row.error is not None]


@pytest.mark.slow
def test_a_row_that_kills_its_worker_ends_with_an_error_and_the_shard_goes_on(
    tmp_path: Path,
) -> None:
    prompts = [f"row {number}" for number in range(ROWS)]
    prompts[13] = POISON
    shard = Shard(tmp_path, prompts)
    assert shard.run_until_done() <= 3
    assert shard.failed() == [13]
    assert "died twice" in str(shard.rows()[13].error)
    assert shard.rows()[13].fault == "server", "a batch's errors file tells it from a bad request"
    assert read_in_flight(shard.folder, shard.plan.shards[0]) is None


@pytest.mark.slow
def test_equal_rows_are_convicted_together(tmp_path: Path) -> None:
    prompts = [f"row {number}" for number in range(ROWS)]
    prompts[5] = prompts[6] = prompts[ROWS - 1] = POISON
    shard = Shard(tmp_path, prompts)
    assert shard.run_until_done() <= 3
    assert shard.failed() == [5, 6, ROWS - 1]


@pytest.mark.slow
def test_a_worker_that_somebody_kills_costs_no_row(tmp_path: Path) -> None:
    shard = Shard(tmp_path, [f"row {number}" for number in range(ROWS)])
    shard.kills.touch()
    assert shard.run_until_done() == 1
    assert shard.failed() == []
    assert "one at a time" in shard.folder.read_bytes("logs/shard-0000.log").decode()
