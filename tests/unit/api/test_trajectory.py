"""A trajectory over HTTP: what an agent did for a call stands in the call."""

from __future__ import annotations

from mloc_dagster.api.trajectory import trajectory_view
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


def test_the_turns_of_a_worker_are_its_calls() -> None:
    row = OutputRow(0, "How much?", "Three", stop="answer")
    view = trajectory_view("t", 0, row, steps())
    assert [each.text for each in view.turns] == ["I ask", "Three"]
    (call,) = view.turns[0].calls
    assert (call.tool, call.output) == ("adder", "It is 3")
    assert [each.text for each in call.turns] == ["", "It is 3"]
    assert [each.output for each in call.turns[0].calls] == ["3"]
    assert type(view).model_validate_json(view.model_dump_json()) == view
