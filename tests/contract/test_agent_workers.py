"""Agents as tools: turns of their own on the same engine, none done twice; and replays."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from mloc_dagster.errors import InputError
from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.planning import Chunk, Plan, Shard
from mloc_dagster.results import (
    Folder,
    OutputRow,
    ResultStore,
    Steps,
    journal_steps,
    open_store,
    results_at,
    write_plan,
)
from mloc_dagster.schema import AgentSpec
from tests.contract.test_agents import (
    ANSWER,
    CALL,
    SCHEMA,
    Attempt,
    Killed,
    Tools,
    _quietly,
    answers,
    folder,
    killed,
    spec,
    tools,
    until,
)

__all__ = ["folder", "killed", "tools"]

ADDER = {
    "name": "adder",
    "agent": {
        "description": "Adds numbers.",
        "instructions": "You add.",
        "tools": [{"entry_point": "calculator"}],
    },
}
ASK = {"tool_calls": [{"name": "adder", "arguments": {"task": "Add 1 and 2"}}]}


def planner(
    turns: list[dict[str, Any]], below: list[dict[str, Any]], *, worker: Any = None, **agent: Any
) -> AgentSpec:
    """Returns a task whose agent has a worker, each with its own script."""
    given = {**ADDER, "agent": {**ADDER["agent"], **(worker or {})}}  # pyright: ignore[reportGeneralTypeIssues]
    asked = spec(turns, {"tools": [given], "instructions": "You plan.", **agent})
    scripted = {"turns": turns, "agents": {"You add.": below}}
    return AgentSpec.model_validate(
        {
            **asked.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "model": {"source": {"identifier": "scripted"}, "scripted": scripted},
        }
    )


def steps_of(folder: Folder, index: int = 0) -> Steps:
    return journal_steps(folder, Shard(task_id="t", index=0, total=1, start=0, stop=2))[index]


def test_a_worker_answers_a_call(tools: Tools, folder: Folder) -> None:
    below = [CALL, {"text": "{prompt}: {result}"}]
    (row,) = answers(folder, planner([ASK, {"text": "So {result}"}], below))
    assert row.output == "So Add 1 and 2: 3"
    assert tools.calls == ["add 1 2"]
    # All that was taken for the row is the row's.
    assert row.steps == 4
    assert [each.function.name for each in row.tool_calls or ()] == ["adder", "add"]
    steps = steps_of(folder)
    assert len(steps.turns) == 2
    (worker,) = steps.workers.values()
    read = sum(each.prompt_tokens for each in (*steps.turns.values(), *worker.turns.values()))
    assert row.prompt_tokens == read
    assert [each.output for each in worker.results.values()] == ["3"]
    assert steps.results[0, steps.turns[0].tool_calls[0].id].output == "Add 1 and 2: 3"


def test_workers_of_one_turn_work_at_the_same_time(tools: Tools, folder: Folder) -> None:
    tools.hold.clear()
    asks = [{"name": "adder", "arguments": {"task": f"part {n}"}} for n in range(3)]
    below = [{"tool_calls": [{"name": "wait"}]}, {"text": "{prompt}"}]
    asked = planner([{"tool_calls": asks}, {"text": "{result}"}], below)
    attempt = Attempt(folder, asked, ["go"])
    thread = threading.Thread(target=attempt.run)
    thread.start()
    until(lambda: len(tools.calls) == 3)
    tools.hold.set()
    thread.join()
    assert attempt.rows[0].output == "part 2"
    assert attempt.rows[0].steps == 2 + 3 * 2
    found = steps_of(folder).workers.values()
    assert sorted(each.turns[1].text for each in found) == ["part 0", "part 1", "part 2"]


def test_a_worker_has_a_form_for_its_answer(tools: Tools, folder: Folder) -> None:
    right = {"tool_calls": [{"name": "final_result", "arguments": {"sum": 3}}]}
    asked = planner([ASK, ANSWER], [right], worker={"output_schema": SCHEMA})
    (row,) = answers(folder, asked)
    assert row.output == 'It is {"sum":3}.'


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        ({"max_steps": 1}, "So far 3"),
        ({"max_steps": 1, "on_limit": "fail"}, "Error: no answer in 1 steps"),
        ({"budget": {"tool_calls": 0}, "on_limit": "fail"}, "more than 0 calls"),
        ({"timeout": 0.2}, "Error: no answer within 0.2 s"),
    ],
)
def test_the_end_of_a_worker_is_an_observation(
    tools: Tools, folder: Folder, worker: dict[str, Any], said: str
) -> None:
    tools.hold.clear()
    slow = "timeout" in worker
    call = {"tool_calls": [{"name": "wait"}]} if slow else {**CALL, "text": "So far {result}"}
    (row,) = answers(folder, planner([ASK, {"text": "{result}"}], [call], worker=worker))
    assert (row.error, row.stop) == (None, "answer")
    assert said in row.output


def test_the_budget_of_a_row_holds_for_its_workers(tools: Tools, folder: Folder) -> None:
    (row,) = answers(folder, planner([ASK, ANSWER], [CALL], budget={"tool_calls": 3}))
    # Its own call and two of the worker; the third ends that, and the row is asked to answer.
    assert tools.calls == ["add 1 2"] * 2
    assert row.error is None
    (row,) = answers(folder, planner([ASK, ANSWER], [CALL], budget={"tokens": 5}))
    assert (row.stop, row.error) == ("budget", None)


def test_the_spans_of_a_worker_are_below_its_call(tools: Tools, folder: Folder) -> None:
    answers(folder, planner([ASK, ANSWER], [CALL, ANSWER]))
    (name,) = folder.list("traces", recursive=True)
    request = json.loads(folder.read_bytes(name))
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    names = {each["spanId"]: each["name"] for each in spans}
    assert len(names) == len(spans) == 8
    below = {(each["name"], names.get(each.get("parentSpanId", ""), "")) for each in spans}
    assert ("execute_tool adder", "invoke_agent agent") in below
    assert ("invoke_agent adder", "execute_tool adder") in below
    assert ("chat scripted", "invoke_agent adder") in below
    assert ("execute_tool add", "invoke_agent adder") in below


@pytest.fixture
def held(tools: Tools) -> Iterator[Tools]:
    tools.hold.clear()
    yield tools
    tools.hold.set()


def resumed(tools: Tools, folder: Folder, asked: AgentSpec, waits: int = 1) -> OutputRow:
    """Runs a task whose first attempt is stopped while a tool waits, and then once more."""
    first = Attempt(folder, asked, ["a"])
    thread = threading.Thread(target=_quietly, args=(first.run,))
    thread.start()
    until(lambda: tools.calls.count("wait") == waits)
    first.cancelled.set()
    thread.join()
    tools.hold.set()
    (row,) = Attempt(folder, asked, ["a"], attempt=2).run().values()
    return row


NOTE = {"tool_calls": [{"name": "write", "arguments": {"text": "{prompt}"}}]}
WAIT = {"tool_calls": [{"name": "wait"}]}


def test_a_worker_that_was_cut_off_goes_on_in_the_middle(held: Tools, folder: Folder) -> None:
    row = resumed(held, folder, planner([NOTE, ASK, ANSWER], [NOTE, CALL, WAIT, ANSWER]))
    assert row.output == "It is It is waited.."
    assert row.steps == 3 + 4
    assert held.calls == ["write a", "write Add 1 and 2", "add 1 2", "wait", "wait"]


def test_a_worker_that_is_done_is_not_asked_again(held: Tools, folder: Folder) -> None:
    row = resumed(held, folder, planner([ASK, WAIT, ANSWER], [NOTE, ANSWER]))
    assert held.calls == ["write Add 1 and 2", "wait", "wait"]
    assert row.steps == 3 + 2
    assert row.tool_calls is not None
    assert [each.function.name for each in row.tool_calls] == ["adder", "write", "wait"]


def test_a_workers_call_with_an_unknown_outcome_ends_the_row(tools: Tools, killed: Killed) -> None:
    row = killed(planner([ASK, ANSWER], [NOTE, ANSWER]))
    assert tools.calls == ["write Add 1 and 2"]
    assert "outcome unknown" in (row.error or "")


def test_the_key_of_a_workers_call_tells_whose_it_is(tools: Tools, folder: Folder) -> None:
    answers(folder, planner([NOTE, ASK, ANSWER], [NOTE, ANSWER]))
    own, below = (each.split("/") for each in tools.keys)
    assert own[:3] == ["t", "0", "0"]
    assert (below[:3], below[4]) == (["t", "0", "1"], "0")


def test_what_was_spent_before_counts_after(held: Tools, folder: Folder) -> None:
    asked = planner([ASK, WAIT, CALL, ANSWER], [CALL, ANSWER], budget={"tool_calls": 3})
    row = resumed(held, folder, asked)
    # adder, its add, wait: the fourth call is one too many, as it is without a stop in between.
    assert (row.stop, row.error) == ("budget", None)
    assert held.calls == ["add 1 2", "wait", "wait"]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ({**ADDER, "effect": "read"}, "no effect of its own"),
        (
            {"agent": {"description": "x", "tools": [{"agent": {"description": "y"}}]}},
            "no agents among its own tools",
        ),
        ({"agent": {"instructions": "x"}}, "description"),
        (
            {"name": "calculator", "agent": {"description": "x"}},
            "two tools are called 'calculator'",
        ),
    ],
)
def test_what_no_worker_can_be_is_refused(tool: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spec([ANSWER], {"tools": [tool, {"entry_point": "calculator"}]})


def test_code_that_a_worker_runs_is_the_operators_to_allow() -> None:
    below = {"description": "x", "tools": [{"entry_point": "my_tools.lookup"}]}
    spec_of_task = {"taskType": "agent", "agent": {"tools": [{"agent": below}]}}
    with pytest.raises(OutOfReachError, match=r"agent\.tools\.0\.agent\.tools\.0\.entry_point"):
        Reach("api").check_spec(spec_of_task)


# Replays


@pytest.fixture
def store() -> Iterator[ResultStore]:
    url = f"memory://{uuid.uuid4().hex}"
    with results_at(url):
        yield open_store(url)


def record(store: ResultStore, asked: AgentSpec, *rows: str) -> list[OutputRow]:
    """Runs a task and leaves what a replay needs of it."""
    folder = store.task("old")
    count = len(rows)
    plan = Plan(
        task_id="old",
        source="a list",
        rows=count,
        data_version="d" * 64,
        seed=7,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=count),),
        shards=(Shard(task_id="old", index=0, total=1, start=0, stop=count),),
    )
    write_plan(folder, plan)
    return answers(folder, asked, *rows)


def strict(asked: AgentSpec, task: str = "old") -> AgentSpec:
    given = asked.model_dump(mode="json", by_alias=True, exclude_unset=True)
    given["agent"] |= {"replay": "strict", "recorded": task}
    return AgentSpec.model_validate(given)


def test_a_replay_has_the_recorded_answers_and_calls_no_tool(
    tools: Tools, store: ResultStore
) -> None:
    below = [NOTE, CALL, {"text": "{prompt}: {result}"}]
    asked = planner([ASK, {"tool_calls": [{"name": "fail"}]}, ANSWER], below)
    before = record(store, asked, "one", "two")
    tools.calls.clear()
    after = answers(store.task("new"), strict(asked), "one", "two")
    assert tools.calls == []
    assert [each.output for each in after] == [each.output for each in before]
    assert [each.steps for each in after] == [6, 6]
    assert [each.tool_calls for each in after] == [each.tool_calls for each in before]


def test_only_what_is_called_has_to_be_the_same(tools: Tools, store: ResultStore) -> None:
    record(store, spec([CALL, ANSWER]), "one")
    other = spec([{**CALL, "text": "Let me see", "reasoning": "Hm"}, {"text": "{result}!"}])
    (row,) = answers(store.task("new"), strict(other), "one")
    assert (row.output, row.error) == ("3!", None)


OTHER = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 3}}]}


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([OTHER], 'turn 0 differs: the model calls add {"a": 1, "b": 3}, where the record calls'),
        ([CALL, CALL], 'turn 1 differs: the model calls add {"a": 1, "b": 2}, where the record ma'),
        ([ANSWER], "turn 0 differs: the model makes no call, where the record calls add"),
    ],
)
def test_a_row_ends_at_the_first_turn_that_differs(
    tools: Tools, store: ResultStore, turns: list[dict[str, Any]], said: str
) -> None:
    record(store, spec([CALL, ANSWER]), "one")
    tools.calls.clear()
    (row,) = answers(store.task("new"), strict(spec(turns)), "one")
    assert (row.stop, row.finish_reason) == ("error", "failed")
    assert f"replay of old: {said}" in (row.error or "")
    assert tools.calls == []


def test_a_worker_that_differs_is_named(tools: Tools, store: ResultStore) -> None:
    record(store, planner([ASK, ANSWER], [CALL, ANSWER]), "one")
    (row,) = answers(store.task("new"), strict(planner([ASK, ANSWER], [CALL, OTHER])), "one")
    assert "turn 1 of 'adder', called in turn 0, differs: the model calls add" in (row.error or "")


def test_a_row_that_was_not_recorded_says_so(tools: Tools, store: ResultStore) -> None:
    record(store, spec([CALL, ANSWER]), "one")
    _, row = answers(store.task("new"), strict(spec([CALL, ANSWER])), "one", "two")
    assert "turn 0 differs: the record ends before it" in (row.error or "")


def test_a_replay_goes_on_after_a_stop(
    tools: Tools, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = planner([NOTE, ASK, ANSWER], [NOTE, ANSWER])
    record(store, asked, "one")
    tools.calls.clear()
    first = Attempt(store.task("new"), strict(asked), ["one"])

    def stop(*_: object) -> str:
        first.cancelled.set()
        threading.Event().wait(1.0)
        return "nobody hears of it"

    with monkeypatch.context() as patched:
        patched.setattr("mloc_dagster.executors.agent.replay.Record.answer", stop)
        _quietly(first.run)
    (row,) = Attempt(store.task("new"), strict(asked), ["one"], attempt=2).run().values()
    assert (row.output, row.error) == ("It is It is written..", None)
    assert tools.calls == []


def test_a_replay_of_nothing_is_refused(tools: Tools, store: ResultStore) -> None:
    with pytest.raises(InputError, match="there is no task 'never'"):
        answers(store.task("new"), strict(spec([ANSWER]), "never"), "one")
    with pytest.raises(ValueError, match=r"agent\.recorded"):
        spec([ANSWER], {"replay": "strict"})
    with pytest.raises(ValueError, match="strict"):
        spec([ANSWER], {"recorded": "old"})
