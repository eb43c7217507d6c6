"""Chat or plain: which form rows are written in, and how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.errors import DataError
from mloc_dagster.executors.training.examples import choose_form, rendered_rows, with_form_of
from mloc_dagster.schema import SftSpec, TrainingData, find_task_type

SFT = SftSpec.method
CHAT = SimpleNamespace(chat_template="{{ messages }}")
BASE = SimpleNamespace(chat_template=None)
PAIR = {"prompt": "Hi", "completion": "Hello!"}
USER = [{"role": "user", "content": "Hi"}]
GOOD = [{"role": "assistant", "content": "Hello!"}]
BAD = [{"role": "assistant", "content": "Go away"}]


def data(**fields: Any) -> TrainingData:
    return TrainingData(dataset_name="rows.jsonl", **fields)


def rendered(
    row: dict[str, Any], tokenizer: Any = CHAT, task_type: str = "sft", **fields: Any
) -> dict[str, Any]:
    return dict(
        rendered_rows([row], data(**fields), find_task_type(task_type).spec.method, tokenizer)[0]
    )


def test_with_a_chat_template_texts_become_messages() -> None:
    assert rendered(PAIR) == {"prompt": USER, "completion": GOOD}
    preference = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away"}
    assert rendered(preference, task_type="dpo") == {
        "prompt": USER,
        "chosen": GOOD,
        "rejected": BAD,
    }
    labelled = {**PAIR, "label": True}
    assert rendered(labelled, task_type="kto") == {
        "prompt": USER,
        "completion": GOOD,
        "label": True,
    }
    mixed = {"prompt": "Hi", "chosen": GOOD, "rejected": BAD}
    assert rendered(mixed, task_type="dpo")["prompt"] == USER


@pytest.mark.parametrize("row", [{"messages": [*USER, *GOOD]}, {"prompt": USER}, {"text": "Once"}])
def test_what_has_its_form_already_is_left_alone(row: dict[str, Any]) -> None:
    assert rendered(row) == row


def test_the_other_columns_of_online_rows_stay_as_they_are() -> None:
    row = {"prompt": "2+2?", "completion": "4", "messages": "old", "text": "t"}
    expected = {**row, "prompt": [{"role": "user", "content": "2+2?"}]}
    assert rendered(row, task_type="grpo") == expected


def test_plain_prompts_get_the_separator() -> None:
    plain = {"prompt": "Hi\n\n", "completion": "Hello!"}
    assert rendered(PAIR, BASE) == plain
    assert rendered(PAIR, format="plain") == plain
    assert rendered(PAIR, separator=" -> ") == {"prompt": "Hi -> ", "completion": "Hello!"}
    assert rendered(PAIR, separator="\n\n") == plain


def test_a_rollout_goes_on_from_the_prompt_itself_unless_a_separator_is_given() -> None:
    assert rendered({"prompt": "Once"}, BASE, "ppo") == {"prompt": "Once"}
    assert rendered({"prompt": "Once"}, BASE, "ppo", separator=": ") == {"prompt": "Once: "}


def test_comparisons_of_texts_without_a_prompt_stay_plain() -> None:
    row = {"chosen": "Hi! Hello!", "rejected": "Hi! Go away"}
    assert rendered(row, task_type="reward") == row


@pytest.mark.parametrize(
    ("fields", "tokenizer", "row", "said"),
    [
        ({}, CHAT, PAIR, "chats: the tokenizer has a chat template"),
        ({}, BASE, PAIR, r"plain text, with '\\n\\n' after each prompt: the tokenizer has no"),
        ({}, CHAT, {"text": "a"}, "plain text: they are whole texts"),
        ({"separator": " "}, CHAT, PAIR, "with ' ' after each prompt: data.separator is given"),
        ({"format": "plain"}, CHAT, PAIR, "data.format asks for it"),
        ({"format": "chat", "separator": " "}, CHAT, PAIR, "chats: data.format asks for it"),
    ],
)
def test_the_choice_is_told(
    fields: dict[str, Any], tokenizer: Any, row: dict[str, Any], said: str
) -> None:
    told: list[str] = []
    rendered_rows([row], data(**fields), SFT, tokenizer, told.append)
    assert len(told) == 1
    assert said.replace("\\\\", "\\") in told[0]
    assert told[0] == choose_form([row], data(**fields), SFT, tokenizer).describe()


@pytest.mark.parametrize(
    ("fields", "tokenizer", "row", "message"),
    [
        ({"format": "chat"}, BASE, PAIR, "has no chat template"),
        ({"format": "chat"}, CHAT, {"text": "a"}, "the rows are whole texts"),
        ({"format": "plain"}, CHAT, {"messages": USER}, r"row 0 is a chat.*data\.format asks"),
        ({"separator": " "}, CHAT, {"prompt": USER}, r"row 0 is a chat.*data\.separator is given"),
        ({}, BASE, {"prompt": USER}, "the rows are chats, but .* no chat template"),
    ],
)
def test_what_cannot_be_written_is_refused(
    fields: dict[str, Any], tokenizer: Any, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rendered_rows([row], data(**fields), SFT, tokenizer)


def test_an_evaluation_is_written_as_the_training_was() -> None:
    trained, measured = data(separator=": "), data()
    taken = with_form_of(measured, trained)
    assert rendered_rows([PAIR], taken, SFT, CHAT)[0]["prompt"] == "Hi: "
    own = data(format="chat")
    assert with_form_of(own, trained) is own
    assert with_form_of(measured, data()).model_fields_set == measured.model_fields_set
