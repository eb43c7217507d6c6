"""Which rows are shown: the same as `data.where` would take, sorted, searched, exported."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mloc_dagster.errors import InputError
from mloc_dagster.results import open_store
from mloc_dagster.schema import parse_filter
from mloc_dagster.viewer.conditions import mask
from mloc_dagster.viewer.parquet_rows import ParquetRows
from mloc_dagster.viewer.row_export import ExportFormat, export_blocks
from mloc_dagster.viewer.selection import Question, select

ROWS: list[dict[str, Any]] = [
    {"index": 0, "prompt": "a", "output": "x" * 300, "score": 1.0, "tags": ["p"], "n": {"d": 1}},
    {"index": 1, "prompt": "B", "output": "", "score": None, "tags": [], "n": {"d": 2}},
    {"index": 2, "prompt": "c", "output": "Straße", "score": 0.0, "tags": ["p", "q"], "n": None},
    {"index": 3, "prompt": None, "output": "x", "score": 0.5, "tags": None, "n": {"d": None}},
    {"index": 4, "prompt": "a", "output": "y\n", "score": float("nan"), "tags": [], "n": {"d": 5}},
]


@pytest.fixture(params=[1, 2, 100])
def rows(tmp_path: Path, request: pytest.FixtureRequest) -> ParquetRows:
    """The rows in row groups of one size and another."""
    folder = open_store(str(tmp_path)).task("t")
    table = pa.Table.from_pylist(ROWS)
    target = io.BytesIO()
    pq.write_table(table, target, row_group_size=request.param)
    folder.write_bytes("responses.parquet", target.getvalue())
    return ParquetRows(folder, ["score"], f"v{request.param}{tmp_path}")


@pytest.mark.parametrize(
    "text",
    [
        "score < 1",
        "not score < 1",
        "score is null",
        "score is not null and score >= 0.5",
        "0 <= score < 0.9",
        'prompt == "a" or output == ""',
        'prompt in ["a", "B"] and index not in [1]',
        'prompt != "a"',
        "n.d > 1",
        "n.d is null",
        '"p" in tags',
        "score == -1",
        'prompt > "a"',
    ],
)
def test_a_condition_means_what_it_means_for_a_later_stage(rows: ParquetRows, text: str) -> None:
    condition = parse_filter(text)
    assert mask(rows, text).tolist() == [condition.holds(each) for each in ROWS]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scor < 1", "did you mean 'score'"),
        ("score = 1", "write == for equal"),
        ("score < 'a'", "compares"),
        ("__import__('os')", "nothing that a condition may hold"),
    ],
)
def test_a_wrong_condition_says_what_is_wrong(rows: ParquetRows, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        mask(rows, text)


def picked(rows: ParquetRows, **asked: Any) -> list[int]:
    return select(rows, Question(**asked)).tolist()


def test_rows_are_sorted_with_those_without_a_value_last(rows: ParquetRows) -> None:
    assert picked(rows, sort="score") == [2, 3, 0, 1, 4]
    assert picked(rows, sort="score", descending=True) == [0, 3, 2, 1, 4]
    assert picked(rows, sort="output_chars", descending=True) == [0, 2, 4, 3, 1]
    assert picked(rows, sort="prompt") == [1, 0, 4, 2, 3]
    assert picked(rows, where="score is not null", sort="score") == [2, 3, 0, 4]
    with pytest.raises(InputError, match="did you mean 'score'"):
        picked(rows, sort="scor")
    with pytest.raises(InputError, match="no order"):
        picked(rows, sort="tags")


def test_a_text_is_found_whatever_its_case_and_its_signs(rows: ParquetRows) -> None:
    assert picked(rows, search="STRAß") == [2]
    assert picked(rows, search="b") == [1]
    assert picked(rows, search=".*") == []


def test_the_table_gets_short_cells_and_the_file_whole_ones(rows: ParquetRows) -> None:
    positions = np.array([4, 0, 3])
    window = rows.window(positions, ["index", "output", "output_chars", "tags"])
    assert [each["index"] for each in window] == [4, 0, 3]
    assert [each["output_chars"] for each in window] == [2, 300, 1]
    assert len(str(window[1]["output"])) == 240
    (whole,) = rows.take(np.array([0]), ["output"]).to_pylist()
    assert whole["output"] == "x" * 300


def exported(rows: ParquetRows, wanted: ExportFormat, positions: list[int]) -> bytes:
    return b"".join(export_blocks(rows, np.array(positions, dtype=np.int64), wanted))


@pytest.mark.parametrize("positions", [[3, 0, 2], [1], []])
def test_every_format_has_the_chosen_rows_in_their_order_with_all_columns(
    rows: ParquetRows, positions: list[int]
) -> None:
    wanted = [ROWS[each] for each in positions]
    table = pq.read_table(io.BytesIO(exported(rows, "parquet", positions)))
    assert table.column_names == list(ROWS[0])
    assert table.to_pylist() == wanted
    lines = exported(rows, "jsonl", positions).splitlines()
    assert [json.loads(each) for each in lines] == wanted
    text = exported(rows, "csv", positions).decode()
    cells = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [each["output"] for each in cells] == [each["output"] for each in wanted]
    assert text.startswith("index,prompt,output,score,tags,n\r\n")
