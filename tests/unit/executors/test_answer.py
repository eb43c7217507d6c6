"""Rows are answered by their passages, and give back what they asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mloc_dagster.executors import ShardContext, ShardInput, loader_of
from mloc_dagster.executors.retrieval.answer import AnswerExecutor
from mloc_dagster.results import ABSTENTION, InputRow, Message, OutputRow, Passage
from mloc_dagster.schema import AnswerSpec, find_engine

PASSAGES = [
    Passage("c1", "Paris is the capital of France.", "geo.md", 0, 31, heading=["Europe", "France"]),
    Passage("c2", "Lyon has a river.", "geo.md", 40, 57),
    Passage("c3", "Rome is in Italy."),
]


class Model:
    """The scripted engine, which says a text, and notes what it was asked."""

    def __init__(self, spec: AnswerSpec, longest: int | None) -> None:
        self._engine = loader_of(find_engine("scripted")).load(spec)
        self.asked: list[Any] = []
        self.longest = longest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, requests: Any, replies: Any) -> None:
        def noted() -> Any:
            for request in requests:
                self.asked.append(request.row.prompt)
                yield request

        self._engine.run(noted(), replies)


def answered(
    text: str, *rows: InputRow, longest: int | None = None, **answer: Any
) -> tuple[list[OutputRow], list[Any]]:
    """Returns what becomes of rows whose answer is a text, and what the model was asked."""
    answer = {"instructions": "Answer.", **answer}
    spec = AnswerSpec.model_validate(
        {
            "taskType": "answer",
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": "scripted",
                "scripted": {"turns": [{"text": text}]},
            },
            "inference": {"temperature": 0, "max_tokens": 10},
            "data": {"type": "upstream", "node": "found", "text": "{prompt}"},
            "answer": answer,
        }
    )
    emitted: list[OutputRow] = []
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    model = Model(spec, longest)
    shard = ShardInput("t", 0, 1, 7, iter(rows), len(rows))
    AnswerExecutor().run(shard, spec, model, context)
    return sorted(emitted, key=lambda row: row.index), model.asked


def row(
    passages: Sequence[Passage] | None = PASSAGES,
    index: int = 0,
    prompt: Any = "Where?",
    **more: Any,
) -> InputRow:
    given = None if passages is None else list(passages)
    return InputRow(index, prompt, retrieved=given, **more)


def test_instructions_come_first_then_passages_then_the_question() -> None:
    (done,), (asked,) = answered("In Paris [1].", row(custom_id="q1"))
    assert asked == (
        "Answer.\n\nPassages:\n\n"
        "[1] geo.md > Europe > France\nParis is the capital of France.\n\n"
        "[2] geo.md\nLyon has a river.\n\n"
        "[3]\nRome is in Italy.\n\n"
        "Question: Where?"
    )
    assert (done.prompt, done.output, done.custom_id) == ("Where?", "In Paris [1].", "q1")
    assert done.retrieved == PASSAGES
    assert (done.abstained, done.citation_error, done.left_out) == (False, None, 0)
    assert done.citations is not None
    assert [(each.n, each.chunk_id, each.end) for each in done.citations] == [(1, "c1", 31)]


def test_of_a_chat_the_last_thing_that_the_user_said_is_the_question() -> None:
    chat = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Where?")]
    (done,), (asked,) = answered("Rome [3]", row(prompt=chat))
    assert done.prompt == chat
    assert asked[:2] == chat[:2]
    assert asked[2].content.endswith("[3]\nRome is in Italy.\n\nQuestion: Where?")


def test_passages_are_cut_whole_and_the_row_says_how_many() -> None:
    (done,), (asked,) = answered("See [3].", row(), max_context_tokens=20)
    assert done.retrieved == PASSAGES[:2]
    assert done.left_out == 1
    assert "Rome" not in asked
    assert done.citation_error == "it cites [3], and the last passage is [2]"
    assert done.error is None


def test_what_the_model_reads_is_a_limit_as_well() -> None:
    (done,), _ = answered("[1]", row(), longest=37)  # 7 words around, an answer of 10
    assert (len(done.retrieved or ()), done.left_out) == (2, 1)
    (done,), asked = answered("[1]", row(), longest=20)
    assert not asked
    assert done.error == (
        "the first passage has 13 tokens, and the model, which reads 20, has room for 3:"
        " cut documents into less"
    )
    (done,), _ = answered("[1]", row(), max_context_tokens=3)
    assert "answer.max_context_tokens is 3: cut" in (done.error or "")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One is here. Two is there. Three is away. " * 3, "One is here. Two is there."),
        ("one two three four five six seven eight", "one two three four five six seven"),
    ],
)
def test_a_first_passage_that_is_too_long_is_cut_and_the_row_says_so(text: str, kept: str) -> None:
    long = Passage("c1", text, "d", start=100, end=100 + len(text))
    (done,), (asked,) = answered("[1]", row([long, *PASSAGES]), max_context_tokens=10)
    assert f"[1] d\n{kept}\n\nQuestion" in asked
    assert done.retrieved is not None
    (found,) = done.retrieved
    assert (found.text, found.end) == (kept, 100 + len(kept))
    assert (done.left_out, done.cut_characters) == (3, len(text) - len(kept))
    assert (done.error, done.citation_error) == (None, None)
    assert [each.end for each in done.citations or ()] == [100 + len(kept)]


@pytest.mark.parametrize(
    ("citations", "text", "problem", "cited"),
    [
        ("required", "Paris.", "it cites no passage", []),
        ("required", ABSTENTION, None, []),
        ("optional", "Paris.", None, []),
        ("optional", "Paris [9].", "it cites [9], and the last passage is [3]", []),
        ("none", "Paris [9].", None, None),
    ],
)
def test_citations_are_judged_as_the_template_asks(
    citations: str, text: str, problem: str | None, cited: Any
) -> None:
    (done,), _ = answered(text, row(), citations=citations)
    assert (done.error, done.citation_error, done.citations) == (None, problem, cited)
    assert done.abstained is (text == ABSTENTION)


def test_only_a_model_that_may_abstain_does() -> None:
    (done,), _ = answered(ABSTENTION, row(), abstain=False)
    assert done.abstained is None
    assert done.citation_error == "it cites no passage"


def test_no_model_is_asked_about_nothing_unless_it_has_to_answer() -> None:
    (done,), asked = answered("Paris", row([]))
    assert not asked
    assert (done.output, done.abstained) == (ABSTENTION, True)
    assert (done.retrieved, done.citations) == ([], [])
    (done,), (asked,) = answered("Paris", row([]), abstain=False, citations="optional")
    assert "Passages:\n\n(None was found.)\n\n" in asked
    assert done.output == "Paris"


def test_a_row_that_cannot_be_answered_says_why() -> None:
    rows, asked = answered("x", row(None), row(index=1, error="broken", fault="upstream"))
    assert not asked
    assert "the row has no passages" in (rows[0].error or "")
    assert (rows[1].error, rows[1].fault) == ("broken", "upstream")


def test_equal_rows_are_answered_once_each_with_its_own_question() -> None:
    rows, asked = answered("[1]", *(row(index=index) for index in range(3)), row(PASSAGES[:1], 3))
    assert len(asked) == 2
    assert [each.reused for each in rows].count("task") == 2
    assert [each.prompt for each in rows] == ["Where?"] * 4
    assert [len(each.retrieved or ()) for each in rows] == [3, 3, 3, 1]
    assert all(each.citations for each in rows)
