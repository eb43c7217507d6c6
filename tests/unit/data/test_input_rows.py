from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mloc_dagster.data.input_rows import write_rows
from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings

COLUMNS = {"question": ["one", "two"], "level": [1, 2]}


def written(rows: Any) -> list[dict[str, Any]]:
    file = write_rows(rows)
    assert file is not None
    if file.path.suffix == ".parquet":
        return pq.read_table(file.path).to_pylist()
    return [json.loads(line) for line in file.path.read_text().splitlines()]


@pytest.mark.parametrize(
    "rows",
    [
        pa.table(COLUMNS),
        pa.table(COLUMNS).to_reader(),
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS, index=[7, 9]),
        pl.DataFrame(COLUMNS),
        [{"question": "one", "level": 1}, {"question": "two", "level": np.int64(2)}],
        (dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)),
    ],
    ids=["arrow", "reader", "pandas", "pandas-index", "polars", "list", "generator"],
)
def test_columns_are_what_they_were(rows: Any) -> None:
    assert written(rows) == [{"question": "one", "level": 1}, {"question": "two", "level": 2}]


@pytest.mark.parametrize(
    "rows",
    [["one", "two\nlines"], iter(["one", "two\nlines"]), pl.Series(["one", "two\nlines"]),
     pd.Series(["one", "two\nlines"]), pa.chunked_array([["one"], ["two\nlines"]])],
    ids=["list", "iterator", "polars", "pandas", "arrow"],
)  # fmt: skip
def test_texts_are_prompts(rows: Any) -> None:
    assert written(rows) == [{"prompt": "one"}, {"prompt": "two\nlines"}]


def test_chats_are_messages() -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert written([chat]) == [{"messages": chat}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "data has no rows"),
        (pa.table({"a": pa.array([], pa.string())}), "data has no rows"),
        ("one", "data is a str: expected a pyarrow table"),
        ({"question": ["one"]}, "data is a dict: expected a pyarrow table"),
        (7, "data is a int: expected"),
        (pl.DataFrame(COLUMNS).lazy(), "data is a LazyFrame: expected"),
        ([1], "row 0 of data is a int: expected"),
        (["one", {"a": 1}], "row 1 of data: a dict, where the first row is a text"),
        ([{"a": 1}, {1: 2}], "row 1 of data: the name of a column is a text, not 1"),
        ([{"a": b"x"}], "row 0 of data: column 'a' holds bytes"),
        ([{"a": object()}], "row 0 of data: holds a object"),
    ],
)
def test_what_is_no_row_is_said_and_leaves_no_file(rows: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        write_rows(rows)
    assert str(caught.value).startswith(said)
    folder = settings().home / "given-rows"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_an_iterable_is_read_in_batches() -> None:
    alive = 0
    most = 0

    class Row(dict[str, Any]):
        def __init__(self) -> None:
            nonlocal alive, most
            super().__init__(a=1)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Row]:
        for _ in range(5_000):
            yield Row()

    assert len(written(rows())) == 5_000
    assert most < 3_000


def test_what_an_iterable_raises_reaches_the_caller_and_leaves_no_file() -> None:
    def rows() -> Iterator[str]:
        yield "one"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_rows(rows())
    assert list((settings().home / "given-rows").iterdir()) == []
