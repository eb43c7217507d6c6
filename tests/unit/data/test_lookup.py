"""The tool `lookup`, over files of every form that mloc reads."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.tools.calls import Call, results

FACTS = {"capital of Peru": "Lima", "height of Everest": 8849, "tags": ["a", "ü"]}


def looked_up(file: Path, *keys: str) -> list[str]:
    item = {"entry_point": "lookup", "effect": "read", "options": {"file": str(file)}}
    calls: list[Call] = [("lookup", {"key": each}) for each in keys]
    return results(item, *calls)


def test_the_keys_of_an_object(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(FACTS))
    assert looked_up(file, "capital of Peru", " Capital  of peru", "height of Everest", "tags") == [
        *("Lima", "Lima", "8849", '["a", "ü"]'),
    ]
    near, far = looked_up(file, "capitol of Peru", "?")
    assert near == "Error: unknown key 'capitol of Peru'; did you mean 'capital of Peru'?"
    assert far.startswith("Error: unknown key '?'; known: 'capital of Peru', ")


def test_the_first_column_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("word,meaning\none,1\ntwo,2\none,3\n")
    (tmp_path / "b.jsonl").write_text('{"id": 7, "name": "Anna", "age": 34}\n')
    pq.write_table(pa.table({"k": ["x"], "v": [1.5]}), tmp_path / "c.parquet")
    assert looked_up(tmp_path / "a.csv", "one", "two") == ["1", "2"]
    assert looked_up(tmp_path / "b.jsonl", "7") == ['{"name": "Anna", "age": 34}']
    assert looked_up(tmp_path / "c.parquet", "x") == ["1.5"]


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text('{"a": "before"}')
    assert looked_up(file, "a") == ["before"]
    file.write_text('{"a": "after it"}')
    assert looked_up(file, "a") == ["after it"]


def test_a_file_that_is_not_there_is_told_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("[]")
    (missing,) = looked_up(tmp_path / "fact.json", "a")
    assert missing.startswith("Error: ")
    assert "did you mean 'facts.json'?" in missing
    (empty,) = looked_up(tmp_path / "facts.json", "a")
    assert empty.endswith("facts.json has no rows")
