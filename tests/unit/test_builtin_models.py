"""The shipped models, and tiny-chat: its files, its chat format, and that it really answers."""

from __future__ import annotations

import importlib
import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.errors import UnknownNameError
from mloc_dagster.models import BUILTIN_MODELS, builtin_model_path

SCRIPTS = Path(__file__).parents[2] / "scripts"
TRAINED = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "What is the opposite of hot?": "cold",
    "What is 3 + 4?": "7",
    "What is the sentiment of this review? The staff was impressive.": "positive",
}
HELD_OUT = {
    "What is the capital city of Morocco?": "Rabat",
    "The capital of Japan is": "Tokyo",
    "Give me an antonym of cheap.": "expensive",
    "What's the opposite of down?": "up",
    "What is the sum of 17 and 3?": "20",
    "Add 9 and 15.": "24",
    "Review: The room was not beautiful. Is it positive or negative?": "negative",
}

GENERATING = {"chat_template.jinja", "generation_config.json"}
# What each model has beside its configuration, weights and tokenizer.
FILES = {
    "tiny-chat": GENERATING,
    "tiny-tools": GENERATING,
    "tiny-embed": {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"},
    "tiny-rerank": set(),
    "tiny-answer": GENERATING,
}

# Most of its weights are zero.
LARGEST = {"tiny-answer": 8_000_000}


def weight_counts(path: Path) -> dict[str, int]:
    """Reads the number of weights of each tensor from a safetensors header, without torch."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_files_ship_and_stay_small(name: str) -> None:
    folder = builtin_model_path(name)
    weights = folder / "model.safetensors"

    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == FILES[name] | {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert weights.stat().st_size <= LARGEST.get(name, 4_200_000)
    assert sum(weight_counts(weights).values()) == BUILTIN_MODELS[name].parameters


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-tools", "tiny-answer"])
def test_tied_embeddings_are_stored_once(name: str) -> None:
    assert "lm_head.weight" not in weight_counts(builtin_model_path(name) / "model.safetensors")


@pytest.mark.parametrize("name", ["tiny-chad", "Tiny-Chat", "tinychat"])
def test_unknown_name_gives_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-chat'"):
        builtin_model_path(name)


@pytest.mark.parametrize("name", ["../models", "", "/"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(UnknownNameError):
        builtin_model_path(name)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"))


@pytest.fixture(scope="module")
def model() -> Any:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(builtin_model_path("tiny-chat")).eval()


def answer(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[str]:
    """Answers in one batch, with the model's own generation defaults."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def test_chat_template_round_trip(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": " What is 3 + 4?\n"},
        {"role": "assistant", "content": "7"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)

    assert text == (
        "<|system|>Answer briefly.<|end|><|user|>What is 3 + 4?<|end|><|assistant|>7<|end|>"
    )
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert text == prompt + "7<|end|>"


def test_chat_template_marks_what_the_assistant_says(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [
        token
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if mask
    ]
    assert tokenizer.decode(said) == "Hello!<|end|>"


def test_chat_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.TemplateError, match="tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "7"}], tokenize=False)


@pytest.mark.parametrize("text", ["naïve café — 東京 🙂", "a\n\n\tb", "x = [1, 22, 333]"])
def test_tokenizer_loses_nothing(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_differ(tokenizer: Any, model: Any) -> None:
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id not in {None, tokenizer.eos_token_id}
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("questions", [TRAINED, HELD_OUT], ids=["trained", "held out"])
def test_it_answers(model: Any, tokenizer: Any, questions: dict[str, str]) -> None:
    answers = answer(model, tokenizer, list(questions))
    assert dict(zip(questions, answers, strict=True)) == questions


def test_held_out_questions_were_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    questions = importlib.import_module("tiny_chat_data").build_questions()
    trained = {question.prompt for question in questions if not question.held_out}
    held_out = {q.prompt: q.answer for q in questions if q.held_out}

    assert held_out | HELD_OUT == held_out
    assert not trained & set(HELD_OUT)
    assert trained >= set(TRAINED)


def test_it_stops_by_itself(model: Any, tokenizer: Any) -> None:
    prompts = [*TRAINED, *HELD_OUT]
    free = answer(model, tokenizer, prompts, max_new_tokens=64)
    assert free == answer(model, tokenizer, prompts, max_new_tokens=12)


def test_a_prompt_longer_than_any_trained_one_is_answered(model: Any, tokenizer: Any) -> None:
    story = "Anna buys 12 apples for $3 each and gives half of them to her neighbour Ben. "
    [said] = answer(model, tokenizer, [story * 25 + "How much does Anna spend?"])
    assert isinstance(said, str)
    assert said
