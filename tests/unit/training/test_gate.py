"""The gate's small language: what it says, what it refuses, and that nothing else is run."""

from __future__ import annotations

import math

import pytest

from mloc_dagster.schema import GateError, parse_gate


@pytest.mark.parametrize(
    ("text", "before", "after", "passed", "said"),
    [
        (
            "exact_match >= before + 0.05",
            {"exact_match": 0.33},
            {"exact_match": 0.62},
            True,
            "exact_match 0.62 >= 0.33 + 0.05: passed",
        ),
        ("loss < before", {"loss": 2.0}, {"loss": 2.0}, False, "loss 2 < 2: failed"),
        ("loss<=before*0.9", {"loss": 2.0}, {"loss": 1.8}, True, "loss 1.8 <= 2 * 0.9: passed"),
        ("margin > -1.5e-1", {}, {"margin": -0.1}, True, "margin -0.1 > -0.15: passed"),
        ("a.b == .5", {}, {"a.b": 0.5}, True, "a.b 0.5 == 0.5: passed"),
        (
            "arc-easy/acc>=before-0.1",
            {"arc-easy/acc": 0.5},
            {"arc-easy/acc": 0.45},
            True,
            "arc-easy/acc 0.45 >= 0.5 - 0.1: passed",
        ),
        (
            "2k_sums/exact_match/strict-match == 1",
            {},
            {"2k_sums/exact_match/strict-match": 1.0},
            True,
            "2k_sums/exact_match/strict-match 1 == 1: passed",
        ),
        ("errors != 0", {}, {"errors": 0.0}, False, "errors 0 != 0: failed"),
        ("loss < before - -1", {"loss": 1.0}, {"loss": 1.5}, True, "loss 1.5 < 1 - -1: passed"),
    ],
)
def test_a_comparison_is_told_with_its_figures(
    text: str,
    before: dict[str, float],
    after: dict[str, float],
    passed: bool,
    said: str,
) -> None:
    result = parse_gate(text).check(before, after)
    assert (result.passed, result.text) == (passed, said)


def test_all_of_several_must_hold() -> None:
    gate = parse_gate("loss < before and exact_match >= 0.5")
    result = gate.check({"loss": 2.0}, {"loss": 1.0, "exact_match": 0.25})
    assert not result.passed
    assert result.text == "loss 1 < 2: passed; exact_match 0.25 >= 0.5: failed"
    assert gate.metrics == {"loss", "exact_match"}
    assert gate.needs_before
    assert not parse_gate("loss < 1").needs_before


def test_a_share_that_is_reached_in_decimals_is_reached() -> None:
    assert 0.3 < 0.1 + 0.2
    assert parse_gate("win_rate >= before + 0.2").check({"win_rate": 0.1}, {"win_rate": 0.3}).passed
    assert not parse_gate("w > before + 0.2").check({"w": 0.1}, {"w": 0.3}).passed


@pytest.mark.parametrize("gate", ["loss < 3", "loss > 3", "loss != 3"])
def test_what_is_no_number_passes_nothing(gate: str) -> None:
    assert not parse_gate(gate).check({}, {"loss": math.nan}).passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a metric's name, found the end"),
        ("exact_match", "expected one of >=.*, found the end"),
        ("exact_match >= ", "expected a number or 'before', found the end"),
        ("exact_match >= after", "expected a number or 'before', found 'after' at position 16"),
        ("exact_match >= before + x", "expected a number or 'before', found 'x' at position 25"),
        ("loss < 1 or loss < 2", "expected 'and' or the end, found 'or' at position 10"),
        ("loss < 1 2", "expected 'and' or the end, found '2' at position 10"),
        ("loss < 1 and", "expected a metric's name, found the end"),
        ("before < 1", "expected a metric's name, found 'before' at position 1"),
        ("loss < before / 2", "'/' at position 15"),
        ("__import__('os')", r"'\(' at position 11"),
        ("loss = 1", "'=' at position 6"),
    ],
)
def test_anything_else_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(GateError, match=message):
        parse_gate(text)


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(KeyError, match="win_rate"):
        parse_gate("win_rate > 0.5").check({}, {"loss": 1.0})
    with pytest.raises(KeyError, match="loss"):
        parse_gate("loss < before").check({}, {"loss": 1.0})
