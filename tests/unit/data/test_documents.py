"""Documents as rows: files that are one each, and rows of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import open_rows
from mloc_dagster.errors import DataError
from mloc_dagster.results import SourceRow
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
