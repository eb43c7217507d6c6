"""Rows of files that are read in batches are those that they give one by one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import pytest

from mloc_dagster.data.formats import Csv, JsonLines, Place, PlacedBatch, RowError

NAMES = ("text", "n", "x", "of")
MANY = 3000


def lines(extra: str = "", at: int = 2500) -> bytes:
    """Returns so many lines that Arrow reads most of them; one of them is another."""
    found = [
        json.dumps(
            {"text": f"größer {n}", "n": n, "x": n / 7, "of": {"a": [n]}}, ensure_ascii=False
        )
        for n in range(MANY)
    ]
    found[at] = extra or found[at]
    return "\n".join(found).encode()


def single(
    found: Iterable[PlacedBatch | tuple[Place, Mapping[str, object]]],
) -> Iterator[tuple[Place, Mapping[str, object]]]:
    """Yields the rows one by one, each with its place."""
    for each in found:
        if isinstance(each, PlacedBatch):
            yield from ((each.place(at), row) for at, row in enumerate(each.batch.rows()))
        else:
            yield each


def read(data: bytes, *, batches: bool, names: tuple[str, ...] = NAMES) -> list[dict[str, object]]:
    file, form = io.BytesIO(data), JsonLines()
    rows = single(form.batch_rows(file, names, ["text"])) if batches else form.rows(file, names)
    return [{"place": place, **{name: row.get(name) for name in names}} for place, row in rows]


@pytest.mark.parametrize(
    "extra",
    [
        "",
        " ",  # no row
        '{"text": null, "n": 1}',
        '{"text": "x"}',
        '{"text": "x", "n": 1.0, "x": 1}',
        '{"text": "x", "n": "none", "x": true, "of": []}',
        '{"text": "x", "n": 99999999999999999999}',
        '{"text": "x", "of": {"a": [], "b": "new"}}',
        '{"text": "x", "of": {"a": [null, 1.5]}}',
        '{"text": "x", "other": 1}',
        '{"text": "x", "n": 1, "n": 2}',
        '{"text": "2026-01-01T00:00:00", "x": -0.0}',
        '{"text": "half of a character: \\ud800"}',
        '{"text": 7}',
    ],
)
def test_rows_are_those_of_single_lines(extra: str) -> None:
    data = lines(extra)
    assert read(data, batches=True) == read(data, batches=False)
    some = ("text", "x")  # columns that are not needed are passed over
    assert read(data, batches=True, names=some) == read(data, batches=False, names=some)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('{"text": "x"', "broken JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"text": "x"} {"text": "y"}', "broken JSON"),
    ],
)
def test_a_broken_line_is_named_and_rows_before_it_are_there(extra: str, said: str) -> None:
    rows = single(JsonLines().batch_rows(io.BytesIO(lines(extra)), NAMES, ["text"]))
    assert len(list(islice(rows, 2500))) == 2500
    with pytest.raises(RowError, match=said) as caught:
        next(rows)
    assert caught.value.place == 2501


def test_bytes_that_are_no_text_are_refused() -> None:
    data = lines().replace("größer 2000".encode(), b"gr\xff 2000")
    with pytest.raises(RowError, match="not UTF-8") as caught:
        read(data, batches=True)
    assert caught.value.place == 2001


def test_values_of_no_common_type_are_read_one_by_one() -> None:
    mixed = b"".join(
        json.dumps({"text": "a", "n": each}).encode() + b"\n" for each in [1, "one"] * MANY
    )
    names = ("text", "n")
    assert read(mixed, batches=True, names=names) == read(mixed, batches=False, names=names)


def csv_rows(broken: str = "") -> io.BytesIO:
    """Returns records some of which span lines; after the 2,500th comes what is broken."""
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow(["text", "n", "twice", "twice"])
    for n in range(MANY):
        out.writerow([f"größer\n{n}" if n % 7 == 0 else f"a {n}", n, "", "x"])
        if n == 2499:
            text.write(broken)
    return io.BytesIO(text.getvalue().encode())


def test_records_of_csv_are_those_of_single_rows() -> None:
    names = ("n", "text")
    found = [(place, dict(row)) for place, row in single(Csv().batch_rows(csv_rows(), names, []))]
    assert found == [(place, dict(row)) for place, row in Csv().rows(csv_rows(), names)]
    assert len(found) == MANY


@pytest.mark.parametrize(
    ("broken", "said"), [("1,2\r\n", "2 cells where the header has 4"), ('"2"x\r\n', "broken CSV")]
)
def test_a_broken_record_is_named_and_rows_before_it_are_there(broken: str, said: str) -> None:
    rows = single(Csv().batch_rows(csv_rows(broken), ["text"], []))
    assert len(list(islice(rows, 2500))) == 2500
    with pytest.raises(RowError, match=said) as caught:
        next(rows)
    with pytest.raises(RowError, match=said) as alone:
        list(Csv().rows(csv_rows(broken), ["text"]))
    assert caught.value.place == alone.value.place


def test_a_csv_column_of_which_there_are_two_is_refused() -> None:
    with pytest.raises(RowError, match="2 columns are called 'twice'"):
        next(Csv().batch_rows(csv_rows(), ["twice"], []))
