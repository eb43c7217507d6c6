"""Chats with tools, as chat templates read them."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TemplateError
from mloc_dagster.executors.prompts import is_blank, render_chat, render_plain
from mloc_dagster.results import FunctionCall, Message, ToolCall
from mloc_dagster.schema import Inference

ADD = {"function": {"name": "add", "parameters": {"type": "object"}}}


class Tokenizer:
    """Keeps what it was asked to render."""

    def __init__(self, chat_template: str = "{{ tools }}") -> None:
        self.chat_template = chat_template
        self.chat: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}

    def apply_chat_template(self, chat: list[dict[str, Any]], **options: Any) -> str:
        self.chat, self.options = chat, options
        return "rendered"


def called(arguments: str) -> list[Message]:
    call = ToolCall("c1", FunctionCall("add", arguments))
    return [
        Message("user", "2 + 3?"),
        Message("assistant", "", tool_calls=[call], reasoning="I add"),
        Message("tool", "5", tool_call_id="c1"),
    ]


def test_a_template_reads_tools_calls_and_their_answers() -> None:
    tokenizer = Tokenizer()
    block = Inference.model_validate({"tools": [ADD], "chat_template_kwargs": {"thinks": False}})

    assert render_chat(tokenizer, called('{"a": 2}'), block) == "rendered"

    _, assistant, tool = tokenizer.chat
    assert assistant["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    ]
    assert assistant["reasoning_content"] == "I add"
    assert tool == {"role": "tool", "content": "5", "tool_call_id": "c1"}
    assert tokenizer.options["tools"] == [{"type": "function", **ADD}]
    assert tokenizer.options["thinks"] is False


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    tokenizer = Tokenizer()
    render_chat(tokenizer, "hi", Inference.model_validate({"tools": [ADD], "tool_choice": "none"}))
    assert "tools" not in tokenizer.options


@pytest.mark.parametrize("arguments", ["2, 3", "[2, 3]", "null"])
def test_arguments_that_are_no_object_are_their_rows_error(arguments: str) -> None:
    with pytest.raises(ValueError, match="'c1' are no JSON object"):
        render_chat(Tokenizer(), called(arguments), Inference())


def test_a_model_without_a_place_for_tools_says_so() -> None:
    block = Inference.model_validate({"tools": [ADD]})
    with pytest.raises(ValueError, match="no place for tools"):
        render_chat(Tokenizer("{{ messages }}"), "hi", block)
    with pytest.raises(ValueError, match="no chat template"):
        render_plain("hi", block)


def test_a_chat_of_calls_alone_is_not_empty() -> None:
    assert not is_blank(called("{}")[1:2])
    assert is_blank([Message("assistant", "")])


def template(**inference: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mloc/v1",
        "kind": "InferenceTask",
        "metadata": {"name": "t"},
        "spec": {
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"type": "list", "items": ["a"]},
            "inference": inference,
        },
    }


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        ({"tools": [ADD, ADD]}, "'add' is the name of two functions"),
        (
            {"tools": [ADD], "tool_choice": {"function": {"name": "ad"}}},
            "'ad' is none of the tools.*'add'",
        ),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [{"function": {"name": "a b"}}]}, "a b"),
        (
            {"tools": [ADD], "structured_outputs": {"choice": ["a"]}},
            "the form that structured_outputs",
        ),
    ],
)
def test_tools_that_contradict_each_other_are_refused(
    inference: dict[str, Any], message: str
) -> None:
    with pytest.raises(TemplateError, match=message):
        compile_mapping(template(**inference))
