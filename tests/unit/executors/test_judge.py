"""Answers are judged by their passages, and rows stay as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mloc_dagster.executors import ShardContext, ShardInput, loader_of
from mloc_dagster.executors.retrieval.judge import JudgeExecutor
from mloc_dagster.executors.retrieval.verdict import VERDICT_FORM, read_verdict
from mloc_dagster.results import (
    InputRow,
    Judgement,
    Message,
    OutputRow,
    Passage,
    Prompt,
    Statement,
    check_citations,
)
from mloc_dagster.schema import JudgeSpec, StructuredOutputs, find_engine, form_problems

PASSAGES = [Passage("c1", "Owls hunt at night.", "owls.md", 0, 19), Passage("c2", "Mice hide.")]
VERDICT = {
    "statements": [
        {"text": "Owls hunt at night.", "passage": 1, "supported": True},
        {"text": "Owls are blue.", "passage": 0, "supported": False},
    ],
    "reason": "No passage says blue.",
}
STATEMENTS = [Statement("Owls hunt at night.", True, 1), Statement("Owls are blue.", False)]


def spec_of(**given: Any) -> JudgeSpec:
    return JudgeSpec.model_validate(
        {
            "taskType": "judge",
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": "scripted",
                "scripted": {"turns": [{"text": json.dumps(VERDICT)}]},
            },
            "data": {"type": "upstream", "node": "answers"},
            "judge": {"instructions": "Judge."},
            **given,
        }
    )


class Model:
    """The scripted engine, which notes what it was asked; some rows it cannot answer."""

    def __init__(self, spec: JudgeSpec) -> None:
        self._engine = loader_of(find_engine("scripted")).load(spec)
        self.asked: list[Any] = []
        self.blocks: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, requests: Any, replies: Any) -> None:
        def noted() -> Any:
            for request in requests:
                if "broken" in request.row.prompt:
                    replies.failed(request, "the model refuses")
                    continue
                self.asked.append(request.row.prompt)
                self.blocks.append(request.sampling)
                yield request

        self._engine.run(noted(), replies)


def judged(*rows: InputRow, model: Model | None = None) -> tuple[list[OutputRow], Model]:
    """Returns what becomes of rows, and the model that was asked."""
    spec = spec_of()
    model = model or Model(spec)
    emitted: list[OutputRow] = []
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    JudgeExecutor().run(ShardInput("t", 0, 1, 7, iter(rows), len(rows)), spec, model, context)
    return sorted(emitted, key=lambda row: row.index), model


def row(
    output: str = "Owls hunt at night [1], and are blue.",
    index: int = 0,
    prompt: Prompt = "When do owls hunt?",
    **answer: Any,
) -> InputRow:
    citations, _ = check_citations(output, PASSAGES, required=False)
    answer = {"retrieved": PASSAGES, "citations": citations, **answer}
    answered = OutputRow(index, "", output, prompt_tokens=1000, completion_tokens=500, **answer)
    return InputRow(index, prompt, custom_id=f"q{index}", answer=answered)


def test_the_judge_reads_passages_question_and_answer_and_the_row_stays_as_it_was() -> None:
    given = row(finish_reason="length", abstained=False, left_out=3, reasoning="Hm.")
    (done,), model = judged(given)
    assert model.asked == [
        "Judge.\n\nPassages:\n\n[1] owls.md\nOwls hunt at night.\n\n[2]\nMice hide.\n\n"
        "Question: When do owls hunt?\n\nAnswer: Owls hunt at night, and are blue."
    ]
    assert given.answer is not None
    kept = ("output", "finish_reason", "retrieved", "citations", "abstained", "left_out")
    for name in (*kept, "reasoning"):
        assert getattr(done, name) == getattr(given.answer, name), name
    assert (done.prompt, done.custom_id, done.error) == ("When do owls hunt?", "q0", None)
    assert done.judgement == Judgement(
        score=0.5,
        statements=STATEMENTS,
        reason="No passage says blue.",
        output=json.dumps(VERDICT),
    )
    # What it took is what the judge took, and not once more what the answer had taken.
    assert done.prompt_tokens == len(model.asked[0].split())
    assert done.completion_tokens == len(json.dumps(VERDICT).split())


def test_a_verdict_is_greedy_unless_the_template_says_otherwise() -> None:
    _, model = judged(row())
    assert (model.blocks[0].temperature, model.blocks[0].max_tokens) == (0, 1024)


def test_a_row_without_passages_is_judged_by_all_that_was_asked() -> None:
    chat = [Message("system", "Owls hunt at night."), Message("user", "When do owls hunt?")]
    (done,), model = judged(row(prompt=chat, retrieved=None, citations=None))
    assert model.asked == [
        "Judge.\n\nPassages:\n\n[1]\nOwls hunt at night.\n\nWhen do owls hunt?\n\n"
        "Answer: Owls hunt at night [1], and are blue."
    ]
    assert (done.prompt, done.retrieved) == (chat, None)


def test_where_nothing_was_found_nothing_can_support_the_answer() -> None:
    (done,), model = judged(row(retrieved=[]))
    assert "Passages:\n\n(None was found.)\n\nQuestion: When" in model.asked[0]
    assert done.judgement is not None
    assert [each.passage for each in done.judgement.statements] == [None, None]


def test_what_failed_or_abstained_or_says_nothing_is_not_judged() -> None:
    failed = InputRow(0, "?", error="upstream: row 0 failed: boom", fault="upstream")
    rows = [failed, row("No answer found.", 1, abstained=True), row(" ", 2), InputRow(3, "?")]
    done, model = judged(*rows)
    assert not model.asked
    assert [each.judgement for each in done] == [None] * 4
    assert [each.error for each in done] == [
        *("upstream: row 0 failed: boom", None, None, "the row has no answer to judge")
    ]
    assert done[0].fault == "upstream"
    assert (done[1].output, done[1].abstained, done[1].custom_id) == (
        "No answer found.",
        True,
        "q1",
    )
    assert done[1].retrieved == PASSAGES


def test_a_row_that_the_judge_cannot_take_ends_with_its_error_and_the_others_go_on() -> None:
    done, _ = judged(row("broken", 0), row(index=1))
    assert (done[0].error, done[0].prompt) == ("the model refuses", "When do owls hunt?")
    assert done[0].judgement is None
    assert done[1].judgement is not None


def test_equal_answers_are_judged_once() -> None:
    done, model = judged(row(), row(index=1), row("Owls sleep.", 2))
    assert len(model.asked) == 2
    assert [each.reused for each in done].count("task") == 1
    assert [each.custom_id for each in done] == ["q0", "q1", "q2"]
    assert done[2].output == "Owls sleep."


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_engines_that_keep_to_forms_can_keep_to_a_verdicts(engine: str) -> None:
    form = StructuredOutputs.model_validate({"json": VERDICT_FORM})
    assert list(form_problems(form, find_engine(engine))) == []


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(VERDICT),
        f"Here it is:\n```json\n{json.dumps(VERDICT, indent=2)}\n```\nThat {{is}} it.",
        'As asked for: {"a": 1} '
        + json.dumps(VERDICT).replace("true", '"yes"').replace("false", "0"),
    ],
)
def test_a_verdict_is_found_in_what_surrounds_it(text: str) -> None:
    found = read_verdict(text, 2)
    assert (found.error, found.score, found.statements) == (None, 0.5, STATEMENTS)
    assert (found.reason, found.output) == ("No passage says blue.", text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is fine.", "the verdict is no JSON object with statements: 'It is fine.'"),
        ("", "the verdict is no JSON object with statements: ''"),
        ("{" * 9000, "the verdict is no JSON object with statements: '{{{"),
        ('{"statements": 3}', "the verdict's statements are no list: '3'"),
        ('{"statements": ["a"]}', "no text or no verdict on a statement"),
        ('{"statements": [{"text": "a", "supported": "maybe"}]}', "no text or no verdict"),
        ('{"statements": [], "reason": "x"}', "the verdict has no statement of the answer"),
    ],
)
def test_one_that_cannot_be_read_says_why_and_has_no_score(text: str, said: str) -> None:
    found = read_verdict(text, 2)
    assert said in (found.error or "")
    assert (found.score, found.statements, found.output) == (None, [], text)


def test_one_that_is_cut_off_says_so() -> None:
    cut = read_verdict(json.dumps(VERDICT)[:40], 2, whole=False)
    assert "it was cut off at inference.max_tokens" in (cut.error or "")


def test_no_statement_names_a_passage_that_there_is_not() -> None:
    statements = [
        {"text": "a", "passage": place, "supported": True} for place in (0, 1, 2, 3, None, True)
    ]
    found = read_verdict(json.dumps({"statements": statements}), 2)
    assert [each.passage for each in found.statements] == [None, 1, 2, None, None, None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inference": {"n": 2}}, "a judge says one verdict"),
        ({"inference": {"structured_outputs": {"json_object": True}}}, "a form of its own"),
        ({"judge": {"output_column": "answer"}}, "is for rows of a dataset"),
        ({"data": {"type": "dataset", "url": "a.jsonl"}}, "give judge.output_column"),
    ],
)
def test_what_a_judge_cannot_do_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spec_of(**given)
