"""What rows bring along is there again, typed, whatever the files of it were cut into."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings, strategies as st

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning import CarriedColumns
from mloc_dagster.results import BatchRow, Folder, RowBatch, columns, json_columns, open_store
from mloc_dagster.results.columns import ColumnWriter, TaskColumns, schema_of


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_store(str(tmp_path)).task("t")


def written(
    folder: Folder, rows: Iterable[Mapping[str, object]], types: Mapping[str, Any] | None = None
) -> CarriedColumns:
    writer = ColumnWriter(folder, types or {})
    for row in rows:
        writer.add(row)
    carried = writer.close()
    assert carried is not None
    return carried


def test_types_of_the_source_are_kept(folder: Folder) -> None:
    row = {
        "when": datetime(2026, 3, 1, tzinfo=UTC),
        "day": date(2026, 3, 1),
        "price": Decimal("1.50"),
        "count": 3,
        "tags": ["a", None],
        "nested": {"x": [1, 2], "y": None},
        "nothing": None,
    }
    types = pa.schema(
        [
            ("when", pa.timestamp("ms", "UTC")),
            ("day", pa.date32()),
            ("price", pa.decimal128(9, 2)),
            ("count", pa.int8()),
            ("tags", pa.list_(pa.large_string())),
            ("nested", pa.struct([("x", pa.list_(pa.int16())), ("y", pa.string())])),
            ("nothing", pa.float32()),
        ]
    )
    carried = written(folder, [row, dict.fromkeys(row)], {each.name: each.type for each in types})
    assert schema_of([carried]) == types
    assert list(TaskColumns(folder, [carried]).rows()) == [row, dict.fromkeys(row)]


@pytest.mark.parametrize(
    ("values", "kind", "read"),
    [
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([None, 2], pa.int64(), [None, 2]),
        ([1, "b"], pa.string(), ["1", "b"]),
        ([["a"], "b"], pa.string(), ['["a"]', "b"]),
        ([{"a": 1}, {"b": "c"}], None, [{"a": 1, "b": None}, {"a": None, "b": "c"}]),
        (["a", "b \ud800"], pa.string(), ["a", r"b \ud800"]),
        ([10**30, 1], pa.string(), [str(10**30), "1"]),
    ],
)
@pytest.mark.parametrize("rows", [1, 8192])
def test_rows_that_differ_have_a_type_in_common(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    values: list[object],
    kind: Any,
    read: list[object],
) -> None:
    """Whether they lie in one file or in several."""
    monkeypatch.setattr(columns, "_CHUNK_ROWS", rows)
    carried = written(folder, [{"x": value} for value in values])
    assert kind is None or schema_of([carried]).field("x").type == kind
    assert [row["x"] for row in TaskColumns(folder, [carried]).rows()] == read


def test_rows_without_columns_count(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_ROWS", 3)
    rows: list[dict[str, object]] = [{}, {}, {"a": 1}, {}, {"b": "c"}, {}, {}]
    carried = written(folder, rows)
    assert carried.names == ("a", "b")
    assert [(row["a"], row["b"]) for row in TaskColumns(folder, [carried]).rows()] == [
        (row.get("a"), row.get("b")) for row in rows
    ]


def test_a_task_whose_rows_bring_nothing_has_no_file(folder: Folder) -> None:
    writer = ColumnWriter(folder)
    for _ in range(10):
        writer.add({})
    assert writer.close() is None
    assert folder.list("input/columns") == []


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 40), start=st.integers(0, 45), takes=st.lists(st.integers(0, 9)))
def test_any_range_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, start: int, takes: list[int]
) -> None:
    folder = open_store(str(tmp_path_factory.mktemp("results"))).task("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_CHUNK_ROWS", 7)
        carried = written(folder, [{"n": number} for number in range(count)])
    found = [row["n"] for row in TaskColumns(folder, [carried], start).rows(batch_rows=4)]
    assert found == list(range(count))[start:]
    reader, place = TaskColumns(folder, [carried]), 0
    for rows in takes:
        if place + rows > count:
            with pytest.raises(DamagedFileError, match="rows are missing"):
                reader.take(rows)
            return
        assert reader.take(rows)["n"].to_pylist() == list(range(place, place + rows))
        place += rows


def test_a_file_ends_where_its_rows_are_heavy(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 1000)
    carried = written(folder, [{"text": "x" * 300}] * 10)
    assert [chunk.rows for chunk in carried.chunks] == [4, 4, 2]


def test_a_column_may_not_have_the_name_of_a_score(folder: Folder) -> None:
    writer = ColumnWriter(folder, {"f1": pa.int8()}, taken=["f1", "input_f1"])
    writer.add({"f1": 1, "other": "a"})
    carried = writer.close()
    assert carried is not None
    assert carried.names == ("input_input_f1", "other")
    assert schema_of([carried]).types == [pa.int8(), pa.string()]


def test_columns_of_two_kinds_are_read_side_by_side(folder: Folder) -> None:
    brought = written(folder, [{"n": n} for n in range(3)])
    scores = ColumnWriter(folder, {"f1": pa.float64()}, "scores")
    for score in (1.0, None, 0.5):
        scores.add({"f1": score})
    found = scores.close()
    assert found is not None
    both = TaskColumns(folder, [brought, found], start=1)
    assert list(both.rows()) == [{"n": 1, "f1": None}, {"n": 2, "f1": 0.5}]
    assert both.schema.names == ["n", "f1"]


def test_a_damaged_file_is_noticed(folder: Folder) -> None:
    carried = written(folder, [{"a": "b"}])
    (chunk,) = carried.chunks
    folder.write_bytes(chunk.name, folder.read_bytes(chunk.name).replace(b"b", b"c"))
    with pytest.raises(DamagedFileError, match="checksum"):
        list(TaskColumns(folder, [carried]).rows())


def test_rows_of_arrow_tables_are_written_as_they_are(folder: Folder) -> None:
    """Wherever they are cut, and beside rows that are none of a table."""
    table = pa.table({"n": pa.array(range(10), pa.int8()), "day": [date(2026, 1, 1)] * 10})
    batch = RowBatch(table)
    rows = list(batch.rows())
    again = [*rows[3:7], rows[9], rows[0], *RowBatch(table).rows()]
    carried = written(folder, again)
    assert schema_of([carried]) == table.schema
    assert list(TaskColumns(folder, [carried]).rows()) == list(map(dict, again))
    mixed = [*rows, {"n": 300, "other": "x"}, BatchRow(batch, 2)]
    carried = written(folder, mixed)
    found = list(TaskColumns(folder, [carried]).rows())
    assert [row["n"] for row in found] == [*range(10), 300, 2]
    assert [row["other"] for row in found] == [None] * 10 + ["x", None]


COLUMNS = {
    "text": ["plain", "größer", ""],
    "escaped": ['a"b', "line\nbreak", "back\\slash"],
    "missing": ["x", None, None],
    "whole": [1, -(2**63), None],
    "fraction": [5.0, 1 / 7, None],
    "odd": [float("nan"), float("inf"), -0.0],
    "large": [1e15, -1e15, 1e300],
    "truth": [True, False, None],
    "when": [datetime(2026, 3, 1, tzinfo=UTC), None, None],
    "price": [Decimal("1.50"), None, None],
    "of": [{"x": [1, None]}, {"x": []}, None],
    "nothing": [None, None, None],
    'quo"ted': ["x", "y", "z"],
}


@pytest.mark.parametrize("block_bytes", [json_columns._BLOCK_BYTES, 1])
def test_columns_in_json_are_what_their_values_are(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_columns, "_BLOCK_BYTES", block_bytes)
    longer = pa.table({name: [values[0], *values] for name, values in COLUMNS.items()})
    table = longer.slice(1)  # its arrays do not begin where their buffers do
    small = pa.table({"f": pa.array([0.1, 2.0, None], pa.float32())})
    for each in (table, small, table.slice(1, 1)):
        heads = [b'{"n":%d' % n for n in range(each.num_rows)]
        lines = b"".join(json_columns.with_columns(heads, ",", each, "}\n")).splitlines()
        encode = msgspec.json.Encoder(enc_hook=str).encode
        wanted = [encode({"n": n, **row}) for n, row in enumerate(each.to_pylist())]
        assert list(map(json.loads, lines)) == list(map(json.loads, wanted))


@given(st.lists(st.tuples(st.text(), st.floats()), min_size=1))
@example([("", 1e10), ("", -0.0), ("", 1e300), ("", 123456789012.0)])
def test_any_text_and_number_is_in_json_as_it_is(rows: list[tuple[str, float]]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text, _ in rows]
    table = pa.table({"text": texts, "number": [number for _, number in rows]})
    lines = b"".join(json_columns.with_columns([b"{"] * len(rows), "", table, "}\n"))
    for line, text, (_, number) in zip(lines.split(b"\n"), texts, rows, strict=False):
        found = json.loads(line)
        assert found["text"] == text
        assert found["number"] == (number if math.isfinite(number) else None)
        assert type(found["number"]) in (float, type(None))
