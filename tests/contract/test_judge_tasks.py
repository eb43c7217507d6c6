"""Judge tasks shard by shard: rows of earlier tasks and of datasets, their verdicts and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mloc_dagster.data import spool_input, with_texts
from mloc_dagster.errors import DataError
from mloc_dagster.executors import ModelCache, run_shard
from mloc_dagster.planning import Plan, cut_shards
from mloc_dagster.results import (
    ABSTENTION,
    Folder,
    OutputRow,
    Passage,
    ShardWriter,
    TaskSummary,
    aggregate_rows,
    export_results,
    open_store,
    read_rows,
)
from mloc_dagster.schema import JudgeSpec, RowEvaluation, find_task_type

PASSAGES = [Passage("c1", "Owls hunt at night.", "owls.md")]
ANSWERS = [
    OutputRow(0, "When?", "At night [1].", retrieved=PASSAGES, citations=[], custom_id="q0"),
    OutputRow(1, "Where?", ABSTENTION, retrieved=PASSAGES, abstained=True),
    OutputRow(2, "Why?", error="boom", finish_reason="error"),
    OutputRow(3, "What?", "In the day.", retrieved=PASSAGES, left_out=2),
]
EVALUATION = RowEvaluation(metrics=("faithfulness",), gate="faithfulness >= 0.6")


def verdict(*supported: bool) -> str:
    statements = [{"text": "So.", "passage": int(each), "supported": each} for each in supported]
    return json.dumps({"statements": statements, "reason": "As {index} says."})


def spec_of(said: str, data: Mapping[str, Any] | None = None, **judge: Any) -> JudgeSpec:
    return JudgeSpec.model_validate(
        {
            "taskType": "judge",
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": "scripted",
                "scripted": {"turns": [{"text": said}]},
            },
            "data": data or {"type": "upstream", "node": "answers"},
            "judge": {"instructions": "Judge.", **judge},
            "evaluation": EVALUATION,
        }
    )


@pytest.fixture(scope="module")
def cache() -> Iterator[ModelCache]:
    cache = ModelCache(1 << 30)
    yield cache
    cache.clear()


@pytest.fixture
def answers(tmp_path: Path) -> Folder:
    folder = open_store(str(tmp_path)).task("answers")
    (shard,) = cut_shards("answers", len(ANSWERS), 1)
    with ShardWriter(folder, shard, 1, flush_rows=100, flush_interval_s=60) as writer:
        for row in ANSWERS:
            writer.write(row)
    return folder


def judged(
    folder: Folder, spec: JudgeSpec, upstream: Mapping[str, Folder], cache: ModelCache
) -> tuple[TaskSummary, list[OutputRow], Plan]:
    data = with_texts(spec)
    assert data is not None
    plan = spool_input(
        *("t", data, folder, 2, 7, upstream),
        evaluation=EVALUATION,
        takes=spec.takes,
    )
    for shard in plan.shards:
        run_shard(
            *(folder, "t", spec, plan, shard), attempt=1, cache=cache, cancelled=lambda: False
        )
    report = find_task_type("judge").report
    assert report is not None
    summary = aggregate_rows(
        *(folder, plan),
        model="m",
        worker_id="w",
        started_at=datetime.now(UTC),
        evaluation=EVALUATION,
        report=report(spec),
    )
    return summary, list(read_rows(folder)), plan


def test_rows_of_answers_pass_through_with_their_verdicts_and_the_gate_sees_the_mean(
    tmp_path: Path, answers: Folder, cache: ModelCache
) -> None:
    folder = open_store(str(tmp_path)).task("t")
    spec = spec_of(verdict(True, True, False))
    summary, rows, plan = judged(folder, spec, {"answers": answers}, cache)
    for row, before in zip(rows, ANSWERS, strict=True):
        kept = ("prompt", "output", "abstained", "citations", "left_out", "custom_id")
        assert [getattr(row, each) for each in kept] == [getattr(before, each) for each in kept]
    assert [row.judgement is not None for row in rows] == [True, False, False, True]
    assert rows[2].error == "upstream: row 2 of 'answers' failed: boom"
    assert summary.scores is not None
    assert summary.scores.metrics == {"faithfulness": 0.666666667}
    assert summary.scores.scored == {"faithfulness": 2}
    assert summary.scores.gate == "faithfulness 0.666667 >= 0.6: passed"
    assert summary.counts == {"unjudged": 1, "unread_verdicts": 0}
    assert summary.ok  # a row that had failed before costs nothing here

    items = json.loads(folder.read_bytes("responses.json"))["result"]["items"]
    assert items[0]["judgement"]["statements"][0] == {
        "text": "So.", "supported": True, "passage": 1
    }  # fmt: skip
    assert "judgement" not in items[1]
    export_results(
        *(folder, plan),
        model="m",
        formats=["parquet", "jsonl", "csv"],
        leaves=spec.leaves,
    )
    with folder.open("responses.parquet") as file:
        table = pq.read_table(file)
    found = table.column("judgement").to_pylist()
    assert found[1] is found[2] is None
    assert found[0]["score"] == pytest.approx(2 / 3)
    assert [each["passage"] for each in found[0]["statements"]] == [1, 1, None]
    lines = folder.read_bytes("responses.jsonl").splitlines()
    assert json.loads(lines[3])["judgement"]["reason"] == "As 3 says."
    assert b"As 0 says." in folder.read_bytes("responses.csv")
    assert table.column("retrieved").to_pylist()[0][0]["document"] == "owls.md"


def test_a_verdict_that_cannot_be_read_costs_no_row_and_passes_no_gate(
    tmp_path: Path, answers: Folder, cache: ModelCache
) -> None:
    folder = open_store(str(tmp_path)).task("t")
    summary, rows, _ = judged(folder, spec_of("It is fine."), {"answers": answers}, cache)
    assert (rows[0].output, rows[0].error) == ("At night [1].", None)
    assert rows[0].judgement is not None
    assert "no JSON object" in (rows[0].judgement.error or "")
    assert summary.counts == {"unjudged": 1, "unread_verdicts": 2}
    assert summary.ok
    assert summary.scores is not None
    assert not summary.scores.passed


def test_answers_of_a_dataset_are_judged_by_its_texts(tmp_path: Path, cache: ModelCache) -> None:
    rows = [
        {"question": "When?", "said": "At night.", "texts": ["Owls hunt at night."], "lang": "en"},
        {"question": "Why?", "said": "", "texts": [], "lang": "en"},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    data = {"type": "dataset", "url": str(source), "column": "question"}
    folder = open_store(str(tmp_path)).task("t")
    spec = spec_of(verdict(True), data, output_column="said", documents_column="texts")
    summary, done, plan = judged(folder, spec, {}, cache)
    assert [(row.prompt, row.output) for row in done] == [("When?", "At night."), ("Why?", "")]
    assert [each.text for each in done[0].retrieved or ()] == ["Owls hunt at night."]
    assert done[0].judgement is not None
    assert done[0].judgement.score == 1
    assert done[1].judgement is None
    assert summary.counts["unjudged"] == 1
    assert plan.columns is not None
    assert plan.columns.names == ("question", "lang")

    wrong = spec_of(verdict(True), data, output_column="sad", documents_column="texts")
    other = open_store(str(tmp_path)).task("u")
    with pytest.raises(DataError, match="no column 'sad'; did you mean 'said'"):
        judged(other, wrong, {}, cache)
