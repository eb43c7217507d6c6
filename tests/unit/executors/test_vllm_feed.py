"""Feeding, and finding what breaks an engine, with a model of vLLM's engine in plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Rendered, Replies
from mloc_dagster.executors.engines.vllm.feed import MAX_CULPRITS_AT_FIRST, MAX_RESTARTS, Feed
from mloc_dagster.results import InputRow


@dataclass
class FakeLlm:
    """Answers up to four requests a step; breaks on those it is told to break on."""

    poison: frozenset[int]
    waiting: dict[str, EngineRequest] = field(default_factory=dict)

    def step(self) -> list[Any]:
        batch = list(self.waiting.items())[:4]
        for _, request in batch:
            if request.row.index in self.poison:
                raise RuntimeError("the device is gone")
        for name, _ in batch:
            del self.waiting[name]
        return [SimpleNamespace(request_id=name, finished=True) for name, _ in batch]

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.waiting.pop(name, None)


class FakeEngine:
    def __init__(self, *poison: int) -> None:
        self.poison = frozenset(poison)
        self.capacity = 4
        self.starts = 1
        self.refused = {1000}
        self.llm: Any = FakeLlm(self.poison)

    def add(self, request_id: str, request: EngineRequest) -> None:
        if request.row.index in self.refused:
            raise ValueError("too long")
        self.llm.waiting[request_id] = request

    def completion(
        self, request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
    ) -> Completion:
        return Completion(engine_s=engine_s, latency_s=latency_s)

    def restart(self) -> None:
        self.starts += 1
        self.llm = FakeLlm(self.poison)


@dataclass
class Desk:
    done: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    stop_after: int = 10**9

    told: list[int] = field(default_factory=list)
    """What failed, each time that it was said."""

    def _fail(self, index: int, reason: str) -> None:
        self.told.append(index)
        self.failed[index] = reason

    def replies(self) -> Replies:
        return Replies(
            lambda request, completion: self.done.append(request.row.index),
            lambda request, reason: self._fail(request.row.index, reason),
            lambda: len(self.done) >= self.stop_after,
            self.lines.append,
        )


def requests(*indexes: int) -> Iterator[EngineRequest]:
    for index in indexes:
        yield EngineRequest(InputRow(index, "x"), Rendered("x"), [1])


def test_every_request_ends_once() -> None:
    desk = Desk()

    Feed(FakeEngine(), desk.replies()).run(requests(*range(50), 1000, *range(50, 60)))

    assert sorted(desk.done) == list(range(60))
    assert desk.failed == {1000: "too long"}


@pytest.mark.parametrize("culprits", [(0,), (17,), (3, 4), (0, 29), (5, 11, 12, 28)])
def test_culprits_are_found_and_all_others_answered(culprits: tuple[int, ...]) -> None:
    desk, engine = Desk(), FakeEngine(*culprits)

    Feed(engine, desk.replies()).run(requests(*range(30)))

    assert sorted(desk.done) == [i for i in range(30) if i not in culprits]
    assert desk.failed.keys() == set(culprits)
    assert "RuntimeError: the device is gone" in desk.failed[culprits[0]]
    assert engine.starts <= 1 + 6 * len(culprits)


def test_an_engine_that_breaks_on_every_row_is_not_the_rows_fault() -> None:
    desk, engine = Desk(), FakeEngine(*range(30))

    with pytest.raises(TransientError, match=r"breaks down on every row.*the device is gone"):
        Feed(engine, desk.replies()).run(requests(*range(30)))

    assert engine.starts > MAX_CULPRITS_AT_FIRST
    assert not desk.failed  # a retry, on an engine that works, is to compute them
    assert not desk.done


@pytest.mark.parametrize("culprits", [(0,), (0, 1), (29,)])
def test_culprits_before_any_answer_are_told_once_there_is_one(culprits: tuple[int, ...]) -> None:
    desk, engine = Desk(), FakeEngine(*culprits)

    Feed(engine, desk.replies()).run(requests(*culprits))
    assert desk.failed.keys() == set(culprits)  # the run has ended: nothing speaks for them

    desk = Desk()
    Feed(engine, desk.replies()).run(requests(*culprits, 5))
    assert desk.failed.keys() == set(culprits)
    assert desk.done == [5]


class EngineDeadError(Exception):
    """Named as vLLM's own."""


