"""Agents over the scripted engine: the loop, its limits, and steps that are not done twice."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mloc_dagster.data import open_training_rows
from mloc_dagster.errors import DataError, TaskCancelled, TransientError
from mloc_dagster.executors import AgentExecutor, ShardContext, ShardInput
from mloc_dagster.planning import Plan, Shard, cut_shards
from mloc_dagster.results import (
    Folder,
    InputRow,
    Journal,
    Message,
    OutputRow,
    ShardWriter,
    open_store,
    read_examples,
    write_plan,
)
from mloc_dagster.schema import AgentSpec, SftSpec, TrainingData
from mloc_dagster.tools import ObservedToolset, idempotency_key

SHARD = Shard(task_id="t", index=0, total=1, start=0, stop=1)
CALL = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}
ANSWER = {"text": "It is {result}."}


WRITE = {"tool_calls": [{"name": "write", "arguments": {"text": "{prompt}"}}]}


class Tools:
    """What the agents of a test may call, and what they called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.keys: list[str] = []
        self.effects = {"write": "write", "wait": "idempotent"}
        self.outcome: Callable[[str], Awaitable[str | None]] | None = None
        self.on_write: Callable[[str], object] = lambda text: None
        self.hold = threading.Event()
        self.hold.set()

    def add(self, a: int, b: int) -> int:
        """Adds two numbers."""
        self.calls.append(f"add {a} {b}")
        return a + b

    def fail(self) -> str:
        """Fails."""
        self.calls.append("fail")
        raise RuntimeError("the disk is full")

    async def wait(self) -> str:
        """Waits until the test says so."""
        self.calls.append("wait")
        while not self.hold.is_set():
            await asyncio.sleep(0.01)
        return "waited"

    def write(self, text: str) -> str:
        """Changes something."""
        self.calls.append(f"write {text}")
        self.keys.append(idempotency_key())
        self.on_write(text)
        return "written"

    @asynccontextmanager
    async def opened(self, tools: object, **_: object) -> AsyncIterator[list[Any]]:
        from pydantic_ai.toolsets import FunctionToolset

        toolset: Any = FunctionToolset()
        for each in (self.add, self.fail, self.wait, self.write):
            effect = self.effects.get(each.__name__, "read")
            toolset.add_function(each, metadata={"effect": effect})
        yield [ObservedToolset(toolset, outcome=self.outcome)]


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    found = Tools()
    monkeypatch.setattr("mloc_dagster.executors.agent.executor.open_toolsets", found.opened)
    return found


@pytest.fixture
def folder() -> Folder:
    return open_store(f"memory://{uuid.uuid4().hex}").task("t")


def spec(
    turns: list[dict[str, Any]], agent: dict[str, Any] | None = None, **more: Any
) -> AgentSpec:
    return AgentSpec.model_validate(
        {
            "taskType": "agent",
            "data": {"type": "list", "items": ["?"]},
            "model": {"source": {"identifier": "scripted"}, "scripted": {"turns": turns}},
            "agent": {"tools": [{"entry_point": "calculator"}], **(agent or {})},
            **more,
        }
    )


class Attempt:
    """One attempt at a shard."""

    def __init__(self, folder: Folder, asked: AgentSpec, rows: list[Any], attempt: int = 1) -> None:
        self._folder, self._spec, self._attempt = folder, asked, attempt
        self._rows = [
            each if isinstance(each, InputRow) else InputRow(index, each)
            for index, each in enumerate(rows)
        ]
        self.cancelled = threading.Event()
        self.rows: dict[int, OutputRow] = {}

    def run(self) -> dict[int, OutputRow]:
        def emit(row: OutputRow) -> None:
            assert row.index not in self.rows
            self.rows[row.index] = row

        shard = Shard(task_id="t", index=0, total=1, start=0, stop=len(self._rows))
        given = ShardInput("t", 0, self._attempt, 7, iter(self._rows), len(self._rows))
        engine = AgentExecutor().load(self._spec)
        with Journal(self._folder, shard, self._attempt, most=1, interval_s=60) as journal:
            context = ShardContext(
                emit,
                self.cancelled.is_set,
                lambda _: None,
                journal=journal,
                save=self._folder.write_bytes,
            )
            AgentExecutor().run(given, self._spec, engine, context)
        return self.rows


