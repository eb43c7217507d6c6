"""Where relevant passages stand, counted as the metrics count, and the rows that did worst."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.results import Passage
from mloc_dagster.results.passage_scores import passage_scores
from mloc_dagster.results.ranking import RankingCounter
from mloc_dagster.results.summary import WorstRow
from mloc_dagster.results.worst_rows import MOST, WorstRows


def passages(*ids: str) -> list[Passage]:
    """Passages of documents: `a1` is the first passage of the document `a`."""
    return [Passage(each, document=each[0]) for each in ids]


_IDS = st.sampled_from([f"{document}{n}" for document in "abc" for n in (1, 2)])
_ROWS = st.lists(
    st.tuples(
        st.lists(_IDS, max_size=6, unique=True).map(lambda ids: passages(*ids)),
        st.frozensets(_IDS | st.sampled_from("abc"), max_size=3),
    ),
    min_size=1,
    max_size=5,
)


@given(_ROWS)
def test_recall_and_ranks_are_those_of_the_metrics(
    rows: list[tuple[list[Passage], frozenset[str]]],
) -> None:
    counter = RankingCounter()
    for found, relevant in rows:
        counter.add(found, relevant)
    ranking = counter.result()
    judged = [row for row in rows if row[1]]
    if ranking is None:
        assert not any(found for found, _ in judged)
        return
    assert ranking.rows == len(judged)
    for k, recall in ranking.recall:
        scores = [each[f"recall@{k}"] or 0 for each in passage_scores([f"recall@{k}"], judged)]
        assert recall == pytest.approx(sum(scores) / len(judged), abs=1e-6)
    firsts = [round(1 / rank) for each in passage_scores(["mrr"], judged) if (rank := each["mrr"])]
    counted = [n for n, rows in enumerate(ranking.first_ranks, 1) for _ in range(rows)]
    assert sorted(firsts) == counted
    assert ranking.missed == len(judged) - len(counted)


def test_recall_is_told_for_usual_places_and_for_all_that_was_found() -> None:
    counter = RankingCounter()
    counter.add(passages("a1", "a2", "b1", "b2", "c1", "c2", "d1"), {"b2", "x1"})
    counter.add(passages("a1"), {"a1"})
    counter.add(passages("a1"), set())
    ranking = counter.result()
    assert ranking is not None
    assert ranking.recall == ((1, 0.5), (3, 0.5), (5, 0.75), (7, 0.75))
    assert (ranking.first_ranks, ranking.missed) == ((1, 0, 0, 1, 0, 0, 0), 0)


def worst(*scores: dict[str, float | None]) -> list[int]:
    rows = WorstRows()
    for index, each in enumerate(scores):
        rows.add(index, each, lambda index=index, each=each: WorstRow(
            index=index, scores=each, prompt="", expected="", found=""))  # fmt: skip
    return [each.index for each in rows.result()]


def test_the_worst_rows_come_first_and_those_without_a_fault_not_at_all() -> None:
    unscored, right = {"a": None, "b": None}, {"a": 1.0, "b": 1.0}
    assert worst(right, {"a": 0.5, "b": 1.0}, unscored, {"a": 0.0, "b": 0.0}, right) == [3, 1]
    assert worst({"a": 0.0, "b": 0.9}, {"a": 0.0, "b": 0.1}, {"a": None, "b": 0.0}) == [1, 0, 2]
    assert worst(right, right) == []
    assert worst({"a": 0.0}, {"a": 0.0}) == [0, 1], "if all are bad, all are worst"


@given(st.lists(st.integers(0, 5), max_size=40))
def test_as_many_as_are_shown_are_kept_whatever_their_order(points: list[int]) -> None:
    scores: list[dict[str, float | None]] = [{"a": each / 10} for each in points]
    expected = sorted(range(len(points)), key=lambda index: (points[index], index))
    assert worst(*scores) == expected[:MOST]
