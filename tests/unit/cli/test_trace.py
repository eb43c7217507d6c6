"""What `mloc trace` prints of a row whose agent had another one work for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mloc_dagster.cli import trace_command
from mloc_dagster.wire import TrajectoryCall, TrajectoryTurn, TrajectoryView


def turn(number: int, text: str, tokens: int, *calls: TrajectoryCall) -> TrajectoryTurn:
    return TrajectoryTurn(
        turn=number,
        text=text,
        finish_reason="stop",
        prompt_tokens=10 * tokens,
        completion_tokens=tokens,
        reasoning_tokens=0,
        cached_tokens=0,
        seconds=0.0,
        calls=calls,
    )


def view() -> TrajectoryView:
    add = TrajectoryCall(id="d", tool="add", arguments='{"a": 1}', output="3", seconds=0.0)
    below = turn(0, "", 2, add), turn(1, "It is 3", 3)
    asked = '{"task": "Add"}'
    ask = TrajectoryCall(
        id="c", tool="adder", arguments=asked, output="It is 3", seconds=0.0, turns=below
    )
    turns = turn(0, "I ask", 1, ask), turn(1, "Three", 4)
    return TrajectoryView(
        task_id="t", index=0, prompt="How much?", output="Three", stop="answer", turns=turns
    )


def test_the_turns_of_a_worker_stand_below_its_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        def trajectory(self, task_id: str, index: int) -> Any:
            return view()

    @contextmanager
    def opened(task: str | None = None) -> Iterator[Client]:
        yield Client()

    monkeypatch.setattr(trace_command, "open_api", opened)
    assert trace_command.trace("t", 0, as_json=False) == 0
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert said == [
        "How much?",
        "turn 0 · 10 tokens read, 1 written, 0.00 s",
        "  I ask",
        '  adder {"task": "Add"}  0.00 s',
        "    turn 0 · 20 tokens read, 2 written, 0.00 s",
        '      add {"a": 1}  0.00 s',
        "        3",
        "    turn 1 · 30 tokens read, 3 written, 0.00 s",
        "      It is 3",
        "    It is 3",
        "turn 1 · 40 tokens read, 4 written, 0.00 s",
        "  Three",
        "ended: answer  4 turns, 2 calls, 100 tokens read, 10 written",
    ]
