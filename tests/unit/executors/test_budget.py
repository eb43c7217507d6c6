"""Budgets: a task stops where its own is spent, over all its shards and attempts; a row, too."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import shard_run
from mloc_dagster.executors.budget import Purse, most_new_tokens, unaffordable_row
from mloc_dagster.executors.engines.protocol import EngineRequest, Replies
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.executors.shard_run import ShardReport, run_shard
from mloc_dagster.planning import Plan
from mloc_dagster.results import (
    InputRow,
    OutputRow,
    Rates,
    ShardSpend,
    ShardWriter,
    Spend,
    TokenRates,
    aggregate_rows,
    open_store,
    read_rows,
    read_spend,
    write_spend,
)
from mloc_dagster.schema import Limits, spec_of
from tests.unit.executors.test_row_reuse import CountingEngine

ROWS = 20
PRICES = {"cost_per_token": {"input": 0.5, "output": 2.0}}


class Task:
    """A task of rows that take two tokens each, in shards."""

    def __init__(self, shards: int, cache: ModelCache, rows: int = ROWS, **spec: Any) -> None:
        items = [f"word{index}" for index in range(rows)]
        given = {"taskType": "echo", "data": {"type": "list", "items": items}, **spec}
        self.spec: Any = spec_of(given)
        self.cache = cache
        self.folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
        self.plan: Plan = spool_input("t", self.spec.data, self.folder, shards, 7, {})

    def run(self, shard: int = 0, **more: Any) -> ShardReport:
        return run_shard(
            *(self.folder, "t", self.spec, self.plan, self.plan.shards[shard]),
            **{"attempt": 1, "cache": self.cache, "cancelled": lambda: False, **more},
        )

    def outcome(self) -> tuple[int, list[OutputRow]]:
        rows = list(read_rows(self.folder))
        return sum(row.error is None for row in rows), [row for row in rows if row.error]

    def reached(self) -> str:
        summary = aggregate_rows(
            *(self.folder, self.plan),
            model="echo",
            worker_id="w",
            started_at=datetime.now(UTC),
            rates=Rates.of(self.spec.resources),
            limits=self.spec.budget,
        )
        assert summary.ok, "what was left out counts for no error budget"
        return str(summary.budget or "")


@pytest.fixture
def cache() -> Iterator[ModelCache]:
    cache = ModelCache(1)
    yield cache
    cache.clear()


def test_no_row_is_begun_once_the_budget_is_spent(cache: ModelCache) -> None:
    task = Task(1, cache, budget={"tokens": 9})
    report = task.run()
    computed, left_out = task.outcome()
    assert (computed, len(left_out)) == (5, ROWS - 5), "ten tokens: nine are less than five rows"
    assert {(row.error, row.fault) for row in left_out} == {
        ("not computed: the task's budget of 9 tokens was spent", "budget")
    }
    assert (report.errors, report.rows_computed) == (ROWS - 5, ROWS)
    assert task.reached() == f"budget reached: tokens 10 of 9 after 5 of {ROWS} rows"


def test_a_budget_that_is_enough_changes_nothing(cache: ModelCache) -> None:
    task = Task(2, cache, budget={"tokens": 1000, "cost": 1000, "seconds": 1000}, resources=PRICES)
    task.run(0)
    task.run(1)
    assert task.outcome() == (ROWS, [])
    assert task.reached() == ""


def test_shards_share_one_budget(cache: ModelCache) -> None:
    task = Task(4, cache, budget={"cost": 15}, resources=PRICES)
    for shard in (2, 0, 3, 1):
        task.run(shard)
    assert task.outcome()[0] == 6, "2.5 a row"
    assert task.reached() == f"budget reached: cost 15 of 15 after 6 of {ROWS} rows"


def test_what_is_spent_stays_spent(cache: ModelCache) -> None:
    task = Task(2, cache, budget={"tokens": 12})
    task.run(0)
    task.run(1)
    again = task.run(1, attempt=2)
    assert (again.rows_computed, again.rows_resumed) == (0, ROWS // 2)
    for shard in (0, 1):
        task.run(shard, attempt=3, retry_errors=True)
    assert task.outcome()[0] == 6


def test_a_successor_counts_what_part_files_hold(cache: ModelCache) -> None:
    task = Task(1, cache, budget={"tokens": 12})
    shard = task.plan.shards[0]
    with ShardWriter(task.folder, shard, 1, flush_rows=9, flush_interval_s=9) as writer:
        for index in range(4):
            writer.write(OutputRow(index, "p", "o", prompt_tokens=1, completion_tokens=1))
    # The worker was killed: rows that its note knows of were not on the store yet.
    write_spend(task.folder, shard, ShardSpend(Spend(prompt_tokens=500)))
    task.run(attempt=2)
    assert task.outcome()[0] == 6
    note = read_spend(task.folder, shard)
    assert note is not None
    assert note.spend.tokens == 12


def test_rows_of_shards_without_a_note_are_counted(cache: ModelCache) -> None:
    task = Task(2, cache, budget={"tokens": 12})
    with ShardWriter(task.folder, task.plan.shards[1], 1, flush_rows=9, flush_interval_s=9) as to:
        to.write(OutputRow(ROWS - 1, "p", "o", prompt_tokens=6, completion_tokens=4))
        to.write(OutputRow(ROWS - 2, "p", "o", prompt_tokens=6, completion_tokens=4, reused="task"))
    task.run(0)
    assert task.outcome()[0] == 3, "ten are spent on one of the two, and the other cost nothing"


def test_workers_hear_of_each_other(cache: ModelCache) -> None:
    task = Task(2, cache)
    mine, other = task.plan.shards
    began_s = datetime.now(UTC).timestamp()
    with Purse(
        *(task.folder, task.plan, mine, Limits(tokens=100), Rates()),
        began_s=began_s,
        log=print,
        share_every_s=0.01,
    ) as purse:
        assert purse.reached() == ""
        purse.add(OutputRow(0, "p", prompt_tokens=40))
        write_spend(task.folder, other, ShardSpend(Spend(completion_tokens=60)))
        heard = threading.Event()
        while not purse.reached():
            heard.wait(0.01)
        assert purse.spent().tokens == 100
    told = read_spend(task.folder, mine)
    assert told is not None
    assert told.spend.tokens == 40


def test_seconds_are_those_in_which_some_shard_was_at_work(cache: ModelCache) -> None:
    task = Task(2, cache)
    mine, other = task.plan.shards
    began_s = datetime.now(UTC).timestamp()
    spans = [(began_s - 100, began_s - 60), (began_s - 80, began_s - 50)]
    write_spend(task.folder, other, ShardSpend(Spend(), spans))
    limits = Limits(seconds=1000)
    with Purse(task.folder, task.plan, mine, limits, Rates(), began_s=began_s, log=print) as purse:
        assert 50 <= purse.spent().seconds < 200
        assert purse.reached() == ""
    spent = Task(1, cache, budget={"seconds": 0.001}, echo={"delay_s": 0.01})
    spent.run()
    computed, left_out = spent.outcome()
    assert computed <= 1
    assert left_out[-1].error == "not computed: the task's budget of 0.001 seconds was spent"


def test_no_model_is_loaded_for_a_budget_that_is_spent(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache
) -> None:
    task = Task(2, cache, budget={"tokens": 2})
    task.run(0)

    def executor(_: str) -> Any:
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr(shard_run, "task_executor", executor)
    task.run(1)
    assert task.outcome()[0] == 1


class Endless(CountingEngine):
    """Answers three rows, and works on all others until it is stopped."""

    def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
        for request in list(requests)[:3]:
            self._answer(request, replies)
        while not replies.cancelled():
            pass
        raise TaskCancelled("stopped between two steps")


class Executor(InferenceExecutor):
    def load(self, spec: Any) -> Any:
        return Endless()


def model_task(cache: ModelCache, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> Task:
    monkeypatch.setattr(shard_run, "task_executor", lambda _: Executor())
    source = {"type": "local", "identifier": "/dev/null"}
    return Task(
        1, cache, taskType="inference", model={"source": source}, inference={"n": 1}, **spec
    )


def test_rows_in_an_engine_are_ended(monkeypatch: pytest.MonkeyPatch, cache: ModelCache) -> None:
    task = model_task(cache, monkeypatch, budget={"tokens": 3})
    task.run()
    computed, left_out = task.outcome()
    assert (computed, len(left_out)) == (3, ROWS - 3)
    assert {row.fault for row in left_out} == {"budget"}


def test_who_cancels_a_task_cancels_it(monkeypatch: pytest.MonkeyPatch, cache: ModelCache) -> None:
    task = model_task(cache, monkeypatch, budget={"tokens": 10_000})
    done: list[OutputRow] = []
    with pytest.raises(TaskCancelled):
        task.run(on_rows=done.append, cancelled=lambda: len(done) == 3)
    assert task.outcome() == (3, [])


def test_rows_that_cannot_be_read_keep_their_own_error() -> None:
    unread = unaffordable_row(InputRow(3, "", error="row 3 is no JSON"), "not computed", Spend())
    assert (unread.error, unread.fault) == ("row 3 is no JSON", "")


PRICED = Rates(tokens=TokenRates(input=0.5, output=2.0, cached=0.1))


@pytest.mark.parametrize(
    ("limits", "prompt", "room"),
    [
        ({}, 10, None),
        ({"tokens": 12}, 10, 2),
        ({"tokens": 10}, 10, 0),
        ({"cost": 11}, 10, 3),
        ({"cost": 11, "tokens": 11}, 10, 1),
        ({"seconds": 3}, 10, None),
    ],
)
def test_what_a_row_may_write(limits: dict[str, Any], prompt: int, room: int | None) -> None:
    assert most_new_tokens(Limits.model_validate(limits), PRICED, prompt) == room


def test_a_price_in_binary_takes_no_token_away() -> None:
    rates = Rates(tokens=TokenRates(input=0.1, output=0.1, cached=0.1))
    assert most_new_tokens(Limits(cost=0.3), rates, 0) == 3


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (
            {"tokens": 9},
            "the prompt's 10 tokens are more than the row may spend (budget.per_row.tokens: 9)",
        ),
        (
            {"cost": 4},
            "the prompt's 10 tokens cost 5 are more than the row may spend "
            "(budget.per_row.cost: 4)",
        ),
    ],
)
def test_a_prompt_that_is_too_long_by_itself(limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        most_new_tokens(Limits.model_validate(limits), PRICED, 10)


def test_rows_of_an_engine_write_no_more_than_they_may(
    monkeypatch: pytest.MonkeyPatch, cache: ModelCache
) -> None:
    written: list[tuple[int, int]] = []

    class Noting(CountingEngine):
        def _answer(self, request: EngineRequest, replies: Replies) -> None:
            assert request.sampling is not None
            written.append((len(request.tokens), request.sampling.max_tokens))
            super()._answer(request, replies)

    task = model_task(cache, monkeypatch, budget={"per_row": {"tokens": 30}})
    monkeypatch.setattr(Executor, "load", lambda *_: Noting())
    task.run()
    assert set(written) == {(5, 25), (6, 24)}
    task = model_task(cache, monkeypatch, budget={"per_row": {"tokens": 5}})
    task.run()
    _, failed = task.outcome()
    assert {row.error for row in failed} == {
        "the prompt leaves no token for an answer that the row may spend",
        "the prompt's 6 tokens are more than the row may spend (budget.per_row.tokens: 5)",
    }
    assert not any(row.fault for row in failed)


def test_echoed_rows_keep_to_their_limits(cache: ModelCache) -> None:
    cut = Task(1, cache, rows=1, budget={"per_row": {"tokens": 4}}, echo={"output_tokens": 9})
    cut.run()
    (row,) = read_rows(cut.folder)
    assert (row.output, row.finish_reason, row.completion_tokens) == (
        "word0 word0 word0",
        "length",
        3,
    )
    slow = Task(1, cache, rows=1, budget={"per_row": {"seconds": 0.01}}, echo={"delay_s": 60})
    slow.run()
    _, (late,) = slow.outcome()
    assert late.error == "ended after the 0.01 s that a row may take (budget.per_row.seconds)"
