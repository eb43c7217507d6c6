"""Rows as the model will read them: in chat form, or as plain text.

Rows come as texts or messages. Where the tokenizer has a chat template, texts become messages, so
that what is trained, sampled and measured looks as it will when the model is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.errors import DataError
from mloc_dagster.executors.training.base import Row
from mloc_dagster.schema import TrainingData, TrainingMethod

_ANSWERS = ("completion", "chosen", "rejected")
_SPEECH = ("prompt", *_ANSWERS)


@dataclass(frozen=True, slots=True)
class Form:
    """How rows are written.

    Attributes:
        chat: As messages, for the chat template; else as plain text.
        separator: What follows a plain prompt.
        reason: Why, for people.
    """

    chat: bool
    separator: str
    reason: str

    def describe(self) -> str:
        """Returns the choice as a line for the log."""
        if self.chat:
            return f"rows are written as chats: {self.reason}"
        after = f", with {self.separator!r} after each prompt" if self.separator else ""
        return f"rows are written as plain text{after}: {self.reason}"


def rendered_rows(
    rows: Iterable[Row],
    data: TrainingData,
    method: TrainingMethod,
    tokenizer: Any,
    log: Callable[[str], None] | None = None,
) -> list[Row]:
    """Returns the rows in one form, which `choose_form` chose.

    Args:
        rows: Rows in TRL's formats, as they were written for the task.
        data: The block that they come from, whose `format` and `separator` decide.
        method: What they are for.
        tokenizer: The model's.
        log: Hears of the choice.

    Raises:
        DataError: If rows cannot be written in the form that the block asks for.
    """
    given = list(rows)
    form = choose_form(given, data, method, tokenizer)
    if log is not None:
        log(form.describe())
    # Where the model answers itself, other columns are for the reward functions, as they are.
    speech = ("prompt",) if method.samples else _SPEECH
    if form.chat:
        return [_as_chat(row, speech) for row in given]
    return [_as_plain(row, form, number) for number, row in enumerate(given)]


def choose_form(
    rows: Sequence[Row], data: TrainingData, method: TrainingMethod, tokenizer: Any
) -> Form:
    """Returns the form that rows are written in.

    Chat, if the tokenizer has a template and the block gives no `separator`; whole texts, and
    comparisons of texts without a prompt, are plain in any case: nobody can tell who says what.

    Raises:
        DataError: If the block asks for chats without there being a template, or of whole texts.
    """
    template, whole = bool(tokenizer.chat_template), _whole_texts(rows)
    chats = any(_holds_messages(row) for row in rows)
    separated = "separator" in data.model_fields_set
    # A rollout goes on from the prompt itself, unless the template says what stands between.
    separator = data.separator if separated or not method.samples else ""
    if data.format == "chat":
        if whole:
            raise DataError(
                "data.format is chat, but the rows are whole texts: give data.prompt_column and "
                "data.response_column, or data.messages_column"
            )
        if not template:
            raise DataError("data.format is chat, but the model's tokenizer has no chat template")
        return Form(chat=True, separator="", reason="data.format asks for it")
    if data.format == "plain":
        return Form(chat=False, separator=separator, reason="data.format asks for it")
    if whole:
        return Form(chat=False, separator="", reason="they are whole texts")
    if separated:
        return Form(chat=False, separator=separator, reason="data.separator is given")
    if template:
        return Form(chat=True, separator="", reason="the tokenizer has a chat template")
    if chats:
        raise DataError(
            "the rows are chats, but the model's tokenizer has no chat template: give texts"
        )
    return Form(chat=False, separator=separator, reason="the tokenizer has no chat template")


def with_form_of(data: TrainingData, other: TrainingData) -> TrainingData:
    """Returns a block that chooses its form as another does, unless it says something itself.

    What a model is measured on is then written as what it was trained on.
    """
    fields = ("format", "separator")
    if data.model_fields_set.intersection(fields):
        return data
    given = {name: getattr(other, name) for name in fields if name in other.model_fields_set}
    return data.model_copy(update=given)


def _whole_texts(rows: Sequence[Row]) -> bool:
    return any(
        "text" in row if not _speaks(row) else "prompt" not in row and _is_text(row, "chosen")
        for row in rows
    )


def _is_text(row: Row, name: str) -> bool:
    return isinstance(row.get(name), str)


def _speaks(row: Row) -> bool:
    return "messages" in row or any(name in row for name in _SPEECH)


def _holds_messages(row: Row) -> bool:
    if "prompt" not in row and "messages" in row:
        return True
    return any(isinstance(row.get(name), list) for name in ("prompt", "chosen"))


def _as_chat(row: Row, speech: Sequence[str]) -> Row:
    said = {
        name: [{"role": "user" if name == "prompt" else "assistant", "content": row[name]}]
        for name in speech
        if _is_text(row, name)
    }
    return {**row, **said}


def _as_plain(row: Row, form: Form, number: int) -> Row:
    if _holds_messages(row):
        raise DataError(
            f"row {number} is a chat, which plain text has no place for ({form.reason}): "
            "set data.format to chat and remove data.separator, or give texts"
        )
    if form.separator and _is_text(row, "prompt"):
        return {**row, "prompt": row["prompt"] + form.separator}
    return row
