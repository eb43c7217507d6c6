"""Rows that call tools and think, of tasks that are done, that run, and of earlier versions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mloc_dagster.results import (
    Folder,
    FunctionCall,
    Message,
    OutputRow,
    ResultStore,
    ToolCall,
    open_store,
)
from mloc_dagster.viewer.parquet_rows import PARQUET_NAME
from mloc_dagster.viewer.row_detail import CallView, RowDetail, row_detail
from mloc_dagster.viewer.sources import Sources, idle_columns
from tests.viewed_task import make_task

NEW = ("tool_calls", "reasoning", "reasoning_tokens")


def call(key: str, number: int = 1) -> ToolCall:
    return ToolCall(f"call_{number}", FunctionCall("lookup", f'{{"key":{key}}}'))


CHAT = [
    Message("user", "q0"),
    Message("assistant", "", tool_calls=[call("1")], reasoning="hm"),
    Message("tool", '{"found":12345678901234567890}', tool_call_id="call_1"),
]
INPUTS = [{"question": each} for each in ("q0", "q1", "q2")]


def outputs(key: str = "2") -> list[OutputRow]:
    several = OutputRow(
        *(2, "q2", "", "tool_calls"), outputs=["", "said"], tool_calls=[call("4")],
        all_tool_calls=[[call("4")], []], all_reasoning=[None, "so"],
    )  # fmt: skip
    calling = OutputRow(
        *(0, CHAT, "", "tool_calls"), tool_calls=[call(key)], reasoning="I look it up",
        reasoning_tokens=4,
    )  # fmt: skip
    return [calling, OutputRow(1, "q1", "plain"), several]


def made(store: ResultStore, name: str, rows: Sequence[OutputRow], *, done: bool = True) -> Folder:
    return make_task(store, name, INPUTS, rows, done=done)


def older(folder: Folder) -> Folder:
    """Makes of a result one that a version without tools has written."""
    table = pq.read_table(io.BytesIO(folder.read_bytes(PARQUET_NAME)))
    target = io.BytesIO()
    pq.write_table(table.drop_columns(list(NEW)), target)
    folder.write_bytes(PARQUET_NAME, target.getvalue())
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return open_store(str(tmp_path))


def detail(folder: Folder, index: int) -> RowDetail:
    return row_detail(Sources().rows(folder), index, folder)


@pytest.mark.parametrize("done", [True, False])
def test_a_row_shows_what_was_called_and_thought(store: ResultStore, done: bool) -> None:
    folder = made(store, "t", outputs(), done=done)
    source = Sources().rows(folder)
    assert idle_columns(source) == ["error"]
    first, second, _ = source.window(np.arange(3), ["output", "tool_calls", "reasoning"])
    assert first == {
        "output": "",
        "tool_calls": 'lookup({"key":2})',
        "reasoning": "I look it up",
    }
    assert (second["output"], second["tool_calls"]) == ("plain", None)

    calling = detail(folder, 0)
    assert calling.outputs == [""]
    assert calling.calls == [[CallView("lookup", '{\n  "key": 2\n}')]]
    assert calling.reasoning == ["I look it up"]
    user, assistant, tool = calling.messages
    assert (user.role, user.text, user.calls) == ("user", "q0", [])
    assert (assistant.text, assistant.reasoning) == ("", "hm")
    assert assistant.calls == [CallView("lookup", '{\n  "key": 1\n}')]
    assert (tool.answers, tool.text) == ("lookup", '{\n  "found": 12345678901234567890\n}')

    plain = detail(folder, 1)
    assert (plain.outputs, plain.calls, plain.reasoning) == (["plain"], [], [])


def test_each_of_several_answers_has_calls_and_thoughts_of_its_own(store: ResultStore) -> None:
    several = detail(made(store, "t", outputs()), 2)
    assert several.outputs == ["", "said"]
    assert several.calls == [[CallView("lookup", '{\n  "key": 4\n}')], []]
    assert several.reasoning == ["", "so"]


def test_columns_in_which_nothing_stands_are_hidden_at_first(store: ResultStore) -> None:
    folder = made(store, "t", [OutputRow(index, f"q{index}", "said") for index in range(3)])
    assert idle_columns(Sources().rows(folder)) == ["error", "tool_calls", "reasoning"]


def test_results_of_earlier_versions_are_shown(store: ResultStore) -> None:
    plain = [OutputRow(index, f"q{index}", "said") for index in range(3)]
    old = older(made(store, "old", plain))
    source = Sources().rows(old)
    assert idle_columns(source) == ["error"]
    assert not any(source.has(each) for each in NEW)
    assert detail(old, 1).outputs == ["said"]


@pytest.mark.parametrize("old", [True, False])
def test_answers_that_call_something_else_have_changed(store: ResultStore, old: bool) -> None:
    first, second = made(store, "a", outputs("2")), made(store, "b", outputs("3"))
    compared = Sources().compared(older(first) if old else first, second)
    rows = compared.window(np.arange(3), ["changed", "output_a", "output_b"])
    assert [row["changed"] for row in rows] == [True, False, old]
    assert rows[0]["output_a"] == ("" if old else 'lookup({"key":2})')
    assert rows[0]["output_b"] == 'lookup({"key":3})'
