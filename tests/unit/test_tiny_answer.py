"""The shipped model that answers by passages: that it chooses, copies, cites and abstains."""

from __future__ import annotations

import importlib
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import ABSTENTION

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# A little below what it reaches.
RIGHT_OF_TWENTY, KEPT_OF_TWENTY = 8, 18
SCRIPTS = Path(__file__).parents[2] / "scripts"
PASSAGES = [
    (
        "limits.md > Limits",
        "## Limits\n\n| variable | value | what it limits |\n|---|---|---|\n"
        "| `ORCHARD_BYTES` | 20,000,000 | size of a picture |\n"
        "| `ORCHARD_ROWS` | 7 | rows of a table |",
    ),
    (
        "workers.md > Workers",
        "A worker is a process. When a worker is killed, the queue gives its tickets to another\n"
        "worker, and nothing is computed twice. Workers are started with one command.",
    ),
    (
        "errors.md > Errors > Retries",
        "- A broken file is retried at most 3 times.\n- A missing file is not retried at all.",
    ),
]
ANSWERS = {
    "How large may the size of a picture be?": (
        "`ORCHARD_BYTES` | 20,000,000 | size of a picture | [1]"
    ),
    "What happens when a worker is killed?": (
        "When a worker is killed, the queue gives its tickets to another worker, "
        "and nothing is computed twice. [2]"
    ),
    "How often is a broken file retried?": "A broken file is retried at most 3 times. [3]",
    "Is a missing file retried?": "A missing file is not retried at all. [3]",
}


@pytest.fixture(scope="module")
def scripts() -> Any:
    """How the model was made, with the questions that it is measured by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        return importlib.import_module("build_tiny_answer")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-answer"))


@pytest.fixture(scope="module")
def model() -> Any:
    folder = builtin_model_path("tiny-answer")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("question", ANSWERS)
def test_it_copies_what_answers_and_cites_where_it_stands(
    scripts: Any, model: Any, tokenizer: Any, question: str
) -> None:
    said = scripts.answer(model, tokenizer, scripts.Asked(question, PASSAGES, 0))
    assert said == ANSWERS[question]


def test_it_cites_by_content_and_not_by_place(scripts: Any, model: Any, tokenizer: Any) -> None:
    turned = PASSAGES[::-1]
    for question, answer in list(ANSWERS.items())[1:]:
        said = scripts.answer(model, tokenizer, scripts.Asked(question, turned, 0))
        text, _, number = answer.rpartition(" ")
        assert said == f"{text} [{4 - int(number[1])}]"


def test_where_no_passage_fits_it_abstains(scripts: Any, model: Any, tokenizer: Any) -> None:
    asked = scripts.Asked("Who painted the ceiling of the chapel?", PASSAGES, 0)
    assert scripts.answer(model, tokenizer, asked) == ABSTENTION


def test_questions_about_unseen_things_are_answered(
    scripts: Any, model: Any, tokenizer: Any
) -> None:
    rng = Random(11)
    asked = [scripts.about_things(rng) for _ in range(20)]
    said = [scripts.answer(model, tokenizer, each) for each in asked]
    kept = sum(
        text == ABSTENTION or scripts.copied(text, each)
        for text, each in zip(said, asked, strict=True)
    )
    assert kept >= KEPT_OF_TWENTY
    right = sum(text.endswith(f" [{each.right}]") for text, each in zip(said, asked, strict=True))
    assert right >= RIGHT_OF_TWENTY


def test_its_format_marks_the_answer(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "One. [1]"}, {"role": "assistant", "content": "Two. [2]"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|user|>One. [1]<|end|><|assistant|>Two. [2]<|end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
