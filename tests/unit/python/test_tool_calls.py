"""Results with calls of tools in a notebook, and those of versions that had none."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mloc_dagster.python.task_result import results_of
from mloc_dagster.results import FunctionCall, OutputRow, ToolCall, open_store
from tests.viewed_task import make_task

CALL = ToolCall("call_1", FunctionCall("lookup", '{"key": "a"}'))


@pytest.mark.parametrize("older", [False, True])
def test_a_notebook_shows_what_was_called(tmp_path: Path, older: bool) -> None:
    inputs = [{"question": "q0"}, {"question": "q1"}]
    outputs = [
        OutputRow(0, "q0", "", "tool_calls", tool_calls=[CALL]),
        OutputRow(1, "q1", "said"),
    ]
    folder = make_task(open_store(str(tmp_path)), "t", inputs, outputs)
    if older:
        table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
        target = io.BytesIO()
        new = ["tool_calls", "reasoning", "reasoning_tokens"]
        pq.write_table(table.drop_columns(new), target)
        folder.write_bytes("responses.parquet", target.getvalue())
    (result,) = results_of([folder])
    html = result._repr_html_()
    assert "said" in html
    assert (escape('lookup({"key": "a"})') in html) is not older
    assert result.table(where='output == "said"')["index"].to_pylist() == [1]
    if not older:
        assert result.table(where="tool_calls is not null")["index"].to_pylist() == [0]
