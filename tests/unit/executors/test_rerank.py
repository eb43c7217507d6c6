"""Rows and their passages through a rerank task: what is scored, in which order it ends, reuse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import open_rows
from mloc_dagster.errors import DataError, TaskCancelled
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.protocol import (
    Completion,
    EngineRequest,
    PairTokens,
    Rendered,
    Replies,
)
from mloc_dagster.executors.prompts import RowBlock
from mloc_dagster.executors.retrieval.rerank import RerankExecutor
from mloc_dagster.executors.task_start import input_of
from mloc_dagster.results import InputRow, OutputRow, Passage
from mloc_dagster.schema import RerankSpec


class WordsInCommon:
    """Scores a pair by the words that both texts have; all pairs are in its hands at once."""

    label = "words 1"
    name = "words"
    revision = "sha256:0"
    device = "cpu"
    size_bytes = 0

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        return Rendered(str(row.prompt))

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        return [[1] * len(each.split()) for each in texts]

    def tokenize_pairs(self, text: str, others: Sequence[str]) -> list[PairTokens]:
        if text == "endless":
            raise ValueError("the text leaves no room")
        return [PairTokens([1] * len(f"{text} {each}".split())) for each in others]

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        for request in reversed([each for each in requests if each is not None]):
            if replies.cancelled():
                raise TaskCancelled("stopped")
            text, pair = request.rendered.text, request.rendered.pair
            self.asked.append((text, pair))
            if pair == "broken":
                replies.failed(request, "cannot digest this")
                continue
            assert pair is not None
            score = float("nan") if pair == "nan" else len({*text.split()} & {*pair.split()})
            tokens = len(request.tokens)
            replies.done(
                request, Completion(score=float(score), prompt_tokens=tokens, engine_s=0.5)
            )

    def close(self) -> None:
        return None


def make_spec(**given: Any) -> RerankSpec:
    return RerankSpec.model_validate(
        {
            "taskType": "rerank",
            "model": {"source": {"type": "local", "identifier": "x"}, "engine": "transformers"},
            "data": {"type": "upstream", "node": "found", "text": "{prompt}"},
            **given,
        }
    )


def found(*texts: str) -> list[Passage]:
    return [Passage(f"p{place}", text, "doc", dense=0.5) for place, text in enumerate(texts)]


def run(
    rows: list[InputRow], engine: WordsInCommon, *, cancelled: bool = False, **given: Any
) -> dict[int, OutputRow]:
    done: list[OutputRow] = []
    context = ShardContext(done.append, lambda: cancelled, lambda _: None)
    shard = ShardInput("t", 0, 1, 7, rows, len(rows))
    RerankExecutor().compute(shard, make_spec(**given), engine, context)
    assert len({row.index for row in done}) == len(done)
    return {row.index: row for row in done}


def test_passages_end_in_order_of_score_and_of_id_where_scores_are_equal() -> None:
    row = InputRow(3, "red owls", custom_id="q", retrieved=found("a", "red", "b", "red owls"))
    (out,) = run([row], WordsInCommon(), rerank={"top_k": 3}).values()
    assert out.retrieved is not None
    assert [each.id for each in out.retrieved] == ["p3", "p1", "p0"]
    best = out.retrieved[0]
    assert (best.score, best.rerank, best.dense) == (2, 2, 0.5)
    assert (out.index, out.prompt, out.custom_id, out.output) == (3, "red owls", "q", "red owls")
    assert (out.prompt_tokens, out.engine_s) == (3 + 3 + 3 + 4, 2.0)


def test_rows_without_passages_pass_on_as_they_are() -> None:
    engine = WordsInCommon()
    rows = [InputRow(0, "a"), InputRow(1, "a", retrieved=[])]
    done = run(rows, engine)
    assert [done[index].retrieved for index in (0, 1)] == [None, []]
    assert engine.asked == []


def test_what_cannot_be_scored_fails_its_row_alone() -> None:
    rows = [
        InputRow(0, "a", error="upstream failed", fault="upstream"),
        InputRow(1, " ", retrieved=found("a")),
        InputRow(2, "endless", retrieved=found("a")),
        InputRow(3, "a", retrieved=found("a", "broken")),
        InputRow(4, "a", retrieved=found("nan")),
        InputRow(5, "a", retrieved=found("a")),
        InputRow(6, "a b c d e f", retrieved=found("a b c", "d")),
    ]
    done = run(rows, WordsInCommon(), budget={"per_row": {"tokens": 12}})
    assert [done[index].error for index in range(4)] == [
        *("upstream failed", "the prompt is empty", "the text leaves no room"),
        "cannot digest this",
    ]
    assert (done[0].fault, done[3].prompt_tokens) == ("upstream", 4)
    assert "no number" in str(done[4].error)
    assert done[4].fault == "server"
    assert done[5].error is None
    assert "16 tokens" in str(done[6].error)


def test_equal_pairs_are_scored_once() -> None:
    engine = WordsInCommon()
    rows = [InputRow(index, "a b", retrieved=found("a", "a b")) for index in range(3)]
    done = run([*rows, InputRow(3, "a b", retrieved=found("a b", "c"))], engine)
    assert sorted(map(str, engine.asked)) == sorted(
        map(str, [("a b", "a"), ("a b", "a b"), ("a b", "c")])
    )
    assert sorted(row.reused for row in done.values()) == ["", "", "task", "task"]
    assert done[1].retrieved == done[0].retrieved
    assert done[1].saved_s == 1.0


def test_a_task_that_is_cancelled_emits_no_half_of_a_row() -> None:
    with pytest.raises(TaskCancelled):
        run([InputRow(0, "a", retrieved=found("a"))], WordsInCommon(), cancelled=True)


def dataset(tmp_path: Path, rows: list[dict[str, Any]], column: str = "texts") -> RerankSpec:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    data = {"type": "dataset", "url": str(path), "column": "question"}
    return make_spec(data=data, rerank={"documents_column": column})


def test_a_column_of_texts_becomes_passages(tmp_path: Path) -> None:
    spec = dataset(tmp_path, [{"question": "a?", "texts": ["x", "y"], "right": 1}])
    (row,) = open_rows(input_of(spec), {}).rows
    assert row.prompt == "a?"
    assert row.retrieved == [Passage("0", "x"), Passage("1", "y")]
    assert dict(row.columns or {}) == {"question": "a?", "right": 1}


def test_a_wrong_column_of_texts_is_an_error_with_the_nearest_one(tmp_path: Path) -> None:
    rows = [{"question": "a?", "texts": ["x"]}]
    with pytest.raises(DataError, match=r"no column 'text'.*did you mean 'texts'"):
        list(open_rows(input_of(dataset(tmp_path, rows, "text")), {}).rows)
    with pytest.raises(DataError, match="column 'question': expected a list of texts, not 'a"):
        list(open_rows(input_of(dataset(tmp_path, rows, "question")), {}).rows)
    mixed = [{"question": "a?", "texts": ["x", 3]}]
    with pytest.raises(DataError, match="expected texts, and number 1 is 3"):
        list(open_rows(input_of(dataset(tmp_path, mixed)), {}).rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {"type": "list", "items": ["a"]}}, "has no texts to put in order"),
        ({"data": {"type": "dataset", "url": "x.jsonl"}}, "give rerank.documents_column"),
        ({"rerank": {"documents_column": "texts"}}, "is for rows of a dataset"),
    ],
)
def test_rows_without_texts_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_spec(**given)
