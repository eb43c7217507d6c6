"""A task in planned order gives the rows of one in input order, whatever happens on the way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.errors import TaskCancelled, TerminalError
from mloc_dagster.executors import (
    ModelCache,
    RowGate,
    ShardContext,
    ShardInput,
    plan_input,
    run_shard,
)
from mloc_dagster.planning import Plan
from mloc_dagster.results import (
    UNPRICED,
    Folder,
    InputRow,
    OutputRow,
    export_rows,
    open_store,
    read_rows,
)
from mloc_dagster.schema import spec_of

ROWS = 60
PROMPTS = [f"prefix {number * 7 % 5} question {number % 40}" for number in range(ROWS)]


class Planned:
    """An echo task under one of the strategies."""

    def __init__(self, root: Path, strategy: str | None, **changes: Any) -> None:
        self.folder: Folder = open_store(str(root)).task(f"by-{strategy}")
        self.spec = self.read(strategy, **changes)
        planning = plan_input(self.spec)
        data = self.spec.data
        self.plan: Plan = spool_input("t", data, self.folder, 4, 7, {}, planning)
        self.cache = ModelCache(1)

    @staticmethod
    def read(strategy: str | None, **changes: Any) -> Any:
        document = {
            "taskType": "echo",
            "parallel": {"strategy": strategy, "max_shards": 4},
            "data": {"type": "list", "items": PROMPTS},
            **changes,
        }
        return spec_of(document)

    def run(self, shard: int, attempt: int = 1, *, spec: Any = None, **more: Any) -> int:
        report = run_shard(
            self.folder,
            "t",
            spec or self.spec,
            self.plan,
            self.plan.shards[shard],
            attempt=attempt,
            cache=self.cache,
            cancelled=more.pop("cancelled", lambda: False),
            **more,
        )
        return report.rows_computed

    def outputs(self) -> list[tuple[int, object, str, str | None]]:
        return [(r.index, r.prompt, r.output, r.error) for r in read_rows(self.folder)]


def test_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    plain, planned = Planned(tmp_path, None), Planned(tmp_path, "tokens")
    assert plain.plan.windows == ()
    assert planned.plan.windows == (0,)
    for shard in range(4):
        plain.run(shard)
        planned.run(shard)
    assert planned.outputs() == plain.outputs()
    assert [index for index, *_ in planned.outputs()] == list(range(ROWS))
    assert planned.plan.data_version == plain.plan.data_version
    shards = [
        (r.prompt, r.shard)
        for r in export_rows(read_rows(planned.folder), planned.plan, "m", None, UNPRICED)
    ]
    computed_in = {
        row.index: shard.index
        for shard in planned.plan.shards
        for row in read_rows(planned.folder)
        if shard.start <= row.place < shard.stop
    }
    assert [shard for _, shard in shards] == [computed_in[index] for index in range(ROWS)]
    assert len(dict(shards)) == len(set(shards))  # equal prompts share a shard


def test_a_cancelled_attempt_and_the_next_one(tmp_path: Path) -> None:
    plain = Planned(tmp_path, "rows")
    planned = Planned(tmp_path, "tokens", echo={"delay_s": 1e-4})
    stop = threading.Event()
    done: list[int] = []

    def count(row: OutputRow) -> None:
        done.append(row.index)
        if len(done) == 5:
            stop.set()

    with pytest.raises(TaskCancelled):
        planned.run(1, cancelled=stop.is_set, on_rows=count)
    again: list[int] = []
    planned.run(1, 2, on_rows=lambda row: again.append(row.index))
    assert not set(done) & set(again)
    for shard in (0, 2, 3):
        planned.run(shard)
    for shard in range(4):
        plain.run(shard)
    assert planned.outputs() == plain.outputs()


def test_only_rows_with_an_error_are_computed_again(tmp_path: Path) -> None:
    plain = Planned(tmp_path, "rows")
    planned = Planned(tmp_path, "tokens", echo={"poison": [4, 33, 59], "error_budget": 1})
    for shard in range(4):
        plain.run(shard)
        planned.run(shard)
    assert [index for index, _, _, error in planned.outputs() if error] == [4, 33, 59]
    healed = Planned.read("tokens")
    computed = [planned.run(each, 2, spec=healed, retry_errors=True) for each in range(4)]
    assert sum(computed) == 3
    assert planned.outputs() == plain.outputs()


def test_the_gate_refuses_what_a_shard_was_not_given(tmp_path: Path) -> None:
    planned = Planned(tmp_path, "tokens")
    shard = planned.plan.shards[0]
    lines: list[str] = []
    gate = RowGate(
        shard, (), planned=True, task_type="mine", worker="w", attempt=1, log=lines.append
    )
    written: list[OutputRow] = []
    context = ShardContext(gate.emit_to(written.append, None), lambda: False, lines.append)
    rows = gate.watch([(0, InputRow(8, "a")), (1, InputRow(3, "b"))])
    given = ShardInput("t", 0, 1, 7, rows, 2)
    drawn = list(given.rows)
    context.emit(OutputRow(8, "a"))
    assert [(row.index, row.place) for row in written] == [(8, 0)]
    for index in (8, 5):
        with pytest.raises(TerminalError, match=f"gave row {index} to shard 0000"):
            context.emit(OutputRow(index, "x"))
    with pytest.raises(TerminalError, match="ended without row 3 of shard 0000"):
        gate.check_complete()
    assert len(drawn) == 2
