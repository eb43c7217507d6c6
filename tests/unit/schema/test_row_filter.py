"""Conditions on rows."""

from __future__ import annotations

import pytest

from mloc_dagster.errors import DataError
from mloc_dagster.schema.row_filter import RowFilterError, parse_filter

ROW = {"f1": 0.4, "level": "hard", "error": None, "answers": {"text": "x"}, "tags": ["a"], "n": 3}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("f1 < 0.5 and level in ['hard', 'easy']", True),
        ("f1 > 0.5 or n == 3", True),
        ("not (f1 > 0.2)", False),
        ("0.1 < f1 <= 0.4", True),
        ("n > -1", True),
        ("answers.text == 'x'", True),
        ("answers.other is null", True),
        ("'a' in tags and 'b' not in tags", True),
        ("error is null", True),
        ("error is not None", False),
        ("error != 'x'", False),  # nothing equals nothing, and differs from nothing
        ("absent < 3", False),
        ("true", True),
        (" n == 3 ", True),
    ],
)
def test_a_condition_holds_or_not(text: str, holds: bool) -> None:
    assert parse_filter(text).holds(ROW) is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f1 = 3", "is no condition at position 4; write == for equal"),
        ("f1 <", "is no condition"),
        ("", "is no condition"),
        ("exit()", "'exit\\(\\)' is nothing that a condition may hold"),
        ("n + 1 > 2", "'n \\+ 1' is nothing"),
        ("tags[0] == 'a'", "'tags\\[0\\]' is nothing"),
        ("level in 'hard'", "'in' takes a list, or a column with one"),
        ("n == [3]", "a list stands behind 'in' only"),
        ("n is 3", "'is' asks for null only; write =="),
        ("(" * 300 + "n" + ")" * 300, "is no condition"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(RowFilterError, match=message):
        parse_filter(text)


def test_an_unknown_column_is_told_with_the_nearest() -> None:
    condition = parse_filter("levl == 'hard' and answers.text == 'x'")
    assert condition.names == ("levl", "answers")
    with pytest.raises(DataError, match="no column 'levl'; did you mean 'level'"):
        condition.check(ROW)


def test_what_has_no_order_is_told() -> None:
    with pytest.raises(DataError, match="compares 'hard' with 3, which have no order"):
        parse_filter("level < 3").holds(ROW)
