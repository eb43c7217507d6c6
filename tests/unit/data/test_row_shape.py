"""What a `dataset` block makes of the rows of a file: prompts, and columns that it keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mloc_dagster.data.files import FileTable
from mloc_dagster.data.spool import spool_input
from mloc_dagster.errors import DataError
from mloc_dagster.results import Message, Prompt, TaskColumns, open_store, schema_of
from mloc_dagster.schema import DatasetData
from tests.unit.data.tables import rows

QUESTIONS = [
    {"question": "2 + 2?", "answer": "4", "level": 1},
    {"question": "3 + 3?", "answer": "6", "level": None},
]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in QUESTIONS))
    return str(path)


def made(url: str, **block: object) -> list[tuple[Prompt, Mapping[str, Any] | None]]:
    return [(row.prompt, row.columns) for row in rows(FileTable(url), **block)]


def test_all_columns_are_kept_unless_told_otherwise(questions: str) -> None:
    first, second = QUESTIONS
    assert made(questions) == [("2 + 2?", first), ("3 + 3?", second)]
    assert made(questions, keep=["answer"]) == [
        ("2 + 2?", {"answer": "4"}),
        ("3 + 3?", {"answer": "6"}),
    ]
    assert made(questions, keep=False) == [("2 + 2?", None), ("3 + 3?", None)]
    with pytest.raises(DataError, match=r"q\.jsonl has no column 'anser'; did you mean 'answer'?"):
        made(questions, keep=["anser"])


def test_a_row_that_is_its_prompt_brings_nothing_along(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n")
    assert made(str(tmp_path / "t.txt")) == [("a", None), ("b", None)]


def test_a_prompt_may_be_made_of_several_columns(questions: str) -> None:
    assert made(questions, prompt="{question} ({level}) {{x}}", keep=False) == [
        ("2 + 2? (1) {x}", None),
        ("3 + 3? () {x}", None),
    ]
    messages = [
        {"role": "system", "content": "Level {level}."},
        {"role": "user", "content": "{question}"},
    ]
    (first, _), _ = made(questions, messages=messages)
    assert first == [Message("system", "Level 1."), Message("user", "2 + 2?")]


def test_nested_cells_stand_in_a_prompt_as_json(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"q": "Which?", "choices": ["a", "b"]}\n')
    assert made(str(tmp_path / "q.jsonl"), prompt="{q} {choices}", keep=False) == [
        ('Which? ["a","b"]', None)
    ]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"prompt": "{qestion}"}, r"data\.prompt: .* no value for '{qestion}'; did you mean"),
        ({"prompt": "{question"}, r"data\.prompt: .*single '{' at character 0"),
        ({"messages": [{"role": "user", "content": "{anser}"}]}, r"data\.messages: .*'{anser}'"),
        ({"id_column": "uid"}, r"q\.jsonl has no column 'uid'"),
    ],
)
def test_a_column_that_is_not_there_is_named(
    questions: str, block: dict[str, object], said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        made(questions, **block)
    assert caught.value.field in block


def test_one_way_to_the_prompt_is_given() -> None:
    with pytest.raises(ValidationError, match="give one of column, prompt and messages; got colum"):
        DatasetData.model_validate({"type": "dataset", "url": "x", "column": "a", "prompt": "{b}"})


def test_names_of_results_are_not_taken(tmp_path: Path) -> None:
    row = {"text": "a", "output": "b", "error": "c", "id": "d", "uid": "e"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    ((_, columns),) = made(str(tmp_path / "q.jsonl"), id_column="uid")
    assert columns == {
        "text": "a",
        "input_output": "b",
        "input_error": "c",
        "input_id": "d",
        "uid": "e",
        "id": "e",
    }
    ((_, columns),) = made(str(tmp_path / "q.jsonl"), id_column="id", keep=["output"])
    assert columns == {"input_output": "b", "id": "d"}


def test_columns_of_bytes_are_kept_only_by_name(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "audio": [b"123"], "n": [1]})
    pq.write_table(table, tmp_path / "q.parquet")
    url = str(tmp_path / "q.parquet")
    assert made(url, column="text") == [("a", {"text": "a", "n": 1})]
    assert made(url, column="text", keep=["audio"]) == [("a", {"audio": b"123"})]


@pytest.mark.parametrize("shuffle", [{}, {"shuffle": True}, {"shuffle": True, "buffer_size": 2}])
def test_the_types_of_a_parquet_file_are_kept(tmp_path: Path, shuffle: dict[str, object]) -> None:
    """Also through a shuffle."""
    given = pa.table(
        {
            "text": ["a", "b", "c"],
            "day": [date(2026, 1, day) for day in (1, 2, 3)],
            "few": pa.array([1, None, 3], pa.int8()),
            "nested": [{"x": [1]}, {"x": []}, None],
        }
    )
    pq.write_table(given, tmp_path / "q.parquet")
    folder = open_store(str(tmp_path / "results")).task("t")
    data = DatasetData.model_validate(
        {"type": "dataset", "url": str(tmp_path / "q.parquet"), "column": "text", **shuffle}
    )
    plan = spool_input("t", data, folder, 1, 1, {})
    assert plan.columns is not None
    assert schema_of([plan.columns]).remove_metadata() == given.schema.remove_metadata()
    found = sorted(TaskColumns(folder, [plan.columns]).rows(), key=lambda row: str(row["text"]))
    assert found == given.to_pylist()


def test_a_column_of_images_says_where_they_are(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a"],
            "left": [b"\x89PNG\r\n\x1a\n1"],
            "right": [[b"\x89PNG\r\n\x1a\n2", b"\x89PNG\r\n\x1a\n3"]],
        }
    )
    pq.write_table(table, tmp_path / "q.parquet")
    folder = open_store(str(tmp_path / "results")).task("t")
    data = DatasetData(
        type="dataset",
        url=str(tmp_path / "q.parquet"),
        column="text",
        image_columns=("left", "right"),
    )
    plan = spool_input("t", data, folder, 1, 1, {})
    assert plan.columns is not None
    (row,) = TaskColumns(folder, [plan.columns]).rows()
    left, right = row["left"], row["right"]
    assert isinstance(left, list)
    assert isinstance(right, list)
    names = [str(each).removeprefix("task://") for each in [*left, *right]]
    assert [folder.read_bytes(name)[-1:] for name in names] == [b"1", b"2", b"3"]
    assert row["text"] == "a"


def test_images_that_are_no_prompt_are_kept_by_reference(tmp_path: Path) -> None:
    """Their bytes are kept only if the column is named."""
    picture = {"bytes": b"picture", "path": None}
    digest = f"sha256:{hashlib.sha256(b'picture').hexdigest()}"
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    given = pa.table(
        {
            "text": ["a", "b", "c"],
            "image": pa.array([{"bytes": b"x", "path": "cats/1.png"}, picture, None], image),
            "pages": pa.array([[picture, picture], [], None], pa.list_(image)),
            "raw": [b"1", b"2", b"3"],
        }
    )
    url = str(tmp_path / "q.parquet")
    pq.write_table(given, url)
    assert [columns for _, columns in made(url, column="text")] == [
        {"text": "a", "image": "cats/1.png", "pages": [digest, digest]},
        {"text": "b", "image": digest, "pages": []},
        {"text": "c", "image": None, "pages": None},
    ]
    _, second, _ = made(url, column="text", keep=["image"])
    assert second[1] == {"image": picture}
    folder = open_store(str(tmp_path / "results")).task("t")
    data = DatasetData(type="dataset", url=url, column="text")
    plan = spool_input("t", data, folder, 1, 1, {})
    assert plan.columns is not None
    assert schema_of([plan.columns]).field("image").type == pa.string()
    assert schema_of([plan.columns]).field("pages").type == pa.list_(pa.string())
