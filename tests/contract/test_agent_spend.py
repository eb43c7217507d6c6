"""What agents spend and how far they are: budgets of a row and of the task, and live figures."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import ModelCache, run_shard
from mloc_dagster.planning import Plan
from mloc_dagster.results import OutputRow, Rates, aggregate_rows, open_store, read_rows
from mloc_dagster.schema import AgentSpec, find_task_type
from mloc_dagster.tools import FailedCall
from tests.contract.test_agents import ANSWER, CALL, Tools, spec, tools, until

__all__ = ["tools"]

PRICES = {"cost_per_token": {"input": 0.001, "output": 0.1}}
WAIT = {"tool_calls": [{"name": "wait"}]}
FAIL = {"tool_calls": [{"name": "fail"}]}


@pytest.fixture
def cache() -> Iterator[ModelCache]:
    cache = ModelCache(1)
    yield cache
    cache.clear()


class Task:
    """A task of agents in one shard."""

    def __init__(self, cache: ModelCache, asked: AgentSpec) -> None:
        self.spec, self._cache = asked, cache
        self.folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
        assert asked.data is not None
        self.plan: Plan = spool_input("t", asked.data, self.folder, 1, 7, {})
        self.cancelled = threading.Event()
        self.counts: list[Mapping[str, int]] = []

    def run(self, attempt: int = 1) -> list[OutputRow]:
        run_shard(
            *(self.folder, "t", self.spec, self.plan, self.plan.shards[0]),
            attempt=attempt,
            cache=self._cache,
            cancelled=self.cancelled.is_set,
            on_counts=self.counts.append,
        )
        return list(read_rows(self.folder))

    def summary(self) -> Any:
        report: Any = find_task_type("agent").report
        return aggregate_rows(
            *(self.folder, self.plan),
            model="scripted",
            worker_id="w",
            started_at=datetime.now(UTC),
            rates=Rates.of(self.spec.resources),
            limits=self.spec.budget,
            report=report(self.spec),
        )


def rows_of(*items: str) -> dict[str, Any]:
    return {"data": {"type": "list", "items": list(items)}}


def test_a_row_ends_when_it_has_cost_its_budget(tools: Tools, cache: ModelCache) -> None:
    # A turn writes a token, of 0.1: the third one is not begun.
    limits = {"budget": {"cost": 0.2}, "on_limit": "fail"}
    (row,) = Task(cache, spec([CALL], limits, resources=PRICES)).run()
    assert (row.stop, row.steps, row.output) == ("budget", 2, "")
    assert (row.error or "").endswith("were spent of 0.2 (agent.budget.cost)")
    asked = spec([{**CALL, "text": "So far {result}"}], {"budget": {"cost": 0.2}}, resources=PRICES)
    (row,) = Task(cache, asked).run()
    assert (row.stop, row.output, row.error) == ("budget", "So far 3", None)


def test_what_a_row_has_cost_survives_a_resume(tools: Tools, cache: ModelCache) -> None:
    limits = {"budget": {"cost": 0.2}, "on_limit": "fail"}
    task = Task(cache, spec([CALL, WAIT, CALL], limits, resources=PRICES))
    interrupt(task, tools)
    (row,) = task.run(attempt=2)
    assert (row.stop, row.steps) == ("budget", 2)
    assert tools.calls == ["add 1 2", "wait", "wait"]


def interrupt(task: Task, tools: Tools) -> None:
    """Runs a first attempt until it waits for a tool, and stops it there."""
    tools.hold.clear()
    thread = threading.Thread(target=_stopped, args=(task,))
    thread.start()
    until(lambda: "wait" in tools.calls)
    task.cancelled.set()
    thread.join()
    task.cancelled.clear()
    tools.hold.set()


def _stopped(task: Task) -> None:
    with pytest.raises(TaskCancelled):
        task.run()


def test_the_budget_of_the_task_ends_a_row_in_the_middle(tools: Tools, cache: ModelCache) -> None:
    task = Task(cache, spec([CALL], {"max_steps": 10_000}, budget={"tokens": 60}))
    (row,) = task.run()
    assert row.error == "not finished: the task's budget of 60 tokens was spent"
    spent = row.prompt_tokens + row.completion_tokens
    assert spent >= 60
    summary = task.summary()
    assert summary.ok
    assert str(summary.budget) == f"budget reached: tokens {spent:,} of 60 after 0 of 1 rows"
    assert task.run(attempt=2) == [row], "what is spent stays spent"


def test_what_was_finished_before_is_kept(tools: Tools, cache: ModelCache) -> None:
    # The engine looks for a reason to stop ten times a second: an answer takes longer.
    turns = [CALL, {**ANSWER, "delay_s": 0.3}]
    one = {"concurrency": 1}
    (row,) = Task(cache, spec(turns, one)).run()
    enough = 2 * (row.prompt_tokens + row.completion_tokens) + 1
    task = Task(cache, spec(turns, one, budget={"tokens": enough}, **rows_of(*"????")))
    rows = task.run()
    assert [each.output for each in rows] == ["It is 3.", "It is 3.", "", ""]
    assert [(each.error or "").partition(":")[0] for each in rows] == [
        *("", ""), "not finished", "not computed"
    ]  # fmt: skip
    assert tools.calls == ["add 1 2"] * 4
    assert f"of {enough} after 2 of 4 rows" in str(task.summary().budget)


def test_turns_and_calls_are_told_while_rows_are_worked_on(tools: Tools, cache: ModelCache) -> None:
    task = Task(cache, spec([CALL, FAIL, WAIT, ANSWER]))
    interrupt(task, tools)
    assert task.counts[-1] == {"turns": 3, "tool_calls": 3, "failed_calls": 1}
    told = len(task.counts)
    (row,) = task.run(attempt=2)
    assert task.counts[told] == {"turns": 3, "tool_calls": 3, "failed_calls": 1}
    assert task.counts[-1] == {"turns": 4, "tool_calls": 3, "failed_calls": 1}
    assert (row.steps, row.failed_calls) == (4, 1)
    assert task.summary().counts == task.counts[-1]


def test_a_tool_that_says_that_it_failed_is_noted_as_well(
    tools: Tools, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        """Fails, and says so."""
        return FailedCall("there is no such page")

    monkeypatch.setattr(tools, "fail", fail)
    (row,) = Task(cache, spec([FAIL, ANSWER])).run()
    assert (row.output, row.failed_calls) == ("It is there is no such page.", 1)
