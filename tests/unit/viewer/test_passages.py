"""A row of a retrieval task: the answer beside its passages."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mloc_dagster.results import (
    Folder,
    OutputRow,
    Passage,
    ResultStore,
    check_citations,
    open_store,
)
from mloc_dagster.schema import RowEvaluation
from mloc_dagster.viewer.passages import AnswerPart, FoundView, answer_parts
from mloc_dagster.viewer.row_detail import row_detail
from mloc_dagster.viewer.row_source import shown
from mloc_dagster.viewer.sources import Sources, idle_columns
from mloc_dagster.viewer.task_view import relevant_column
from tests.viewed_task import make_task

FOUND = [
    Passage("c1", "Paris is in France.", "geo.md", 0, 19, heading=["Cities", "Paris"], score=0.9,
            dense=0.4, payload={"lang": "en"}),
    Passage("c2", "Lyon is as well.", "geo.md", 20, 36, page=3, score=4.5, keyword=4.5),
    Passage("c3", "Rome is not.", "italy.md", 0, 12, score=0.1),
]  # fmt: skip
ANSWER = "Paris [1], and Lyon [2-4]."
CITATIONS, CITATION_ERROR = check_citations(ANSWER, FOUND, required=True)
ANSWERED = OutputRow(
    *(0, "q0", ANSWER),
    retrieved=FOUND,
    citations=CITATIONS,
    citation_error=CITATION_ERROR,
    left_out=2,
)
INPUTS = [{"question": "q0", "should": ["italy.md", "alps.md"]}]


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return open_store(str(tmp_path))


def found_of(folder: Folder, index: int = 0) -> FoundView:
    found = row_detail(Sources().rows(folder), index, folder, relevant_column(folder)).found
    assert found is not None
    return found


@pytest.mark.parametrize("done", [True, False])
def test_passages_stand_in_order_with_what_is_relevant_and_cited(
    store: ResultStore, done: bool
) -> None:
    evaluation = RowEvaluation.model_validate({"relevant_column": "should", "metrics": ["mrr"]})
    leaves = ("retrieved", "citations", "abstained", "citation_error", "left_out")
    folder = make_task(
        store, "t", INPUTS, [ANSWERED], evaluation=evaluation, done=done, leaves=leaves
    )
    found = found_of(folder)
    first, second, third = found.passages
    assert [each.n for each in found.passages] == [1, 2, 3]
    assert (first.document, first.headings, first.place) == (
        "geo.md",
        ["Cities", "Paris"],
        "characters 0–19",
    )
    assert second.place == "page 3 · characters 20–36"
    assert first.scores == {"score": 0.9, "dense": 0.4}
    assert second.scores == {"keyword": 4.5}, "what it stands by is said once"
    assert [each.relevant for each in found.passages] == [False, False, True]
    assert [each.cited for each in found.passages] == [True, True, True]
    assert third.text == "Rome is not."
    assert found.missed == ["alps.md"]
    assert found.left_out == 2
    assert found.citation_error == "it cites [4], and the last passage is [3]"
    assert found.answer == answer_parts(ANSWER)


def test_an_answer_is_cut_where_it_cites() -> None:
    assert answer_parts(ANSWER) == [
        AnswerPart("Paris "),
        AnswerPart(cites=[1]),
        AnswerPart(", and Lyon "),
        AnswerPart(cites=[2, 3, 4]),
        AnswerPart("."),
    ]
    assert answer_parts("[2]") == [AnswerPart(cites=[2])]
    assert answer_parts("none [a]") == [AnswerPart("none [a]")]
    assert answer_parts("") == []


def test_where_nothing_can_cite_and_nothing_is_known_nothing_is_marked(store: ResultStore) -> None:
    row = OutputRow(0, "q0", "a text with [1]", retrieved=FOUND)
    found = found_of(make_task(store, "t", INPUTS, [row], leaves=("retrieved",)))
    assert found.answer == []
    assert {(each.relevant, each.cited) for each in found.passages} == {(None, False)}
    assert found.missed == []


def test_a_document_shows_its_chunks(store: ResultStore) -> None:
    row = OutputRow(0, "q0", "the text", chunks=FOUND[:2])
    found = found_of(make_task(store, "t", INPUTS, [row], leaves=("chunks",)))
    assert found.chunks
    assert [each.text for each in found.passages] == ["Paris is in France.", "Lyon is as well."]


def test_rows_of_other_tasks_have_none(store: ResultStore) -> None:
    folder = make_task(store, "t", INPUTS, [OutputRow(0, "q0", "said")])
    assert row_detail(Sources().rows(folder), 0, folder).found is None


def test_the_table_names_the_documents(store: ResultStore) -> None:
    assert shown(msgspec.to_builtins(FOUND)) == "geo.md (2), italy.md"
    row = OutputRow(0, "q0", "said", retrieved=FOUND, citations=[])
    folder = make_task(store, "t", INPUTS, [row], leaves=("retrieved", "citation_error"))
    assert "citation_error" in idle_columns(Sources().rows(folder))


def test_a_task_before_the_evaluated_one_knows_what_is_relevant(store: ResultStore) -> None:
    node = {"name": "last", "spec": {"evaluation": {"relevant_column": "should"}}}
    template = {"spec": {"graph": {"nodes": [{"name": "first", "spec": {}}, node]}}}
    row = OutputRow(0, "q0", "", retrieved=FOUND)
    folder = make_task(store, "t", INPUTS, [row], leaves=("retrieved",), template=template)
    assert [each.relevant for each in found_of(folder).passages] == [False, False, True]
