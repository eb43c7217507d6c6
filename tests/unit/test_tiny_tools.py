"""The shipped model that calls tools: its format, its parsers, and that it really calls."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.models import builtin_model_path

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parents[2] / "templates" / "data"
QUESTIONS = [json.loads(row) for row in (DATA / "tool_questions.jsonl").read_text().splitlines()]
FACTS = json.loads((DATA / "tool_facts.json").read_text())
SYSTEM = """\
<tools>
{"name": "calculator", "arguments": {"expression": "string"}}
{"name": "lookup", "arguments": {"key": "string"}}
</tools>"""
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12*7"}}\n</tool_call>'


def function(name: str, *arguments: str) -> dict[str, Any]:
    properties = {each: {"type": "string", "description": "Some text."} for each in arguments}
    schema = {"type": "object", "properties": properties, "required": list(arguments)}
    described = {"name": name, "description": "A tool.", "parameters": schema}
    return {"type": "function", "function": described}


TOOLS = [function("calculator", "expression"), function("lookup", "key")]


def called(name: str, **arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-tools"))


@pytest.fixture(scope="module")
def model() -> Any:
    folder = builtin_model_path("tiny-tools")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def say(model: Any, tokenizer: Any) -> Any:
    """Answers chats in one batch: the text of each, without special tokens."""

    def say(chats: list[list[dict[str, Any]]], tools: Any = TOOLS, **options: Any) -> list[str]:
        inputs = tokenizer.apply_chat_template(
            chats,
            tools=tools,
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
            **options,
        )
        output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        return tokenizer.batch_decode(output, skip_special_tokens=True)

    return say


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_the_chat_template_writes_tools_calls_and_their_answers(tokenizer: Any) -> None:
    call = called("calculator", expression="12*7")
    messages = [
        {"role": "system", "content": "Be brief. "},
        user("What is 12 * 7?"),
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "84"},
        {"role": "tool", "content": "84"},
        {"role": "assistant", "content": "The answer is 84."},
    ]
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)

    assert text == (
        f"<|system|>Be brief.\n{SYSTEM}<|end|><|user|>What is 12 * 7?<|end|>"
        f"<|assistant|>{CALL}\n{CALL}<|end|><|tool|>84<|end|><|tool|>84<|end|>"
        "<|assistant|>The answer is 84.<|end|>"
    )
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for turns in (2, 5):
        prompt = tokenizer.apply_chat_template(
            messages[:turns], tools=TOOLS, tokenize=False, add_generation_prompt=True
        )
        assert text.startswith(prompt)


def test_the_chat_template_says_nothing_of_tools_without_any(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([user("Hi!")], tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Hi!<|end|><|assistant|>"


def test_the_chat_template_opens_a_thought_and_keeps_it(tokenizer: Any) -> None:
    said = {"role": "assistant", "content": "84", "reasoning_content": "I add."}
    text = tokenizer.apply_chat_template([user("Hi!"), said], tokenize=False)
    assert text == "<|user|>Hi!<|end|><|assistant|><think>\nI add.\n</think>\n\n84<|end|>"
    prompt = tokenizer.apply_chat_template(
        [user("Hi!")], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert text.startswith(prompt)
    assert prompt.endswith("<think>\n")


def test_the_chat_template_marks_what_the_assistant_says(tokenizer: Any) -> None:
    call = called("calculator", expression="12*7")
    encoded = tokenizer.apply_chat_template(
        [
            user("Hi!"),
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "1"},
        ],
        tools=TOOLS,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, mask in pairs if mask]) == f"{CALL}<|end|>"


def test_the_chat_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.TemplateError, match="judge"):
        tokenizer.apply_chat_template([{"role": "judge", "content": "7"}], tokenize=False)


def test_marks_stay_where_special_tokens_are_left_out(tokenizer: Any) -> None:
    ids = tokenizer(f"<think>\n</think>\n\n{CALL}<|end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"<think>\n</think>\n\n{CALL}"
    assert len(tokenizer("<tool_call>")["input_ids"]) == 1


@pytest.mark.parametrize("text", ["naïve café — 東京 🙂", "a\n\n\tb", 'x = [1, 22, "3"]'])
def test_the_tokenizer_loses_nothing(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_calls_and_answers(say: Any, tokenizer: Any) -> None:
    """The shipped questions, turn by turn: most of them to the right end."""
    chats = [[user(row["question"])] for row in QUESTIONS]
    ways: list[list[Any]] = [[] for _ in QUESTIONS]
    going = list(range(len(QUESTIONS)))
    for _ in range(3):
        texts = say([chats[place] for place in going])
        for place, text in zip(list(going), texts, strict=True):
            message = tokenizer.parse_response(text, prefix="")
            calls = [call["function"] for call in message.get("tool_calls", [])]
            expected = QUESTIONS[place]["calls"][len(ways[place]) :][: len(calls)]
            ways[place] += calls or [message["content"]]
            right = [{key: each[key] for key in ("name", "arguments")} for each in expected]
            if not calls or calls != right:
                going.remove(place)
                continue
            chats[place].append({"role": "assistant", "tool_calls": message["tool_calls"]})
            chats[place] += [{"role": "tool", "content": each["result"]} for each in expected]
    wrong = {
        row["question"]: way
        for row, way in zip(QUESTIONS, ways, strict=True)
        if way
        != [
            *({"name": each["name"], "arguments": each["arguments"]} for each in row["calls"]),
            row["answer"],
        ]
    }
    assert len(wrong) <= 4, wrong


def test_the_questions_are_answered_by_the_facts() -> None:
    for row in QUESTIONS:
        for call in row["calls"]:
            if call["name"] == "lookup":
                assert FACTS[call["arguments"]["key"]] == call["result"]


@pytest.mark.parametrize("question", ["What is 12 * 7?", "What is the capital of Peru?"])
def test_without_tools_it_does_not_pretend(say: Any, question: str) -> None:
    assert say([[user(question)]], tools=None) == ["I cannot know that: I have no tool for it."]


def test_it_greets_without_a_call(say: Any) -> None:
    assert say([[user("Hello!")], [user("Thank you!")]]) == [
        "Hello! How can I help?",
        "You are welcome.",
    ]


def test_it_calls_tools_by_the_names_it_is_shown(say: Any) -> None:
    tools = [function("search", "query"), function("evaluate", "formula")]
    first, second = say([[user("What is 12 * 7?")], [user("Who wrote Faust?")]], tools=tools)
    assert '{"name": "evaluate", "arguments": {"formula": "12*7"}}' in first
    assert '{"name": "search", "arguments": {"query": "author of Faust"}}' in second


def test_it_says_that_a_tool_failed(say: Any) -> None:
    call = called("lookup", key="capital of Peru")
    chat = [
        user("What is the capital of Peru?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "error: timed out"},
    ]
    assert say([chat]) == ["I could not find out."]


def test_it_thinks_where_it_is_told_to(say: Any, tokenizer: Any) -> None:
    [text] = say([[user("What is 12 * 7?")]], enable_thinking=True)
    assert tokenizer.parse_response(text, prefix="<|assistant|><think>\n") == {
        "role": "assistant",
        "thinking": "I call calculator.",
        "tool_calls": [called("calculator", expression="12*7")],
    }


@pytest.fixture
def request_to_vllm() -> Any:
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    return protocol.ChatCompletionRequest(
        messages=[user("What is 12 * 7?")], tools=TOOLS, model="tiny-tools"
    )


def test_the_parser_hermes_of_vllm_reads_its_calls(tokenizer: Any, request_to_vllm: Any) -> None:
    parsers = importlib.import_module("vllm.tool_parsers")
    parser = parsers.ToolParserManager.get_tool_parser("hermes")(tokenizer, request_to_vllm.tools)
    read = parser.extract_tool_calls(f"{CALL}\n{CALL}", request_to_vllm)
    assert not read.content
    assert [(each.function.name, each.function.arguments) for each in read.tool_calls] == [
        ("calculator", '{"expression": "12*7"}')
    ] * 2


def test_the_parser_hf_of_vllm_reads_its_thoughts_and_calls(
    tokenizer: Any, request_to_vllm: Any
) -> None:
    module = importlib.import_module("vllm.parser.response_template")
    parser = module.ResponseTemplateParser(tokenizer, request_to_vllm.tools)
    parser.set_prompt_token_ids(tokenizer("<|user|>Hi!<|end|><|assistant|><think>\n")["input_ids"])
    text = f"I call calculator and calculator.\n</think>\n\n{CALL}\n{CALL}<|end|>"
    thought, content, calls = parser.parse(text, request_to_vllm, enable_auto_tools=True)
    assert (thought, content) == ("I call calculator and calculator.", None)
    assert [(each.name, each.arguments) for each in calls] == [
        ("calculator", '{"expression": "12*7"}')
    ] * 2
