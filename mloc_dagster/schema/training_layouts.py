"""How rows to train on are read: their columns, and rows of TRL's formats out of them."""

from __future__ import annotations

from collections.abc import Callable

from mloc_dagster.errors import DataError
from mloc_dagster.schema.preference_cells import Preferred, compared
from mloc_dagster.schema.training_cells import (
    read_answer,
    read_label,
    read_messages,
    read_speech,
    read_text,
)
from mloc_dagster.schema.training_columns import (
    Columns,
    Layout,
    Record,
    TrainingRow,
    cell,
    described,
    simple_layout,
)


def read_conversation(value: object) -> list[dict[str, object]]:
    """Reads a chat to learn from, in which the assistant says something.

    Raises:
        ValueError: If it is none.
    """
    messages = read_messages(value)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("has no message of the assistant: there is nothing to learn from")
    return messages


def preference_reader(
    columns: Columns,
) -> tuple[dict[str, str], Callable[[Record], Preferred]]:
    """Returns the columns of a comparison by their role, and what reads one.

    Raises:
        DataError: If a column is not there.
    """
    roles: dict[str, str] = {}
    if columns.has("prompt_column", "prompt"):
        roles["prompt"] = columns.choose("prompt_column", "prompt")
    roles["chosen"] = columns.choose("chosen_column", "chosen")
    roles["rejected"] = columns.choose("rejected_column", "rejected")

    def read(record: Record) -> Preferred:
        prompt = cell(record, roles["prompt"], read_speech) if "prompt" in roles else None
        chosen = cell(record, roles["chosen"], read_answer)
        return compared(prompt, chosen, cell(record, roles["rejected"], read_answer))

    return roles, read


def language(columns: Columns) -> Layout:
    """Reads chats, prompts with answers, or whole texts."""
    data, names = columns.data, columns.names
    asked = [
        kind
        for kind, fields in {
            "messages_column": ("messages_column",),
            "text_column": ("text_column",),
            "prompt_column with response_column": ("prompt_column", "response_column"),
        }.items()
        if columns.given(*fields)
    ]
    if len(asked) > 1:
        raise DataError(f"data gives {' and '.join(asked)}: rows are read in one of these ways")
    if data.messages_column is not None or (not asked and "messages" in names):
        chosen = columns.choose("messages_column", "messages")
        return simple_layout({"messages": chosen}, [read_conversation])
    if columns.given("prompt_column", "response_column") or (
        not asked and {"prompt", "completion"} <= set(names)
    ):
        prompt = columns.choose("prompt_column", "prompt")
        answer = columns.choose("response_column", "completion")
        return simple_layout({"prompt": prompt, "completion": answer}, [read_speech, read_answer])
    if data.text_column is not None or "text" in names:
        return simple_layout({"text": columns.choose("text_column", "text")}, [read_text])
    raise DataError(
        f"{columns.where}: say which columns to learn from with data.prompt_column and "
        f"data.response_column, or data.text_column, or data.messages_column. {columns.listed}"
    )


def preferences(columns: Columns) -> Layout:
    """Reads comparisons of two answers to a prompt."""
    return _preference(columns, needs_prompt=True)


def comparisons(columns: Columns) -> Layout:
    """Reads comparisons of two answers, or of two texts without a prompt."""
    return _preference(columns, needs_prompt=False)


def _preference(columns: Columns, *, needs_prompt: bool) -> Layout:
    roles, read = preference_reader(columns)

    def rows_of(record: Record) -> list[TrainingRow]:
        prompt, chosen, rejected = read(record)
        row = {"chosen": chosen, "rejected": rejected}
        if prompt is not None:
            return [{"prompt": prompt, **row}]
        if needs_prompt:
            raise ValueError("chosen and rejected share no prompt, and there is no prompt column")
        return [row]

    return Layout(described(roles), tuple(roles.values()), rows_of)


def labelled(columns: Columns) -> Layout:
    """Reads answers that are labelled as good or bad, or comparisons, two of each."""
    paired = columns.has("chosen_column", "chosen") and columns.has("rejected_column", "rejected")
    if paired and not columns.has("label_column", "label"):
        return _unpaired(columns)
    roles = {
        "prompt": columns.choose("prompt_column", "prompt"),
        "completion": columns.choose("response_column", "completion"),
        "label": columns.choose("label_column", "label"),
    }
    return simple_layout(roles, [read_speech, read_answer, read_label])


def _unpaired(columns: Columns) -> Layout:
    roles, read = preference_reader(columns)

    def rows_of(record: Record) -> list[TrainingRow]:
        prompt, chosen, rejected = read(record)
        if prompt is None:
            raise ValueError("chosen and rejected have no prompt of their own")
        return [
            {"prompt": prompt, "completion": chosen, "label": True},
            {"prompt": prompt, "completion": rejected, "label": False},
        ]

    return Layout(f"{described(roles)}; two rows of each", tuple(roles.values()), rows_of)


def prompts(columns: Columns) -> Layout:
    """Reads prompts alone; other columns stay beside them."""
    prompt = columns.choose_prompt()

    def rows_of(record: Record) -> list[TrainingRow]:
        others = {name: value for name, value in record.items() if name not in (prompt, "prompt")}
        return [{"prompt": cell(record, prompt, read_speech), **others}]

    words = described({"prompt": prompt})
    if prompt != "prompt" and "prompt" in columns.names:
        words += "; the column 'prompt' is left out"
    return Layout(words, None, rows_of)
