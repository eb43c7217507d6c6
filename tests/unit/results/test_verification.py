"""Counting rows apart from whoever wrote them, and judging the counts."""

from __future__ import annotations

import pytest

from mloc_dagster.executors import EchoSpec
from mloc_dagster.ops import judge_rows as evaluate
from mloc_dagster.results.aggregate import RowCounts, count_rows
from mloc_dagster.results.rows import FunctionCall, OutputRow, ToolCall


def rows(*indexes: int) -> list[OutputRow]:
    return [OutputRow(index=index, prompt="p", output="o") for index in indexes]


def test_complete_rows_have_no_gap() -> None:
    assert count_rows(rows(0, 1, 2)) == RowCounts(3, None, 0, None, 0)


@pytest.mark.parametrize(("indexes", "gap"), [((0, 2), 1), ((1, 2), 0), ((0, 1, 1), 2)])
def test_the_first_gap_is_named(indexes: tuple[int, ...], gap: int) -> None:
    assert count_rows(rows(*indexes)).first_gap == gap


def test_errors_are_not_empty_outputs() -> None:
    failed = OutputRow(index=1, prompt="p", finish_reason="error", error="too long")
    empty = OutputRow(index=2, prompt="p")
    counts = count_rows([*rows(0), failed, empty])
    assert (counts.errors, counts.first_error, counts.empty) == (1, (1, "too long"), 1)


def test_an_answer_that_calls_tools_is_not_empty() -> None:
    call = ToolCall("c1", FunctionCall("add", "{}"))
    assert count_rows([OutputRow(index=0, prompt="p", tool_calls=[call])]).empty == 0


def echo(**checks: float) -> EchoSpec:
    data = {"type": "list", "items": ["x"]}
    spec = {"taskType": "echo", "data": data, "checks": checks, "echo": {"error_budget": 0.5}}
    return EchoSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("counts", "failed"),
    [
        (RowCounts(4, None, 0, None, 0), set()),
        (RowCounts(3, None, 0, None, 0), {"row_count"}),
        (RowCounts(4, 2, 0, None, 0), {"indexes_complete"}),
        (RowCounts(4, None, 2, (0, "e"), 0), set()),
        (RowCounts(4, None, 3, (0, "e"), 0), {"error_budget"}),
        (RowCounts(4, None, 0, None, 2), {"no_empty_outputs"}),
    ],
)
def test_each_check_fails_for_its_own_reason(counts: RowCounts, failed: set[str]) -> None:
    verdicts = evaluate(counts, 4, echo(max_empty_fraction=0.25))
    assert {name for name, each in verdicts.items() if not each.passed} == failed


def test_what_is_wrong_is_a_sentence_with_figures_and_what_to_do() -> None:
    counts = RowCounts(3, 2, 3, (0, "too\nlong"), 2)
    verdicts = evaluate(counts, 4, echo(max_empty_fraction=0.25), again="mloc retry X")
    assert {name: each.problem for name, each in verdicts.items()} == {
        "row_count": "there are 3 rows of 4",
        "indexes_complete": "row 2 is missing, or out of order",
        "error_budget": "3 of 4 rows ended with an error, and error_budget allows 2; the first, "
        "row 0: too long. Compute them again (`mloc retry X`), or run the template with a larger "
        "error_budget",
        "no_empty_outputs": "2 of 4 outputs are empty, and checks.max_empty_fraction 0.25 allows 1",
    }
