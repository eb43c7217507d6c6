"""What every `FleetEngine` promises of interactive calls, and how a worker answers them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import Caller, InputRow, ModelCache, OutputRow, task_executor
from mloc_dagster.fleet import (
    Call,
    CallServer,
    FailurePiece,
    FleetEngine,
    MemoryFleetEngine,
    Piece,
    ReasoningPiece,
    RedisFleetEngine,
    RowsPiece,
    SignOfLife,
    TextPiece,
    ToolCallPiece,
    connect,
)
from mloc_dagster.results import FunctionCall, ToolCall, ToolCallDelta

ECHO = json.dumps(
    {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "call"},
        "spec": {"taskType": "echo", "data": {"type": "list", "items": ["-"]}},
    }
)


@pytest.fixture(params=["memory", "redis"])
def engine(request: pytest.FixtureRequest) -> Iterator[FleetEngine]:
    if request.param == "memory":
        yield MemoryFleetEngine()
        return
    with closing(RedisFleetEngine(connect(request.getfixturevalue("redis_url")))) as opened:
        yield opened


def call(name: str, *prompts: str, stream: bool = False, document: str = ECHO) -> Call:
    return Call(name, document, [InputRow(at, text) for at, text in enumerate(prompts)], stream)


def pieces_of(engine: FleetEngine, call_id: str) -> list[Piece]:
    """All that a caller hears, up to the end, without signs of life."""
    found: list[Piece] = []
    while not found or not isinstance(found[-1], RowsPiece | FailurePiece):
        found += [
            each for each in engine.take_pieces(call_id, 60) if not isinstance(each, SignOfLife)
        ]
    return found


def test_calls_reach_their_worker_in_their_order(engine: FleetEngine) -> None:
    engine.send_call("w1", call("first", "a"))
    engine.send_call("w2", call("other", "b"))
    engine.send_call("w1", call("second", "c", stream=True))
    assert engine.next_call("w1", 60) == call("first", "a")
    assert engine.next_call("w1", 60) == call("second", "c", stream=True)
    assert engine.next_call("w1", 0.01) is None
    assert engine.next_call("w2", 60) == call("other", "b")


def test_a_worker_that_waits_gets_a_call_at_once(engine: FleetEngine) -> None:
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(engine.next_call, "w1", 60)
        engine.send_call("w1", call("c1", "a"))
        assert waiting.result() == call("c1", "a")


def test_pieces_reach_their_caller_in_their_order(engine: FleetEngine) -> None:
    engine.send_call("w1", call("c1", "a"))
    assert engine.take_pieces("c1", 0.01) == ()
    rows = RowsPiece([OutputRow(index=0, prompt="a", output="ab", logprobs=None)])
    assert engine.give_pieces({"c1": [TextPiece(0, "a"), TextPiece(0, "b")]}) == []
    assert engine.give_pieces({"c1": [rows]}) == []
    assert pieces_of(engine, "c1") == [TextPiece(0, "a"), TextPiece(0, "b"), rows]


def test_thoughts_and_calls_reach_their_caller_as_they_were_given(engine: FleetEngine) -> None:
    engine.send_call("w1", call("c1", "a"))
    given = [
        ReasoningPiece(0, "hm"),
        ToolCallPiece(0, ToolCallDelta(0, "call_1", "lookup", '{"key": ')),
        ToolCallPiece(0, ToolCallDelta(0, arguments='"a"}')),
        RowsPiece([OutputRow(0, "a", tool_calls=[ToolCall("call_1", FunctionCall("lookup", ""))])]),
    ]
    engine.give_pieces({"c1": given})
    assert pieces_of(engine, "c1") == given


def test_a_caller_who_waits_gets_a_piece_at_once(engine: FleetEngine) -> None:
    engine.send_call("w1", call("c1", "a"))
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(engine.take_pieces, "c1", 60)
        engine.give_pieces({"c1": [SignOfLife()]})
        assert list(waiting.result()) == [SignOfLife()]


def test_nobody_is_told_of_a_call_whose_caller_has_gone(engine: FleetEngine) -> None:
    engine.send_call("w1", call("gone", "a"))
    engine.send_call("w1", call("there", "b"))
    engine.hang_up("gone")
    assert engine.next_call("w1", 60) == call("there", "b")
    sent = {"gone": [SignOfLife()], "there": [SignOfLife()]}
    assert list(engine.give_pieces(sent)) == ["gone"]
    assert engine.take_pieces("gone", 0.01) == ()


def test_a_worker_answers(engine: FleetEngine) -> None:
    engine.send_call("w1", call("before", "it starts"))
    with CallServer(engine, "w1", ModelCache(1)):
        engine.send_call("w1", call("c1", "one", "two"))
        engine.send_call("w1", call("c2", "three four", stream=True))
        answers = {each: pieces_of(engine, each) for each in ("before", "c1", "c2")}
    assert texts(answers["before"]) == ["it starts"]
    assert texts(answers["c1"]) == ["one", "two"]
    streamed = [each.text for each in answers["c2"] if isinstance(each, TextPiece)]
    assert "".join(streamed) == "three four"
    assert texts(answers["c2"]) == ["three four"]


def texts(pieces: Sequence[Piece]) -> list[str]:
    last = pieces[-1]
    assert isinstance(last, RowsPiece), last
    return [row.output for row in last.rows]


def test_a_call_that_cannot_be_answered_is_told_why(engine: FleetEngine) -> None:
    with CallServer(engine, "w1", ModelCache(1)):
        engine.send_call("w1", call("c1", "a", document="nonsense"))
        engine.send_call("w1", call("c2", "b"))
        assert isinstance(pieces_of(engine, "c1")[-1], FailurePiece)
        assert texts(pieces_of(engine, "c2")) == ["b"]


class Slow:
    """Answers when it may, or when the caller has gone."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.cancelled = threading.Event()

    def __call__(
        self, rows: Sequence[InputRow], spec: object, model: None, caller: Caller
    ) -> list[OutputRow]:
        self.began.set()
        while not self.may_end.wait(0.01):
            if caller.cancelled():
                self.cancelled.set()
                raise TaskCancelled
        return [OutputRow(each.index, each.prompt, f"{each.prompt}!") for each in rows]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(task_executor("echo"), "answer", slow)
    return slow


def test_a_caller_hears_from_a_worker_that_takes_its_time(engine: FleetEngine, slow: Slow) -> None:
    with CallServer(engine, "w1", ModelCache(1)):
        engine.send_call("w1", call("c1", "a"))
        assert slow.began.wait(60)
        heard: list[Piece] = []
        while len(heard) < 2:
            heard += engine.take_pieces("c1", 60)
        assert heard == [SignOfLife()] * len(heard)
        slow.may_end.set()
        assert texts(pieces_of(engine, "c1")) == ["a!"]


def test_a_worker_that_ends_answers_what_it_has_begun(engine: FleetEngine, slow: Slow) -> None:
    with ThreadPoolExecutor() as threads:
        with CallServer(engine, "w1", ModelCache(1)):
            engine.send_call("w1", call("c1", "a"))
            assert slow.began.wait(60)
            answer = threads.submit(pieces_of, engine, "c1")
            slow.may_end.set()
        assert texts(answer.result()) == ["a!"]


def test_a_worker_stops_when_the_caller_has_gone(engine: FleetEngine, slow: Slow) -> None:
    with CallServer(engine, "w1", ModelCache(1)):
        engine.send_call("w1", call("c1", "a"))
        assert slow.began.wait(60)
        engine.hang_up("c1")
        assert slow.cancelled.wait(60)
