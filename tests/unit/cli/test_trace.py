"""What `mloc trace` prints of a row whose agent had another one work for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mloc_dagster.api.trajectory import trajectory_view
from mloc_dagster.cli import trace_command
from mloc_dagster.results import CallResult, FunctionCall, ModelTurn, OutputRow, Steps, ToolCall


def steps() -> Steps:
    found = Steps()
    asks = [ToolCall("c", FunctionCall("adder", '{"task": "Add"}'))]
    adds = [ToolCall("d", FunctionCall("add", '{"a": 1}'))]
    for entry in (
        ModelTurn(0, 0, "I ask", tool_calls=asks, prompt_tokens=10, completion_tokens=1),
        ModelTurn(0, 0, tool_calls=adds, prompt_tokens=20, completion_tokens=2, caller=(0, "c")),
        CallResult(0, 0, "d", "add", "3", caller=(0, "c")),
        ModelTurn(0, 1, "It is 3", prompt_tokens=30, completion_tokens=3, caller=(0, "c")),
        CallResult(0, 0, "c", "adder", "It is 3"),
        ModelTurn(0, 1, "Three", prompt_tokens=40, completion_tokens=4),
    ):
        found.add(entry)
    return found


def test_the_turns_of_a_worker_stand_below_its_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = OutputRow(0, "How much?", "Three", stop="answer")

    class Client:
        def trajectory(self, task_id: str, index: int) -> Any:
            return trajectory_view(task_id, index, row, steps())

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
