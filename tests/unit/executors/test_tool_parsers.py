"""Which parsers read a model's answers, and what transformers' parsing makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TemplateError, TerminalError
from mloc_dagster.executors.engines.protocol import Answer, EngineRequest, Rendered
from mloc_dagster.executors.engines.tool_calls import CALL_FORMATS, CallIds, finish_reason
from mloc_dagster.executors.engines.vllm.engine_type import VllmOptions, parser_names
from mloc_dagster.executors.engines.vllm.parsers import (
    BY_MODEL_TYPE,
    ModelFacts,
    ParserChoice,
    choose_parsers,
)
from mloc_dagster.results import FunctionCall, InputRow, ToolCall
from mloc_dagster.schema import Inference

ADD = {"function": {"name": "add", "parameters": {"type": "object"}}}
HERMES = "<|im_start|>{{ tools }}<tool_call>"


def chosen(facts: ModelFacts, broken: tuple[str, ...] = (), **options: str) -> ParserChoice:
    return choose_parsers(
        VllmOptions(**options), facts, lambda tool, thoughts: not {tool, thoughts} & set(broken)
    )


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (HERMES, "hermes"),
        ("<tool_call>\n<function=name>", "qwen3_xml"),
        ("<tool_call>name<arg_key>", "glm45"),
        ("[TOOL_CALLS]", "mistral"),
        ('<|start_header_id|>{"name": x, "parameters": dictionary of', "llama3_json"),
        ("<|tool_call_start|>[", "lfm2"),
        ("{{ messages }}", None),
    ],
)
def test_a_chat_template_tells_the_parser(template: str, parser: str | None) -> None:
    assert chosen(ModelFacts(chat_template=template)).tool == parser


def test_the_log_says_which_parser_was_taken_and_why() -> None:
    found = chosen(ModelFacts(chat_template=HERMES))
    assert found.notes == (
        "model.vllm.tool_call_parser: hermes, because the chat template has <tool_call>",
    )


def test_a_family_goes_before_marks_and_the_models_own_template_before_both() -> None:
    family = ModelFacts("granitemoehybrid", HERMES)
    assert chosen(family).tool == "granite4"
    own = ModelFacts("llama", HERMES, response_fields=frozenset({"tool_calls", "thinking"}))
    found = chosen(own)
    assert (found.tool, found.reasoning) == ("hf", "hf")
    assert found.forcing == "hermes", "a response template cannot force calls"
    assert found.gate is None, "the model may not think at all"


def test_a_named_parser_is_taken_and_none_is_none() -> None:
    facts = ModelFacts(chat_template=HERMES)
    assert chosen(facts, tool_call_parser="xlam").tool == "xlam"
    assert chosen(facts, tool_call_parser="none") == ParserChoice()


@pytest.mark.parametrize(
    ("template", "begins", "parser"),
    [
        ("<think>{{ enable_thinking }}", "<|im_start|>assistant\n", "qwen3"),
        ("<think>", "<|Assistant|><think>\n", "deepseek_r1"),
        ("</think> in old turns, <think>", "<|im_start|>assistant\n", None),
        ("[THINK]", "[/INST]", "mistral"),
    ],
)
def test_thoughts_are_looked_for_where_a_model_has_them(
    template: str, begins: str, parser: str | None
) -> None:
    found = chosen(ModelFacts(chat_template=template, begins=begins))
    assert found.reasoning == found.gate == parser


def test_a_parser_that_cannot_read_the_tokens_is_left_out_and_noted() -> None:
    facts = ModelFacts(chat_template=HERMES + "<think> enable_thinking")
    found = chosen(facts, broken=("qwen3",))
    assert (found.tool, found.reasoning) == ("hermes", None)
    assert "cannot read its tokens" in found.notes[-1]


def test_vllm_has_every_parser_that_is_picked() -> None:
    tools, thoughts = parser_names("tool_call_parser"), parser_names("reasoning_parser")
    if not tools:
        pytest.skip("vLLM is not installed")
    assert {each.tool_parser for each in CALL_FORMATS} <= tools
    assert {tool for tool, _ in BY_MODEL_TYPE.values() if tool} <= tools
    assert {name for _, name in BY_MODEL_TYPE.values() if name} <= thoughts


def refusal(model: dict[str, Any], **inference: Any) -> str:
    document = {
        "apiVersion": "mloc/v1",
        "kind": "InferenceTask",
        "metadata": {"name": "calls"},
        "spec": {
            "taskType": "inference",
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}, **model},
            "data": {"type": "list", "items": ["x"]},
            "inference": inference,
        },
    }
    with pytest.raises(TemplateError) as error:
        compile_mapping(document)
    return str(error.value)


def test_templates_are_refused_with_the_reason() -> None:
    vllm = {"engine": "vllm"}
    if parser_names("tool_call_parser"):
        text = refusal({**vllm, "vllm": {"tool_call_parser": "hermez"}})
        assert "hermez" in text
        assert "did you mean 'hermes'" in text
    text = refusal({**vllm, "vllm": {"tool_call_parser": "none"}}, tools=[ADD])
    assert "inference.tools need a parser" in text
    text = refusal(
        {**vllm, "vllm": {"tool_call_parser": "hf"}}, tools=[ADD], tool_choice="required"
    )
    assert "cannot hold answers to calls" in text
    ours = {"engine": "transformers"}
    text = refusal({**ours, "transformers": {"response_template": "qwen33"}})
    assert "did you mean" in text
    text = refusal({**ours, "transformers": {"response_template": "none"}}, tools=[ADD])
    assert "need a response template" in text
    own = {"start_anchor": "<a>", "fields": {"content": {}}}
    text = refusal(
        {**ours, "transformers": {"response_template": own}}, tools=[ADD], tool_choice="required"
    )
    assert "hold answers to the form of calls" in text
    text = refusal(ours, tools=[ADD], tool_choice="required", min_tokens=3)
    assert "min_tokens cannot be kept" in text


CALL = ToolCall("a", FunctionCall("add", "{}"))


@pytest.mark.parametrize(
    ("choice", "reason", "calls", "said"),
    [
        ("auto", "stop", [CALL], "tool_calls"),
        ("required", "stop", [CALL], "tool_calls"),
        ({"function": {"name": "add"}}, "stop", [CALL], "stop"),
        ("auto", "length", [CALL], "length"),
        ("auto", "stop", [], "stop"),
    ],
)
def test_answers_end_as_a_hosted_api_says(
    choice: Any, reason: str, calls: list[ToolCall], said: str
) -> None:
    block = Inference.model_validate({"tools": [ADD], "tool_choice": choice})
    assert finish_reason(block, reason, calls) == said


def request_of(prompt: str = "<|im_start|>assistant\n", **fields: Any) -> EngineRequest:
    block = Inference.model_validate({"temperature": 0, "tools": [ADD], **fields})
    rendered = Rendered(prompt, special=False)
    return EngineRequest(InputRow(0, "x"), rendered, [1, 2], sampling=block, seed=4)


def test_ids_are_those_of_the_request_and_keep_the_form_that_models_rely_on() -> None:
    ids = CallIds(request_of(), 0)
    assert ids.of(0) == CallIds(request_of(), 0).of(0)
    assert len({ids.of(0), ids.of(1), CallIds(request_of(), 1).of(0)}) == 3
    assert ids.of(0, "chatcmpl-tool-123") == ids.of(0)
    assert ids.of(0, "functions.add:3") == "functions.add:3"
    mistral = ids.of(0, "aB3dE6gH9")
    assert len(mistral) == 9
    assert mistral.isalnum()
    sampled = request_of(temperature=1.0)
    other = EngineRequest(
        sampled.row, sampled.rendered, sampled.tokens, sampling=sampled.sampling, seed=5
    )
    assert CallIds(sampled, 0).of(0) != CallIds(other, 0).of(0)


class TestResponses:
    """What transformers' parsing, with TRL's template of Qwen 3, makes of an answer."""

    @pytest.fixture(autouse=True)
    def trl(self) -> None:
        pytest.importorskip("trl")

    def responses(self, named: Any = "qwen3") -> Any:
        from mloc_dagster.executors.engines.transformers.responses import Responses

        tokenizer = SimpleNamespace(
            chat_template=HERMES + "<think>",
            all_special_tokens=["<|im_end|>", "<pad>"],
            eos_token="<|im_end|>",
        )
        return Responses(named, tokenizer, "qwen")

    def read(self, text: str, prompt: str = "<|im_start|>assistant\n", **fields: Any) -> Answer:
        from mloc_dagster.executors.engines.transformers.responses import Say

        said: dict[str, list[Any]] = {"text": [], "reasoning": [], "calls": []}
        say = Say(said["text"].append, said["reasoning"].append, said["calls"].append)
        request = request_of(prompt, **fields)
        response = self.responses().begin(request, 0, say)
        for end in range(len(text)):
            response.grow(text[:end])
        tokens = list(range(len(text)))
        answer = response.answer(
            Answer(text, "stop", len(tokens)), tokens, lambda lists: [text[: len(lists[0])]]
        )
        assert "".join(said["text"]) == answer.text
        assert "".join(said["reasoning"]) == (answer.reasoning or "")
        assert [each.arguments for each in said["calls"]] == [
            each.function.arguments for each in answer.tool_calls
        ]
        whole = self.responses().begin(request, 0)
        again = whole.answer(
            Answer(text, "stop", len(tokens)), tokens, lambda lists: [text[: len(lists[0])]]
        )
        assert again == answer, "the same at once and in pieces"
        return answer

    def test_calls_and_text_come_apart(self) -> None:
        call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
        answer = self.read(f"Let me add.\n{call}\n{call}<|im_end|>")
        assert answer.text == "Let me add."
        assert [each.function for each in answer.tool_calls] == [
            FunctionCall("add", '{"a": 1}'),
            FunctionCall("add", '{"a": 1}'),
        ]
        assert answer.finish_reason == "tool_calls"

    def test_a_call_that_cannot_be_read_stays_in_the_text_and_spoils_no_other(self) -> None:
        answer = self.read(
            '<tool_call>\n{"name": "add", "arg</tool_call>\n'
            '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call><|im_end|>'
        )
        assert answer.text == '<tool_call>\n{"name": "add", "arg'
        assert [each.function.name for each in answer.tool_calls] == ["add"]

    def test_thoughts_come_apart_and_are_counted(self) -> None:
        answer = self.read("<think>\nOne and one.\n</think>\n\nTwo.<|im_end|>", tools=[])
        assert (answer.reasoning, answer.text) == ("One and one.", "Two.")
        assert answer.reasoning_tokens == len("One and one.")
        assert answer.finish_reason == "stop"

    def test_thoughts_that_the_prompt_opens_come_apart(self) -> None:
        answer = self.read("Hm.</think>Two.", "<|im_start|>assistant\n<think>\n", tools=[])
        assert (answer.reasoning, answer.text) == ("Hm.", "Two.")

    def test_without_tools_markup_is_text(self) -> None:
        answer = self.read("<tool_call>x</tool_call><|im_end|>", tools=[])
        assert answer.text == "<tool_call>x</tool_call>"

    def test_what_cannot_be_held_to_calls_is_refused(self) -> None:
        own = {"start_anchor": "x", "fields": {"content": {}, "tool_calls": {"open": "<c>"}}}
        block = Inference.model_validate({"tools": [ADD], "tool_choice": "required"})
        with pytest.raises(TerminalError, match="take tool_choice: auto"):
            self.responses(own).check(block)