def answers(folder: Folder, asked: AgentSpec, *rows: Any) -> list[OutputRow]:
    found = Attempt(folder, asked, list(rows) or ["What is 1 + 2?"]).run()
    return [found[index] for index in sorted(found)]


def until(answer: Callable[[], Any]) -> None:
    done = threading.Event()
    for _ in range(6000):
        if answer():
            return
        done.wait(0.01)
    raise AssertionError("not within a minute")


def test_a_row_is_carried_to_its_answer(tools: Tools, folder: Folder) -> None:
    (row,) = answers(folder, spec([{**CALL, "reasoning": "I add"}, ANSWER]))
    assert (row.output, row.finish_reason, row.stop) == ("It is 3.", "completed", "answer")
    assert row.steps == 2
    assert row.error is None
    assert row.tool_calls is not None
    assert [call.function.name for call in row.tool_calls] == ["add"]
    assert row.prompt == "What is 1 + 2?"
    assert row.reasoning_tokens == 2
    assert tools.calls == ["add 1 2"]


def test_rows_are_worked_on_at_the_same_time(tools: Tools, folder: Folder) -> None:
    tools.hold.clear()
    turns = [{"tool_calls": [{"name": "wait"}]}, ANSWER]
    attempt = Attempt(folder, spec(turns, {"concurrency": 5}), [f"row {n}" for n in range(8)])
    thread = threading.Thread(target=attempt.run)
    thread.start()
    until(lambda: len(tools.calls) == 5)
    assert attempt.rows == {}
    tools.hold.set()
    thread.join()
    assert len(attempt.rows) == len(tools.calls) == 8


def test_a_chat_is_gone_on_with(tools: Tools, folder: Folder) -> None:
    chat = [Message("system", "Be brief."), Message("user", "1 + 2?"), Message("assistant", "3"),
            Message("user", "Sure?")]  # fmt: skip
    # The chat has an answer already: the second turn of the script is the first one here.
    (row,) = answers(folder, spec([CALL, {"text": "Yes: {prompt}"}]), chat)
    assert row.output == "Yes: Sure?"
    assert row.prompt == chat


def test_a_failing_tool_is_an_observation(tools: Tools, folder: Folder) -> None:
    (row,) = answers(folder, spec([{"tool_calls": [{"name": "fail"}]}, ANSWER]))
    assert row.output == "It is Error: RuntimeError: the disk is full."
    assert row.error is None


def test_so_is_what_a_tool_says_went_wrong(folder: Folder) -> None:
    call = {"name": "calculator", "arguments": {"expression": "1/0"}}
    (row,) = answers(folder, spec([{"tool_calls": [call]}, ANSWER]))  # with the real tool
    assert row.output == "It is Error: ValueError: '1/0' divides by zero."
    (steps,) = Journal(folder, SHARD, 2, most=1, interval_s=60).take_over().values()
    assert [each.failed for each in steps.results.values()] == [True]


@pytest.mark.parametrize(
    "call", [{"name": "nothing"}, {"name": "add", "arguments": {"a": "x", "b": 1}}]
)
def test_a_wrong_call_is_told_to_the_model(
    tools: Tools, folder: Folder, call: dict[str, Any]
) -> None:
    (row,) = answers(folder, spec([{"tool_calls": [call]}, CALL, ANSWER]))
    assert row.output == "It is 3."
    assert row.steps == 3
    assert tools.calls == ["add 1 2"]


def test_a_model_that_only_calls_wrongly_ends_its_row(tools: Tools, folder: Folder) -> None:
    (row,) = answers(folder, spec([{"tool_calls": [{"name": "nothing"}]}], {"retries": 1}))
    assert (row.finish_reason, row.stop) == ("failed", "error")
    assert "does not come to an answer" in (row.error or "")


@pytest.mark.parametrize(
    ("limit", "stop", "steps"),
    [
        ({"max_steps": 2}, "max_steps", 3),
        ({"budget": {"tool_calls": 2}}, "budget", 4),
        ({"budget": {"tokens": 1}}, "budget", 2),
    ],
)
def test_at_a_limit_the_model_is_asked_for_an_answer(
    tools: Tools, folder: Folder, limit: dict[str, Any], stop: str, steps: int
) -> None:
    (row,) = answers(folder, spec([{**CALL, "text": "So far {result}"}], limit))
    assert (row.stop, row.finish_reason, row.error) == (stop, "completed", None)
    assert row.steps == steps
    assert row.output == "So far 3"