class MortalEngine(FakeEngine):
    """Dies at the attempts to add, and in the steps, that it is told to (each counted from 0).

    A death outside of a step is found when the next request is added, as with vLLM's process; one
    that is found while a refused request is withdrawn has its place among `aborts`.
    """

    def __init__(
        self,
        *poison: int,
        adds: Iterable[int] = (),
        steps: Iterable[int] = (),
        aborts: Iterable[int] = (),
    ) -> None:
        super().__init__(*poison)
        self._adds, self._steps, self._aborts = set(adds), set(steps), set(aborts)
        self._aborted = -1
        self._added = self._stepped = -1
        self._watch()

    def add(self, request_id: str, request: EngineRequest) -> None:
        self._added += 1
        if self._added in self._adds:
            raise EngineDeadError("see above")
        super().add(request_id, request)

    def restart(self) -> None:
        super().restart()
        self._watch()

    def _watch(self) -> None:
        llm = self.llm
        answer, withdraw = llm.step, llm.abort_request

        def abort(names: list[str]) -> None:
            self._aborted += 1
            if self._aborted in self._aborts:
                raise EngineDeadError("see above")
            withdraw(names)

        def step() -> list[Any]:
            self._stepped += 1
            # Beside a single row nobody could tell such a death from one that the row brings.
            if self._stepped in self._steps and len(llm.waiting) > 1:
                raise EngineDeadError("killed")
            return answer()

        llm.step, llm.abort_request = step, abort


def test_an_engine_found_dead_while_adding_is_started_again() -> None:
    engine, desk = MortalEngine(adds=[7]), Desk()

    Feed(engine, desk.replies()).run(requests(*range(10)))

    assert sorted(desk.done) == list(range(10))
    assert engine.starts == 2


def test_an_engine_that_died_between_two_tasks_costs_no_row() -> None:
    engine, desk = MortalEngine(adds=[0]), Desk()

    Feed(engine, desk.replies()).run(requests(*range(40)))

    assert sorted(desk.done) == list(range(40))
    assert not desk.failed
    assert engine.starts == 2


def test_a_death_that_is_found_within_a_group_of_suspects_drops_none_of_them() -> None:
    # Twelve requests are in the engine at its first breakdown; the group's third add finds it dead.
    engine, desk = MortalEngine(adds=[12 + 2], steps=[0]), Desk()

    Feed(engine, desk.replies()).run(requests(*range(30)))

    assert sorted(desk.done) == list(range(30))
    assert not desk.failed


def test_a_death_that_is_found_while_a_refused_row_is_withdrawn_costs_no_other() -> None:
    engine, desk = MortalEngine(aborts=[0]), Desk()

    Feed(engine, desk.replies()).run(requests(*range(6), 1000, *range(6, 20)))

    assert sorted(desk.done) == list(range(20))
    assert desk.told == [1000]
    assert desk.failed == {1000: "too long"}
    assert engine.starts == 2


def test_the_last_row_of_a_task_is_not_condemned_for_one_death() -> None:
    engine, desk = FakeEngine(), Desk()
    step = engine.llm.step

    def killed_beside_the_last() -> list[Any]:
        if len(engine.llm.waiting) == 1:
            raise EngineDeadError("killed")
        return step()

    engine.llm.step = killed_beside_the_last
    Feed(engine, desk.replies()).run(requests(*range(9)))

    assert sorted(desk.done) == list(range(9))
    assert engine.starts == 2


def test_an_engine_that_is_dead_whenever_it_is_looked_at_is_given_up() -> None:
    engine, desk = MortalEngine(adds=range(1000)), Desk()

    with pytest.raises(TransientError, match=f"broke down {MAX_RESTARTS + 1} times"):
        Feed(engine, desk.replies()).run(requests(*range(10)))

    assert not desk.failed


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(0, 40),
    poison=st.sets(st.integers(0, 39), max_size=2),
    adds=st.sets(st.integers(0, 120), max_size=6),
    steps=st.sets(st.integers(0, 60), max_size=4),
    refused=st.sets(st.integers(0, 39), max_size=3),
    aborts=st.sets(st.integers(0, 5), max_size=3),
)
def test_wherever_the_engine_dies_each_request_ends_once_and_innocent_ones_are_answered(
    count: int,
    poison: set[int],
    adds: set[int],
    steps: set[int],
    refused: set[int],
    aborts: set[int],
) -> None:
    engine, desk = MortalEngine(*poison, adds=adds, steps=steps, aborts=aborts), Desk()
    engine.refused = refused

    Feed(engine, desk.replies()).run(requests(*range(count)))

    failing = poison | refused
    assert sorted(desk.done) == [index for index in range(count) if index not in failing]
    assert sorted(desk.told) == [index for index in range(count) if index in failing]
    for index, reason in desk.failed.items():
        assert reason == "too long" if index in refused else "breaks the engine" in reason


def test_a_cancelled_run_empties_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mloc_dagster.executors.engines.vllm.feed.LOOK_EVERY_S", 0)
    desk, engine = Desk(stop_after=5), FakeEngine()

    with pytest.raises(TaskCancelled):
        Feed(engine, desk.replies()).run(requests(*range(100)))

    assert 5 <= len(desk.done) < 12
    assert not engine.llm.waiting
