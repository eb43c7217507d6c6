"""What was found is scored beside what should have been, and answers by passages as such."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.data import spool_input
from mloc_dagster.results import (
    ABSTENTION,
    OutputRow,
    Passage,
    ShardWriter,
    TaskSummary,
    aggregate_rows,
    check_citations,
    open_store,
)
from mloc_dagster.results.passage_scores import passage_scores, ranked_ids
from mloc_dagster.schema import DatasetData, RowEvaluation

METRICS = ["recall@1", "recall@2", "precision@2", "mrr", "ndcg@2", "map"]


def found(*ids: str) -> list[Passage]:
    """Passages of documents: `a1` is the first passage of the document `a`."""
    return [Passage(each, document=each[0]) for each in ids]


def test_an_order_is_scored_as_trec_eval_does() -> None:
    rows = [
        (found("a1", "b1"), frozenset({"b1"})),
        (found("a1", "b1"), frozenset({"a1", "c1"})),
        (found("a1", "b1"), frozenset({"c1"})),
        (found(), frozenset({"c1"})),
        (found("a1"), frozenset[str]()),
    ]
    scores = passage_scores(METRICS, rows)
    assert scores[0]["recall@1"] == 0
    assert (scores[0]["recall@2"], scores[0]["precision@2"], scores[0]["mrr"]) == (1, 0.5, 0.5)
    assert scores[0]["ndcg@2"] == pytest.approx(0.6309, abs=1e-4)
    assert (scores[1]["recall@1"], scores[1]["mrr"], scores[1]["map"]) == (0.5, 1, 0.5)
    assert scores[2] == scores[3] == dict.fromkeys(METRICS, 0)
    assert scores[4] == dict.fromkeys(METRICS)


def test_ids_are_those_of_passages_or_else_of_documents() -> None:
    passages = found("b1", "b2", "a1")
    assert ranked_ids(passages, {"a1"}) == ["b1", "b2", "a1"]
    assert ranked_ids(passages, {"a"}) == ["b", "a"]
    (scores,) = passage_scores(["recall@2"], [(passages, frozenset({"a"}))])
    assert scores == {"recall@2": 1}


def test_the_order_counts_and_not_the_scores_that_made_it() -> None:
    equal = [Passage("x", score=0.5), Passage("z", score=0.5), Passage("y", score=0.5)]
    assert passage_scores(["mrr"], [(equal, frozenset({"z"}))]) == [{"mrr": 0.5}]


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True),
    st.sets(st.sampled_from("abcdefgh"), min_size=1),
)
def test_recall_and_rank_are_what_their_names_say(ids: list[str], relevant: set[str]) -> None:
    passages = [Passage(each) for each in ids]
    (scores,) = passage_scores(["recall@3", "mrr"], [(passages, frozenset(relevant))])
    assert scores["recall@3"] == pytest.approx(len(relevant & set(ids[:3])) / len(relevant))
    first = next((place for place, each in enumerate(ids, 1) if each in relevant), None)
    assert scores["mrr"] == pytest.approx(0 if first is None else 1 / first)


QUESTIONS: Sequence[Mapping[str, object]] = [
    {"question": "a?", "ids": ["a1"], "answers": ["Paris", "the city of Paris"]},
    {"question": "b?", "ids": ["b"], "answers": ["Rome"]},
    {"question": "c?", "ids": ["c1"], "answers": ["Lyon"]},
    {"question": "d?", "ids": [], "answers": []},
    {"question": "e?", "ids": None, "answers": None},
]
ANSWERS = ["Paris [1]", "Rome [1][2]", ABSTENTION, ABSTENTION, "Oslo [7]"]


def scored(folder_of: Path, **block: object) -> tuple[TaskSummary, list[dict[str, Any]]]:
    given_ = RowEvaluation.model_validate(block)
    source = folder_of / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, QUESTIONS)))
    folder = open_store(str(folder_of)).task("t")
    data = DatasetData(type="dataset", url=str(source), column="question")
    plan = spool_input("t", data, folder, 1, 7, {}, evaluation=given_)
    with ShardWriter(folder, plan.shards[0], 1, flush_rows=9, flush_interval_s=60) as writer:
        for index, answer in enumerate(ANSWERS):
            passages = found("a1", "b1")
            citations, problem = check_citations(answer, passages, required=False)
            writer.write(
                OutputRow(
                    index,
                    str(QUESTIONS[index]["question"]),
                    answer,
                    retrieved=passages,
                    citations=citations,
                    abstained=answer == ABSTENTION,
                    citation_error=problem,
                )
            )
    summary = aggregate_rows(
        folder, plan, model="m", worker_id="w", started_at=datetime.now(UTC), evaluation=given_
    )
    return summary, json.loads(folder.read_bytes("responses.json"))["result"]["items"]


def test_answers_are_scored_without_their_citations_and_abstentions_where_they_are_right(
    tmp_path: Path,
) -> None:
    summary, items = scored(
        tmp_path,
        relevant_column="ids",
        answer_column="answers",
        metrics=["recall@2", "mrr", "exact_match", "f1", "citation_precision"],
        gate="recall@2 >= 0.6 and exact_match > 0.5",
    )
    columns = [each["columns"] for each in items]
    assert [each["exact_match"] for each in columns] == [1, 1, 0, 1, 0]
    assert [each["f1"] for each in columns] == [1, 1, 0, 1, 0]
    assert [each["recall@2"] for each in columns] == [1, 1, 0, None, None]
    assert [each["mrr"] for each in columns] == [1, 0.5, 0, None, None]
    assert [each["citation_precision"] for each in columns] == [1, 0.5, None, None, None]
    assert summary.scores is not None
    assert summary.scores.metrics["recall@2"] == pytest.approx(2 / 3)
    assert summary.scores.scored["citation_precision"] == 2
    assert summary.scores.gate == (
        "recall@2 0.666667 >= 0.6: passed; exact_match 0.6 > 0.5: passed"
    )


def test_a_row_lacks_no_column_with_what_is_relevant(tmp_path: Path) -> None:
    from mloc_dagster.errors import DataError

    with pytest.raises(DataError, match=r"no column 'idz'.*did you mean 'ids'"):
        scored(tmp_path, relevant_column="idz", metrics=["mrr"])
