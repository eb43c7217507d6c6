"""Rows are scored once all are there, and their scores are columns of the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.results import (
    Folder,
    OutputRow,
    ShardWriter,
    TaskSummary,
    open_store,
    read_plan,
)
from mloc_dagster.results.aggregate import aggregate_rows
from mloc_dagster.results.columns import rows_with_columns
from mloc_dagster.results.evaluation import Scorer
from mloc_dagster.results.export import export_results
from mloc_dagster.schema import DatasetData, RowEvaluation, UpstreamData

ROWS: Sequence[Mapping[str, object]] = [
    {"question": "1+1", "answer": "#### 2", "spans": {"text": ["two", "2"]}, "exact_match": "old"},
    {"question": "2+2", "answer": "#### 4", "spans": {"text": ["four"]}, "exact_match": "old"},
    {"question": "3+3", "answer": "?", "spans": {"text": []}, "exact_match": None},
    {"question": "4+4", "answer": "#### 8", "spans": {"text": ["eight"]}, "exact_match": None},
]
ANSWERS = ["It is 2", "four", "6", ""]


def evaluation(**block: object) -> RowEvaluation:
    return RowEvaluation.model_validate({"reference": "answer", **block})


def scored(
    folder: Folder,
    given: RowEvaluation,
    answers: Sequence[str | list[str]] = ANSWERS,
    rows: Sequence[Mapping[str, object]] = ROWS,
) -> TaskSummary:
    """A task whose last row failed, aggregated and exported."""
    source = Path(folder.url).parent / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    data = DatasetData(type="dataset", url=str(source), column="question")
    plan = spool_input("t", data, folder, 1, 7, {}, evaluation=given)
    with ShardWriter(folder, plan.shards[0], 1, flush_rows=2, flush_interval_s=60) as writer:
        for index, answer in enumerate(answers):
            failed = index == len(ROWS) - 1
            several = answer if isinstance(answer, list) else None
            writer.write(
                OutputRow(
                    index,
                    str(rows[index]["question"]),
                    several[0] if several else str(answer),
                    error="too long" if failed else None,
                    finish_reason="error" if failed else "stop",
                    outputs=several,
                )
            )
    summary = aggregated(folder, given)
    export_results(folder, plan, ["parquet"], model="m")
    return summary


def aggregated(folder: Folder, given: RowEvaluation) -> TaskSummary:
    plan = read_plan(folder)
    assert plan is not None
    return aggregate_rows(
        folder,
        plan,
        model="m",
        worker_id="w",
        started_at=datetime.now(UTC),
        error_budget=0.5,
        evaluation=given,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_store(str(tmp_path)).task("t")


def test_scores_are_columns_and_their_means_stand_in_the_result(folder: Folder) -> None:
    metrics = ["numeric", {"type": "exact_match", "reference": "spans.text"}]
    summary = scored(folder, evaluation(metrics=metrics, gate="numeric >= 0.5"))
    assert summary.scores is not None
    assert summary.scores.metrics == {"numeric": 0.5, "exact_match": 0.5}
    assert summary.scores.scored == {"numeric": 2, "exact_match": 2}
    assert summary.scores.gate == "numeric 0.5 >= 0.5: passed"
    assert summary.scores.passed
    table = pq.read_table(Path(folder.url) / "responses.parquet")
    assert table.schema.field("numeric").type == pa.float64()
    # A row that failed has no score, and neither has one without a right answer.
    assert table["numeric"].to_pylist() == [1, 0, None, None]
    assert table["exact_match"].to_pylist() == [0, 1, None, None]
    assert table["input_exact_match"].to_pylist() == ["old", "old", None, None]
    result = json.loads(folder.read_bytes("responses.json"))["result"]
    assert result["metrics"] == summary.scores.metrics
    assert [each["columns"]["numeric"] for each in result["items"]] == [1, 0, None, None]
    assert [columns["numeric"] for _, columns in rows_with_columns(folder)] == [1, 0, None, None]


def test_aggregating_again_changes_nothing_and_another_evaluation_does(folder: Folder) -> None:
    given = evaluation(metrics=["numeric"])
    before = scored(folder, given)
    assert aggregated(folder, given) == before
    after = aggregated(folder, evaluation(metrics=["numeric", "contains"]))
    assert after.scores is not None
    assert list(after.scores.metrics) == ["numeric", "contains"]


def test_of_several_answers_the_mean_counts_and_the_chance_of_a_right_one(folder: Folder) -> None:
    answers = [["2", "3", "2", "5"], ["5", "6", "7", "8"], ["6"] * 4, [""] * 4]
    given = evaluation(metrics=[{"type": "numeric", "pass_at": [1, 2]}])
    summary = scored(folder, given, answers)
    assert summary.scores is not None
    assert summary.scores.metrics == pytest.approx(
        {"numeric": 0.25, "numeric/pass@1": 0.25, "numeric/pass@2": 5 / 12}
    )


def test_a_gate_is_failed_by_a_metric_without_any_score(folder: Folder) -> None:
    given = evaluation(metrics=[{"type": "number", "extract": "mark: (.*)"}], gate="number < 3")
    summary = scored(folder, given)
    assert summary.scores is not None
    assert (summary.scores.metrics, summary.scores.passed) == ({}, False)
    assert summary.scores.gate == "number nan < 3: failed"


def test_a_registered_metric_scores_row_by_row(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def metric(answers: list[str], references: list[str | None], rows: list[object]) -> float:
        seen.append((answers, references, rows))
        return len(answers[0]) / 10

    monkeypatch.setattr(
        "mloc_dagster.results.evaluation.registered_function", lambda *names: metric
    )
    summary = scored(folder, evaluation(metrics=["length"]))
    assert summary.scores is not None
    assert summary.scores.metrics == {"length": pytest.approx((0.7 + 0.4 + 0.1) / 3)}
    answers, references, rows = seen[0]  # type: ignore[misc]
    assert (answers, references) == (["It is 2"], ["#### 2"])
    assert rows[0]["prompt"] == "1+1"
    assert rows[0]["spans"] == ROWS[0]["spans"]


def test_a_registered_metric_that_fails_is_named_with_its_row(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metric(*given: object) -> float:
        raise KeyError("x")

    monkeypatch.setattr(
        "mloc_dagster.results.evaluation.registered_function", lambda *names: metric
    )
    with pytest.raises(TerminalError, match="the metric 'mine' failed at row 0: KeyError: 'x'"):
        scored(folder, evaluation(metrics=["mine"]))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"metrics": ["f1"], "reference": "anwser"}, "'anwser' to compare .*mean 'answer'"),
        (
            {"metrics": [{"type": "regex", "pattern": "x", "name": "output"}]},
            "has a column 'output'",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_computed(
    folder: Folder, block: Mapping[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scored(folder, evaluation(**block))


def test_a_row_without_the_nested_right_answer_is_named(folder: Folder) -> None:
    scorer = Scorer(folder, evaluation(metrics=["f1"], reference="spans.texts"))
    with pytest.raises(DataError, match=r"row 3 has no column 'spans\.texts'; did you mean 'text'"):
        scorer.score([OutputRow(3, "p", "a")], [{"spans": {"text": ["a"]}}])


def test_the_right_answer_may_be_in_a_column_that_results_call_otherwise(folder: Folder) -> None:
    rows = [{"question": "q", "output": "a"}] * 4
    summary = scored(
        folder, evaluation(metrics=["exact_match"], reference="output"), ["a"] * 4, rows
    )
    assert summary.scores is not None
    assert summary.scores.metrics == {"exact_match": 1.0}


def test_a_later_stage_takes_the_rows_that_it_asks_for(folder: Folder) -> None:
    from mloc_dagster.data import open_rows

    scored(folder, evaluation(metrics=["numeric"]))
    block = {"node": "ask", "where": "numeric < 1", "text": "{output} {columns.numeric}"}
    data = UpstreamData.model_validate({"type": "upstream", **block})
    (row,) = open_rows(data, {"ask": folder}).rows
    assert row.prompt == "four 0.0"
    assert row.columns is not None
    assert row.columns["input_index"] == 1
    assert row.columns["answer"] == "#### 4"
    failed = data.model_copy(update={"where": "error is not null"})
    (row,) = open_rows(failed, {"ask": folder}).rows
    assert row.error == "upstream: row 3 of 'ask' failed: too long"
    with pytest.raises(DataError, match="no column 'numric'; did you mean 'numeric'"):
        open_rows(data.model_copy(update={"where": "numric < 1"}), {"ask": folder})
