"""Documents as rows: files that are one each, and rows of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mloc_dagster.data import open_rows, read_input, spool_input
from mloc_dagster.errors import DataError
from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.results import SourceRow, open_store
from mloc_dagster.schema import Documents


def rows_of(url: Path | str, **given: Any) -> list[SourceRow]:
    return list(open_rows(Documents(url=str(url), **given), {}).rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "guide" / "deep").mkdir(parents=True)
    (tmp_path / "guide" / "b.md").write_text("# Mice\n\nThey hide.\n")
    (tmp_path / "guide" / "deep" / "a.txt").write_text("Owls hunt.\n猫头鹰。\n")
    (tmp_path / "guide" / "c.html").write_text("<h1>Hay</h1>")
    (tmp_path / "guide" / "d.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "guide" / "e.txt").write_bytes(b"\xff\xfe\xfa\x00broken\x81")
    return tmp_path


def test_each_file_is_a_document_that_its_path_names(folder: Path) -> None:
    rows = {each.custom_id: each for each in rows_of(f"{folder}/guide/**/*")}
    assert set(rows) == {"b.md", "c.html", "d.pdf", "e.txt", "deep/a.txt"}
    assert rows["deep/a.txt"].prompt == "Owls hunt.\n猫头鹰。\n"  # a document, not a row a line
    assert rows["b.md"].payload == {"path": "b.md"}
    assert rows["d.pdf"].content == b"%PDF-1.4 nothing"
    assert rows["e.txt"].error is not None
    assert "e.txt" in rows["e.txt"].error


def test_rows_of_a_dataset_are_documents(tmp_path: Path) -> None:
    given = [{"id": f"d{n}", "text": f"Owl {n}", "lang": "en"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, given)))
    rows = rows_of(tmp_path / "rows.jsonl", id_column="id")
    assert [(each.custom_id, each.prompt) for each in rows] == [
        (f"d{n}", f"Owl {n}") for n in range(3)
    ]
    assert rows[0].payload == {"id": "d0", "lang": "en"}
    with pytest.raises(DataError, match="txt") as raised:
        rows_of(tmp_path / "rows.jsonl", id_column="id", text_column="txt")
    assert "text" in str(raised.value)


def test_files_have_no_other_columns(folder: Path) -> None:
    with pytest.raises(DataError, match="files have no column 'name'"):
        rows_of(f"{folder}/guide/*.md", id_column="name")


def test_a_pattern_that_fits_nothing_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError):
        rows_of(f"{folder}/guide/*.markdown")


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no such file in .*; did you mean 'b.md'\?"):
        rows_of(folder / "guide" / "bb.md")


def test_files_with_rows_beside_documents(folder: Path) -> None:
    (folder / "guide" / "rows.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"some hold rows \(rows.jsonl\)"):
        rows_of(folder / "guide")


def test_texts_in_other_encodings(folder: Path) -> None:
    (folder / "guide" / "x.htm").write_bytes("<meta charset=gbk><h1>中文</h1>".encode("gbk"))
    (folder / "guide" / "y.md").write_bytes(b"caf\xe9")
    (folder / "guide" / "z [1].md").write_bytes(b"\xef\xbb\xbf# Z")
    rows = {each.custom_id: each for each in rows_of(f"{folder}/guide/*.*")}
    assert "中文" in str(rows["x.htm"].prompt)
    assert rows["y.md"].error == "y.md: not UTF-8 (unexpected end of data at byte 3)"
    assert rows["z [1].md"].prompt == "# Z"


def test_documents_are_selected_by_place_and_path(folder: Path) -> None:
    first, second = rows_of(f"{folder}/guide/**/*.*", split="train[:2]")
    assert [first.custom_id, second.custom_id] == ["b.md", "c.html"]
    (chosen,) = rows_of(f"{folder}/guide/**/*.*", only={"path": "deep/a.txt"}, keep=False)
    assert (chosen.custom_id, chosen.payload, chosen.columns) == ("deep/a.txt", None, None)
    with pytest.raises(DataError, match=r"has 'a.md' in column 'path'"):
        rows_of(f"{folder}/guide/*.md", only={"path": "a.md"})


def test_documents_lie_anywhere() -> None:
    fsspec.filesystem("memory").pipe("/corpus/deep/x.md", b"# X")
    assert [each.custom_id for each in rows_of("memory://corpus/**/*.md")] == ["deep/x.md"]


def test_documents_of_a_submitted_task_are_guarded(folder: Path) -> None:
    with Reach("api").applied(), pytest.raises(OutOfReachError):
        rows_of(f"{folder}/guide/*.md")


def test_equal_pdfs_are_one_file_of_the_task(folder: Path) -> None:
    (folder / "guide" / "d2.pdf").write_bytes(b"%PDF-1.4 nothing")
    task = open_store(str(folder / "results")).task("t")
    plan = spool_input("t", Documents(url=f"{folder}/guide/*.*"), task, 1, 1, {})
    rows = {each.custom_id: each for each in read_input(task, plan, 0, plan.rows)}
    assert rows["d.pdf"].file == rows["d2.pdf"].file
    assert task.read_bytes(rows["d.pdf"].file) == b"%PDF-1.4 nothing"
    assert rows["b.md"].media_type == "text/markdown"
    assert len(task.list("input/documents")) == 1


def test_a_row_without_text_or_name_is_an_error_of_its_own(tmp_path: Path) -> None:
    given = [
        {"path": "a", "text": "one", "index": 7},
        {"path": "b", "text": None, "index": 8},
        {"path": None, "text": "x", "index": 9},
        {"path": "a", "text": "two", "index": 10},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, given)))
    first, second, third, fourth = rows_of(tmp_path / "rows.jsonl")
    assert first.payload == {"path": "a", "index": 7}
    assert first.columns == {"path": "a", "input_index": 7}
    assert second.error == "column 'text': expected text, got null"
    assert third.error == "column 'path': the document has no name"
    assert fourth.error == "column 'path': row 0 is called 'a' as well"
    assert fourth.columns == {"path": "a", "input_index": 10}
    (only,) = rows_of(tmp_path / "rows.jsonl", only={"index": "7"}, keep=("index",))
    assert only.payload == {"index": 7}


def test_bytes_are_no_payload(tmp_path: Path) -> None:
    table = pa.table({"path": ["a"], "text": ["one"], "raw": [b"\0\1"], "n": [2]})
    pq.write_table(table, tmp_path / "d.parquet")
    (row,) = rows_of(tmp_path / "d.parquet")
    assert row.payload == {"path": "a", "n": 2}
