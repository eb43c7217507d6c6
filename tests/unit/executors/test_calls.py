"""Calls: whose turn it is, what may be said of a text, and a model of vLLM's engine in Python."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.base import Caller, ShardContext, ShardInput
from mloc_dagster.executors.calls import answer_call
from mloc_dagster.executors.engines.pieces import Pieces, held_back
from mloc_dagster.executors.engines.protocol import Answer, Completion, EngineRequest, Replies
from mloc_dagster.executors.engines.transformers.generation import cut_at_stop
from mloc_dagster.executors.engines.turn import Ticket, Turn
from mloc_dagster.executors.engines.vllm.calls import Call, Seats, Traffic
from mloc_dagster.executors.engines.vllm.feed import Feed
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.results import (
    FunctionCall,
    InputRow,
    OutputRow,
    ServerFault,
    ToolCall,
    ToolCallDelta,
)
from mloc_dagster.schema import InferenceSpec
from tests.unit.executors.test_row_reuse import CountingEngine
from tests.unit.executors.test_vllm_feed import Desk, FakeEngine, requests

# ── pieces ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "stop", "held"),
    [
        ("abc", [], 0),
        ("abc", ["cd"], 1),
        ("abc", ["bcd", "cx"], 2),
        ("abc", ["abc"], 0),  # found, which is another's business
        ("aa", ["aaa"], 2),
        ("", ["x"], 0),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(text: str, stop: list[str], held: int) -> None:
    assert held_back(text, stop) == held


def said(steps: list[str], whole: str, stop: tuple[str, ...] = (), start: int = 0) -> list[str]:
    heard: list[str] = []
    pieces = Pieces(heard.append, stop)
    for text in steps:
        pieces.grow(text, start)
    pieces.end(whole)
    return heard


def test_halves_of_characters_and_stop_strings_are_never_said() -> None:
    assert said(["a\ufffd", "a\ufffd\ufffd", "aé"], "aé") == ["a", "é"]
    assert said(["on", "one en", "one end"], "one ", ("end",)) == ["on", "e "]
    assert said(["one en", "one enough"], "one enough", ("end",)) == ["one ", "enough"]
    assert said(["end", "end of end"], "end of ", ("end",), start=3) == ["end", " of "]
    assert said(["a\ufffd"], "a\ufffd") == ["a", "\ufffd"]  # an answer may end so


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_pieces_are_the_text_whatever_it_is(text: str, stop: list[str]) -> None:
    sizes = range(1, len(text) + 1)
    # Whoever generates ends with the first token that completes a stop string.
    ends = next((size for size in sizes if any(one in text[:size] for one in stop)), len(text))
    whole, _ = cut_at_stop(text[:ends], stop)
    steps = [text[:size] for size in sizes if size <= ends]
    assert "".join(said(steps, whole, tuple(stop))) == whole


# ── turns ────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("mloc_dagster.executors.engines.turn.time.monotonic", lambda: self.now)


def waits(turn: Turn, ticket: Ticket) -> None:
    """Has a ticket wait, as a thread of its own would."""
    assert not turn.take(ticket, 0)


def ticket(thread: int, *, urgent: bool = False, serves: object = None) -> Ticket:
    return Ticket(urgent, serves, thread)


def test_a_call_is_wanted_between_two_steps_and_a_shard_waits_for_a_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    turn = Turn(0.5)
    shard, other, call = ticket(1), ticket(2), ticket(3, urgent=True)
    assert turn.take(shard)
    clock.now += 60
    waits(turn, other)
    assert not turn.wanted(shard)
    waits(turn, call)
    assert turn.wanted(shard)
    turn.leave(shard)
    assert turn.take(call)
    assert not turn.wanted(call)
    clock.now += 1
    assert turn.wanted(call)  # it has had its share for now
    turn.leave(call)
    assert turn.take(other)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_calls_without_end_have_their_share_of_the_time(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    turn = Turn(share)
    sides = {False: ticket(1), True: ticket(2, urgent=True)}
    used = {False: 0.0, True: 0.0}
    assert turn.take(sides[False])
    waits(turn, sides[True])
    holds = False
    for _ in range(20_000):
        clock.now += 0.01
        used[holds] += 0.01
        if turn.wanted(sides[holds]):
            turn.leave(sides[holds])
            waits(turn, sides[holds])
            holds = not holds
            assert turn.take(sides[holds])
    assert used[True] / sum(used.values()) == pytest.approx(share, abs=0.01)


def test_one_who_serves_calls_is_not_asked_to_give_way_to_them() -> None:
    turn, engine = Turn(0.5), object()
    shard, call = ticket(1, serves=engine), ticket(2, urgent=True, serves=engine)
    assert turn.take(shard)
    waits(turn, call)
    assert not turn.wanted(shard)
    stranger = ticket(3, urgent=True, serves=object())
    waits(turn, stranger)
    assert turn.wanted(shard)


def test_nobody_feeds_an_engine_whose_shard_pauses() -> None:
    turn, engine = Turn(0.5), object()
    shard = Ticket(serves=engine)
    own, stranger = ticket(2, urgent=True, serves=engine), ticket(3, urgent=True, serves=object())
    assert turn.take(shard)
    waits(turn, own)
    waits(turn, stranger)
    paused = threading.Thread(target=lambda: turn.give_way(shard))
    paused.start()
    while not turn.take(stranger, 0.01):
        pass
    turn.leave(stranger)
    paused.join(60)
    assert turn.take(shard)
    turn.leave(shard)
    assert turn.take(own)


def test_a_turn_can_be_taken_again_by_the_thread_that_has_it() -> None:
    turn = Turn(0.5)
    with turn.held(), turn.held() as inner:
        assert not turn.wanted(inner)
    taken = threading.Thread(target=lambda: turn.take(Ticket(), 60))
    taken.start()
    taken.join(60)
    assert not taken.is_alive()


def test_waiting_for_a_turn_can_be_cancelled() -> None:
    turn = Turn(0.5)
    assert turn.take(ticket(1))
    with pytest.raises(TaskCancelled), turn.held(cancelled=lambda: True):
        pass


# ── seats ────────────────────────────────────────────────────────────────────────────────────────


def test_calls_take_their_share_of_the_places_while_rows_wait() -> None:
    seats = Seats(10, 8, 0.3)
    assert seats.for_calls(10, more=True) == 3
    assert seats.for_calls(4, more=False) == 6
    assert seats.for_calls(0, more=False) == 10
    assert seats.for_rows(0, waiting=False, now=0) == 18
    assert seats.for_rows(3, waiting=True, now=1) == 7
    assert seats.for_rows(0, waiting=False, now=2) == 7  # kept for the next call
    assert seats.for_rows(0, waiting=False, now=60) == 18
    assert Seats(10, 8, 1.0).for_calls(10, more=True) == 10
    assert Seats(4, 8, 0.1).for_calls(4, more=True) == 1


def test_a_single_place_goes_to_calls_and_rows_in_turn() -> None:
    seats = Seats(1, 8, 0.5)
    assert seats.for_calls(1, more=True) == 0
    assert seats.for_calls(0, more=True) == 1
    seats.taken(by_call=True)
    assert seats.for_rows(1, waiting=True, now=0) == 0
    assert seats.for_calls(0, more=True) == 0
    assert seats.for_rows(0, waiting=True, now=0) == 1


# ── feeding ──────────────────────────────────────────────────────────────────────────────────────


def put(traffic: Traffic, *indexes: int) -> tuple[Call, Desk]:
    desk = Desk()
    asked = list(requests(*indexes))
    call = Call(asked, desk.replies(), lambda: None)
    traffic.put(call, asked)
    return call, desk


def test_calls_go_before_rows_and_rows_are_answered_once() -> None:
    engine, desk, traffic = FakeEngine(), Desk(), Traffic()
    step = engine.llm.step
    most: list[tuple[int, int]] = []
    calls: list[tuple[Call, Desk]] = []
    rows_done: list[int] = []

    def watched() -> list[Any]:
        if len(desk.done) >= 8 and not calls:
            calls.extend(put(traffic, 100 + number) for number in range(6))
            rows_done.append(len(desk.done))
        most.append((traffic.calls, traffic.rows))
        return step()

    engine.llm.step = watched
    Feed(engine, desk.replies(), traffic).run(requests(*range(60)))

    for call, caller in calls:
        call.listen()
        assert call.ended
        assert len(caller.done) == 1
    assert sorted(desk.done) == list(range(60))
    assert max(number for number, _ in most) == 2  # half of four places
    assert all(rows <= 2 for number, rows in most if number == 2)


class Patient(FakeEngine):
    """Computes four rows at once, one of which ends in each step, calls first."""

    def restart(self) -> None:
        super().restart()
        self.watch()

    def watch(self) -> None:
        llm = self.llm

        def step() -> list[Any]:
            four = list(llm.waiting.items())[:4]
            if any(request.row.index in self.poison for _, request in four):
                raise RuntimeError("the device is gone")
            name = next((name for name, each in four if each.row.index >= 100), four[0][0])
            del llm.waiting[name]
            return [SimpleNamespace(request_id=name, finished=True)]

        llm.step = step


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(0, 30),
    poison=st.sets(st.integers(0, 29), max_size=1),
    calls=st.lists(st.integers(0, 40), max_size=6),
    deadly=st.booleans(),
    share=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_whatever_breaks_each_row_ends_once_and_no_call_hangs(
    rows: int, poison: set[int], calls: list[int], deadly: bool, share: float
) -> None:
    engine = Patient(*poison, *([100] if deadly else []))
    engine.watch()
    desk, traffic, steps = Desk(), Traffic(), [0]
    made: list[tuple[Call, Desk]] = []

    def give_way() -> None:
        steps[0] += 1
        while len(made) < len(calls) and sorted(calls)[len(made)] <= steps[0]:
            made.append(put(traffic, 100 + len(made)))

    Feed(engine, desk.replies(), traffic, give_way).run(requests(*range(rows)))
    Feed(engine, desk.replies(), traffic).serve(lambda: any(not call.ended for call, _ in made))

    assert sorted(desk.done) == [index for index in range(rows) if index not in poison]
    assert sorted(desk.told) == sorted(index for index in poison if index < rows)
    for number, (call, caller) in enumerate(made):
        call.listen()
        assert len(caller.done) + len(caller.told) == 1
        if deadly and number == 0:
            assert isinstance(caller.failed[100], ServerFault)
            assert "the engine broke down while it answered this" in caller.failed[100]


def test_a_call_whose_text_is_out_is_not_begun_again() -> None:
    (request,) = requests(0)
    call = Call([request], Desk().replies(), lambda: None)
    assert call.may_retry(request)
    assert not call.may_retry(request)
    heard = Call([request], Desk().replies(), lambda: None)
    heard.text(request, 0, "Once")
    assert not heard.may_retry(request)


def test_requests_of_a_caller_who_hung_up_leave_the_engine() -> None:
    engine, traffic, desk = Patient(), Traffic(), Desk()
    engine.watch()
    call, _ = put(traffic, *range(100, 103))
    other, answered = put(traffic, 103)

    def going() -> bool:
        call.gone = call.gone or traffic.calls > 0
        return not other.ended

    Feed(engine, desk.replies(), traffic).serve(going)
    other.listen()
    assert answered.done == [103]
    assert call.ended
    assert not engine.llm.waiting


# ── engines that know nothing of calls ───────────────────────────────────────────────────────────

SPEC = InferenceSpec.model_validate(
    {
        "taskType": "inference",
        "model": {"source": {"type": "local", "identifier": "nowhere"}, "engine": "transformers"},
        "data": {"type": "list", "items": ["unused"]},
        "inference": {"temperature": 0},
    }
)


def answer(engine: CountingEngine, *prompts: str, said: Callable[..., None]) -> list[OutputRow]:
    rows = [InputRow(index, prompt, custom_id=f"c{index}") for index, prompt in enumerate(prompts)]
    return answer_call(rows, SPEC, engine, Caller(said, lambda: False, stream=True))


def test_an_engine_without_calls_answers_them_by_run() -> None:
    heard: list[tuple[int, str]] = []
    rows = answer(
        CountingEngine(), "one", "unreadable", "broken", "one", said=lambda *a: heard.append(a)
    )
    assert [row.output for row in rows] == ["ONE", "", "", "ONE"]
    assert [row.error for row in rows] == [
        None, "cannot be read", "the engine cannot digest this", None,
    ]  # fmt: skip
    assert [row.custom_id for row in rows] == ["c0", "c1", "c2", "c3"]
    assert sorted(heard) == [(0, "ONE"), (3, "ONE")]


def test_an_engine_that_does_not_stream_has_thoughts_and_calls_told_whole() -> None:
    class Calling(CountingEngine):
        def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
            calls = tuple(ToolCall(f"c{n}", FunctionCall("add", f"{n}")) for n in range(2))
            for request in requests:
                answer = Answer("Sum:", "tool_calls", 9, tool_calls=calls, reasoning="Hm.")
                replies.done(request, Completion((answer,)))

    heard: list[Any] = []
    tools = {"tools": [{"function": {"name": "add"}}], "parallel_tool_calls": False}
    caller = Caller(
        lambda *piece: heard.append(piece),
        lambda: False,
        stream=True,
        reasoning=lambda *piece: heard.append(piece),
        tool_call=lambda *piece: heard.append(piece),
    )
    (row,) = answer_call([InputRow(0, "one", options=tools)], SPEC, Calling(), caller)
    assert heard == [(0, "Hm."), (0, "Sum:"), (0, ToolCallDelta(0, "c0", "add", "0"))]
    assert [each.id for each in row.tool_calls or ()] == ["c0"], "one call is kept, as it was told"


def test_an_engine_without_calls_runs_one_thing_at_a_time() -> None:
    class Alone(CountingEngine):
        running = 0
        inside = threading.Event()
        go_on = threading.Event()

        def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
            self.running += 1
            assert self.running == 1
            self.inside.set()
            assert self.go_on.wait(60)
            super().run(requests, replies)
            self.running -= 1

    engine, emitted, answers = Alone(), list[OutputRow](), list[OutputRow]()
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    shard = ShardInput("t", 0, 1, 7, iter([InputRow(0, "row")]), 1)
    threads = [
        threading.Thread(target=lambda: answer_rows(shard, SPEC, engine, context)),
        threading.Thread(target=lambda: answers.extend(answer(engine, "a", said=lambda *_: None))),
    ]
    threads[0].start()
    assert engine.inside.wait(60)
    threads[1].start()
    engine.go_on.set()
    for thread in threads:
        thread.join(60)
    assert [row.output for row in emitted + answers] == ["ROW", "A"]


def test_rows_of_a_call_need_indexes_of_their_own() -> None:
    caller = Caller(lambda *_: None, lambda: False)
    with pytest.raises(ValueError, match="indexes of their own"):
        answer_call([InputRow(0, "a"), InputRow(0, "b")], SPEC, CountingEngine(), caller)


def test_an_error_of_a_shards_reply_leaves_the_calls_in_the_engine() -> None:
    engine, traffic = Patient(), Traffic()
    engine.watch()
    call, caller = put(traffic, 100)

    def done(request: EngineRequest, completion: Completion) -> None:
        raise OSError("the disk is full")

    replies = Replies(done, lambda *_: None, lambda: False, lambda _: None)
    with pytest.raises(OSError, match="disk is full"):
        Feed(engine, replies, traffic).run(requests(*range(8)))
    assert not traffic.rows
    Feed(engine, Desk().replies(), traffic).serve(lambda: not call.ended)
    call.listen()
    assert caller.done == [100]