def test_a_row_may_take_as_many_steps_as_its_template_says(tools: Tools, folder: Folder) -> None:
    (row,) = answers(folder, spec([*[CALL] * 60, ANSWER], {"max_steps": 61}))
    assert (row.stop, row.error, row.steps) == ("answer", None, 61)


def test_or_the_row_fails_if_the_template_says_so(tools: Tools, folder: Folder) -> None:
    (row,) = answers(folder, spec([CALL], {"max_steps": 2, "on_limit": "fail"}))
    assert (row.stop, row.finish_reason) == ("max_steps", "failed")
    assert row.error == "no answer in 2 steps"


def test_a_row_that_takes_too_long_ends(tools: Tools, folder: Folder) -> None:
    tools.hold.clear()
    asked = spec([{"tool_calls": [{"name": "wait"}]}], {"timeout": 0.2})
    (row,) = answers(folder, asked)
    assert (row.stop, row.error) == ("timeout", "no answer within 0.2 s")


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


def test_a_final_answer_has_the_form_that_is_asked_for(tools: Tools, folder: Folder) -> None:
    wrong = {"tool_calls": [{"name": "final_result", "arguments": {"sum": "three"}}]}
    right = {"tool_calls": [{"name": "final_result", "arguments": {"sum": 3}}]}
    (row,) = answers(folder, spec([CALL, wrong, right], {"output_schema": SCHEMA}))
    assert row.output == '{"sum":3}'
    assert row.steps == 3


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        ({"structured_outputs": {"json_object": True}}, "agent.output_schema"),
        ({"tools": [{"function": {"name": "add"}}]}, "agent.tools"),
        ({"n": 2}, "one trajectory"),
    ],
)
def test_what_an_agent_says_elsewhere_is_refused(inference: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec([ANSWER], inference=inference)


def test_a_broken_row_ends_with_its_error(tools: Tools, folder: Folder) -> None:
    broken, sound = answers(folder, spec([ANSWER]), InputRow(0, "", error="no such file"), "hi")
    assert broken.error == "no such file"
    assert sound.error is None


def test_a_cancelled_task_ends_at_once(tools: Tools, folder: Folder) -> None:
    tools.hold.clear()
    attempt = Attempt(folder, spec([{"tool_calls": [{"name": "wait"}]}]), ["a", "b"])
    threading.Timer(0.3, attempt.cancelled.set).start()
    with pytest.raises(TaskCancelled):
        attempt.run()
    assert attempt.rows == {}


@pytest.fixture
def interrupted(tools: Tools, folder: Folder) -> Iterator[Callable[[AgentSpec], dict[int, Any]]]:
    """Runs a task whose first attempt is stopped while a tool waits, and then once more."""

    def run(asked: AgentSpec) -> dict[int, OutputRow]:
        tools.hold.clear()
        first = Attempt(folder, asked, ["a", "b"])
        thread = threading.Thread(target=_quietly, args=(first.run,))
        thread.start()
        until(lambda: tools.calls.count("wait") == 2)
        first.cancelled.set()
        thread.join()
        tools.hold.set()
        return Attempt(folder, asked, ["a", "b"], attempt=2).run()

    yield run
    tools.hold.set()


def _quietly(run: Callable[[], object]) -> None:
    with pytest.raises(TaskCancelled):
        run()


def test_steps_of_an_earlier_attempt_are_not_done_again(
    tools: Tools, interrupted: Callable[[AgentSpec], dict[int, OutputRow]]
) -> None:
    note = {"tool_calls": [{"name": "write", "arguments": {"text": "{prompt}"}}]}
    rows = interrupted(spec([note, CALL, {"tool_calls": [{"name": "wait"}]}, ANSWER]))
    assert [rows[index].output for index in (0, 1)] == ["It is waited."] * 2
    assert [rows[index].steps for index in (0, 1)] == [4, 4]
    assert sorted(tools.calls) == [
        *("add 1 2",) * 2, *("wait",) * 4, "write a", "write b"
    ]  # fmt: skip


def test_a_call_that_changes_something_is_never_made_twice(
    tools: Tools, interrupted: Callable[[AgentSpec], dict[int, OutputRow]]
) -> None:
    both = [{"name": "write", "arguments": {"text": "{prompt}"}}, {"name": "wait"}]
    tools_of = {"tool_calls": both}
    rows = interrupted(spec([tools_of, ANSWER]))
    # The writing call was over when the attempt was stopped: its answer is known.
    assert [rows[index].error for index in (0, 1)] == [None, None]
    assert sorted(each for each in tools.calls if each != "wait") == ["write a", "write b"]


def test_a_call_that_changes_something_is_not_cut_off_where_the_worker_lives_on(
    tools: Tools, folder: Folder
) -> None:
    asked = spec([WRITE, ANSWER])
    attempt = Attempt(folder, asked, ["a"])
    tools.on_write = lambda _: attempt.cancelled.set() or threading.Event().wait(0.5)
    with pytest.raises(TaskCancelled):
        attempt.run()
    assert attempt.rows == {}
    (row,) = Attempt(folder, asked, ["a"], attempt=2).run().values()
    assert (row.output, tools.calls) == ("It is written.", ["write a"])


Killed = Callable[..., OutputRow]


@pytest.fixture
def killed(tools: Tools, folder: Folder) -> Killed:
    """Runs a task whose worker is killed in a call that writes, and then once more."""

    def run(asked: AgentSpec) -> OutputRow:
        left: list[str] = []
        tools.on_write = lambda _: left.extend(folder.list(recursive=True))
        Attempt(folder, asked, ["a"]).run()
        for name in set(folder.list(recursive=True)) - set(left):
            folder.delete(name)
        tools.on_write = lambda _: None
        (row,) = Attempt(folder, asked, ["a"]).run().values()
        return row

    return run


def test_a_call_with_an_unknown_outcome_ends_its_row(tools: Tools, killed: Killed) -> None:
    row = killed(spec([CALL, WRITE, ANSWER]))
    assert tools.calls.count("write a") == 1
    assert row.stop == "error"
    assert "outcome unknown" in (row.error or "")


@pytest.mark.parametrize(("outcome", "writes"), [("It was written.", 1), (None, 2)])
def test_unless_the_tool_can_be_asked(
    tools: Tools, killed: Killed, outcome: str | None, writes: int
) -> None:
    asked: list[str] = []

    async def tell(key: str) -> str | None:
        asked.append(key)
        return outcome

    tools.outcome = tell
    row = killed(spec([CALL, WRITE, ANSWER]))
    assert row.output == f"It is {outcome or 'written'}."
    assert tools.calls.count("write a") == writes
    (key,) = {*tools.keys, *asked}  # that of the call, however often it is made
    assert key.startswith("t/0/1/call_")


def test_a_tool_that_cannot_tell_leaves_the_outcome_unknown(tools: Tools, killed: Killed) -> None:
    async def fail(key: str) -> str | None:
        raise RuntimeError("the database is away")

    tools.outcome = fail
    row = killed(spec([WRITE, ANSWER]))
    assert "outcome unknown" in (row.error or "")
    assert "RuntimeError: the database is away" in (row.error or "")


def test_an_idempotent_call_is_made_again_with_the_same_key(tools: Tools, killed: Killed) -> None:
    tools.effects["write"] = "idempotent"
    row = killed(spec([CALL, WRITE, ANSWER]))
    assert row.output == "It is written."
    first, second = tools.keys
    assert first == second


def test_an_engine_that_dies_leaves_calls_to_their_end(
    tools: Tools, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, writing = spec([WRITE, ANSWER]), threading.Event()
    tools.on_write = lambda _: writing.set() or threading.Event().wait(0.3)

    class Lost:
        def __init__(self, replies: Any) -> None:
            self.replies = replies

        def cancelled(self) -> bool:
            if writing.is_set():
                raise TransientError("the engine's process is gone")
            return False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.replies, name)

    kind = type(AgentExecutor().load(asked))
    run = kind.run
    with monkeypatch.context() as patched:
        patched.setattr(kind, "run", lambda self, asked, replies: run(self, asked, Lost(replies)))
        with pytest.raises(TransientError, match="process is gone"):
            Attempt(folder, asked, ["a", "b"]).run()
    rows = Attempt(folder, asked, ["a", "b"], attempt=2).run()
    assert [rows[index].output for index in (0, 1)] == ["It is written."] * 2
    assert sorted(tools.calls) == ["write a", "write b"]


def test_what_breaks_the_loop_is_told_as_it_is(
    tools: Tools, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Journal, "begin", full)
    with pytest.raises(OSError, match="No space left"):
        Attempt(folder, spec([WRITE, ANSWER]), ["a", "b"]).run()


class TestExamples:
    """Trajectories as chats to train on."""

    def examples(self, folder: Folder, asked: AgentSpec, *rows: Any) -> list[dict[str, Any]]:
        found = answers(folder, asked, *rows)
        shards = tuple(cut_shards("t", len(found), 1))
        plan = Plan(
            task_id="t", source="", rows=len(found), data_version="", seed=7, chunks=(),
            shards=shards,
        )  # fmt: skip
        write_plan(folder, plan)
        with ShardWriter(folder, shards[0], 1, flush_rows=9, flush_interval_s=60) as writer:
            for row in found:
                writer.write(row)
        return list(read_examples(folder))

    def test_they_are_what_the_model_saw_and_said(self, tools: Tools, folder: Folder) -> None:
        wrong = {"tool_calls": [{"name": "add", "arguments": {"a": "x", "b": 1}}]}
        asked = spec([wrong, CALL, {"text": "It is {result}."}], {"instructions": "Be exact."})
        (example,) = self.examples(folder, asked, "What is 1 + 2?")
        chat = example["messages"]
        assert [each["role"] for each in chat] == [
            *("system", "user", "assistant", "tool", "assistant", "tool", "assistant")
        ]  # fmt: skip
        told = [each["content"] for each in chat]
        assert told == ["Be exact.", "What is 1 + 2?", "", told[3], "", "3", "It is 3."]
        assert "valid integer" in told[3]
        assert chat[-1] == {"role": "assistant", "content": "It is 3."}
        call = chat[4]["tool_calls"][0]
        assert call["function"] == {"name": "add", "arguments": {"a": 1, "b": 2}}
        assert chat[5]["tool_call_id"] == call["id"]
        assert [each["function"]["name"] for each in example["tools"]] == [
            *("add", "fail", "wait", "write")
        ]  # fmt: skip
        assert (example["steps"], example["stop"], example["output"]) == (3, "answer", "It is 3.")

    def test_a_row_that_several_attempts_worked_on_has_one_chat(
        self, tools: Tools, folder: Folder, interrupted: Callable[[AgentSpec], dict[int, OutputRow]]
    ) -> None:
        asked = spec([CALL, {"tool_calls": [{"name": "wait"}]}, ANSWER])
        interrupted(asked)
        chats = [each["messages"] for each in self.examples(folder, asked, "a", "b")]
        assert [[each["role"] for each in chat] for chat in chats] == [
            ["user", "assistant", "tool", "assistant", "tool", "assistant"]
        ] * 2
        assert tools.calls.count("add 1 2") == 2

    def test_the_request_to_come_to_an_end_is_part_of_it(
        self, tools: Tools, folder: Folder
    ) -> None:
        asked = spec([{**CALL, "text": "So far {result}"}], {"max_steps": 1})
        (example,) = self.examples(folder, asked, "What is 1 + 2?")
        roles = [each["role"] for each in example["messages"]]
        assert roles == ["user", "assistant", "tool", "user", "assistant"]
        assert "No tool can be called" in example["messages"][3]["content"]
        assert example["stop"] == "max_steps"

    def test_a_training_takes_those_for_which_a_condition_holds(
        self, tools: Tools, folder: Folder
    ) -> None:
        asked = spec([CALL, {"text": "{prompt}"}], {"instructions": "Be exact."})
        self.examples(folder, asked, "a", InputRow(1, "", error="no such file"), "c")
        data = TrainingData(node="agent", where='output in ["a", "b"] and steps == 2')
        found = open_training_rows(data, SftSpec.method, {"agent": folder})
        assert found.source == (
            'rows of agent where output in ["a", "b"] and steps == 2 (messages, tools)'
        )
        (row,) = found
        assert row.keys() == {"messages", "tools"}
        assert row["messages"][1]["content"] == "a"
        every = open_training_rows(TrainingData(node="agent"), SftSpec.method, {"agent": folder})
        assert [each["messages"][-1]["content"] for each in every] == ["a", "c"]
        with pytest.raises(DataError, match="stepz"):
            open_training_rows(
                TrainingData(node="agent", where="stepz == 2"), SftSpec.method, {"agent": folder}
            )
