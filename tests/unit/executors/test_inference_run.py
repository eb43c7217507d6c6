"""Which rows reach an engine at all."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.echo import EchoExecutor, EchoSpec
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.executors.prompts import render_chat
from mloc_dagster.results import InputRow, Message, OutputRow
from mloc_dagster.schema import EmbeddingSpec, Inference, InferenceSpec, ModelSpec
from tests.unit.executors.test_row_reuse import CountingEngine

DATA = {"type": "list", "items": ["unused"]}
MODEL = {"source": {"type": "local", "identifier": "nowhere"}, "engine": "transformers"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
EMPTY: list[Any] = [
    "",
    " \n\t",
    [],
    [Message("user", "")],
    [Message("system", " "), Message("user", [{"type": "text", "text": "\n"}])],
]


def answers(spec: ModelSpec, engine: CountingEngine, *prompts: Any, **row: Any) -> list[OutputRow]:
    emitted: list[OutputRow] = []
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    rows = [InputRow(index, prompt, **row) for index, prompt in enumerate(prompts)]
    answer_rows(ShardInput("t", 0, 1, 7, iter(rows), len(rows)), spec, engine, context)
    return sorted(emitted, key=lambda row: row.index)


def spec_of(task_type: str, **blocks: Any) -> Any:
    kind = {"inference": InferenceSpec, "embedding": EmbeddingSpec}[task_type]
    return kind.model_validate({"taskType": task_type, "model": MODEL, "data": DATA, **blocks})


@pytest.mark.parametrize(
    "spec",
    [
        spec_of("inference", inference={"temperature": 0, "system_prompt": "Be kind."}),
        spec_of("embedding", pooling={"instruction": "query: "}),
    ],
    ids=["inference", "embedding"],
)
@pytest.mark.parametrize("verbatim", [False, True])
def test_an_empty_prompt_is_an_error_of_its_row(spec: ModelSpec, verbatim: bool) -> None:
    engine = CountingEngine()

    rows = answers(spec, engine, *EMPTY, "Hello", verbatim=verbatim)

    assert [row.error for row in rows] == ["the prompt is empty"] * len(EMPTY) + [None]
    assert engine.asked == [len(EMPTY)]


def test_a_chat_that_shows_something_is_not_empty() -> None:
    spec = spec_of("inference", inference={"temperature": 0})
    chats = [[Message("user", [PICTURE])], [Message("user", ""), Message("assistant", "I say")]]

    picture, begun = answers(spec, CountingEngine(), *chats)

    assert "image" in (picture.error or "")
    assert begun.error is None


def test_echo_answers_an_empty_row_with_nothing() -> None:
    emitted: list[OutputRow] = []
    spec = EchoSpec.model_validate({"taskType": "echo", "data": DATA})
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    shard = ShardInput("t", 0, 1, 7, iter([InputRow(0, "")]), 1)

    EchoExecutor().run(shard, spec, None, context)

    assert [(row.output, row.error) for row in emitted] == [("", None)]


def test_a_chat_template_reads_who_says_a_message() -> None:
    class Tokenizer:
        def apply_chat_template(self, chat: list[dict[str, str]], **_: object) -> str:
            return " ".join(f"{turn.get('name', turn['role'])}: {turn['content']}" for turn in chat)

    prompt = [Message("user", "hello", "ada"), Message("user", "hi")]
    assert (
        render_chat(Tokenizer(), prompt, Inference(system_prompt="be brief"))
        == "system: be brief ada: hello user: hi"
    )
