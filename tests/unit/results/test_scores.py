"""Scores of single answers."""

from __future__ import annotations

import re
from itertools import combinations
from statistics import mean

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.results.scores import (
    extracted,
    f1,
    holds_text,
    json_score,
    last_number,
    pass_at,
    same_number,
    same_text,
)


def test_texts_are_the_same_whatever_their_case_and_the_space_around_them() -> None:
    assert same_text(" Paris\n", "paris") == 1
    assert same_text("Paris.", "paris") == 0
    assert holds_text("It is PARIS.", "Paris ") == 1
    assert holds_text("It is Lyon.", "Paris") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The cat, sat!", "a cat sat", 1),
        ("the cat", "cat dog", 2 / 3),
        ("bird", "cat", 0),
        ("", "cat", 0),
        ("the", "an", 1),
        ("北京大学", "北京", 2 / 3),  # no spaces: a character is a word
        ("在2008年。", "2008年", 0.8),
        ("東京タワー", "大阪", 0),
    ],
)
def test_f1_counts_words_in_common(answer: str, reference: str, score: float) -> None:
    assert f1(answer, reference) == pytest.approx(score)
    assert f1(reference, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 and then 1,234.50 dollars.", 1234.5),
        ("so 6 * 7 = <<6*7=42>>42\n#### 42", 42),
        ("-3.5%", -3.5),
        ("\u22121", -1),
        ("5-3", 3),
        ("about .5", 0.5),
        ("1e3", 1000),
        ("12,34", 34),
        ("version 1.2.", 1.2),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_counts(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_numbers_are_compared_as_numbers() -> None:
    assert same_number("The answer is 18.", "16 + 2 = 18\n#### 18") == 1
    assert same_number("18.0", "18") == 1
    assert same_number("17", "18") == 0
    assert same_number("no idea", "18") == 0
    assert same_number("18", "unknown") is None
    assert same_number("0.3", str(0.1 + 0.2)) == 1
    assert same_number("17.5", "18", tolerance=0.5) == 1


def test_json_is_checked_against_its_schema() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert list(map(json_score(), ('{"a": 1}', "[1", ""))) == [1, 0, 0]
    assert list(map(json_score(schema), ('{"a": 1}', '{"a": "x"}', "{"))) == [1, 0, 0]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(right: list[bool], k: int) -> None:
    k = min(k, len(right))
    share = mean(any(each) for each in combinations(right, k))
    assert pass_at(sum(right), len(right), k) == pytest.approx(share)


def test_what_a_pattern_finds_last_is_scored() -> None:
    text = "Answer: 3. No, Answer: 4."
    assert extracted(re.compile(r"Answer: (\d)"), text) == "4"
    assert extracted(re.compile(r"Answer: \d"), text) == "Answer: 4"
    assert extracted(re.compile(r"Answer: (x)?"), text) == ""
    assert extracted(re.compile(r"Mark"), text) == ""
