"""Lines of JSON read by Arrow give the rows that they give one by one."""

from __future__ import annotations

import io
import json
from itertools import islice

import pytest

from mloc_dagster.data.formats import JsonLines, RowError

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


def read(data: bytes, *, batches: bool, names: tuple[str, ...] = NAMES) -> list[dict[str, object]]:
    file, form = io.BytesIO(data), JsonLines()
    rows = form.batch_rows(file, names, ["text"]) if batches else form.rows(file, names)
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
    rows = JsonLines().batch_rows(io.BytesIO(lines(extra)), NAMES, ["text"])
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
