"""The columns of training rows, and the layouts that read rows of TRL's formats from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.errors import DataError
from mloc_dagster.schema.base import known_names
from mloc_dagster.schema.data import TrainingData
from mloc_dagster.schema.training.cells import (
    Preferred,
    compared,
    read_answer,
    read_label,
    read_messages,
    read_speech,
    read_text,
    read_tools,
)

PROMPT_COLUMNS = ("prompt", "question", "text", "input", "messages")
"""What a column of prompts is called when the template does not say."""

Record = Mapping[str, object]
"""A row as its source has it."""

TrainingRow = dict[str, Any]
"""A row in one of TRL's dataset formats."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a source's rows are read.

    Attributes:
        words: The columns, for people.
        columns: What is needed of a row; None: everything.
        rows_of: Turns a row into rows to train on; raises `ValueError` with what is wrong.
    """

    words: str
    columns: tuple[str, ...] | None
    rows_of: Callable[[Record], list[TrainingRow]]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a source.

    Attributes:
        names: All of them.
        texts: Those that hold texts or messages, as far as was looked.
        where: The file or dataset, for messages.
        data: Which of them the template names.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    where: str
    data: TrainingData

    def given(self, *fields: str) -> bool:
        """Whether the template names a column in any of these fields."""
        return any(getattr(self.data, field) is not None for field in fields)

    def has(self, field: str, usual: str) -> bool:
        """Whether the template names this column, or there is one of its usual name."""
        return self.given(field) or usual in self.names

    def choose(self, field: str, *usual: str) -> str:
        """Returns the column that the template names, or the one of the usual name.

        Raises:
            DataError: If there is no such column.
        """
        wanted: str | None = getattr(self.data, field)
        if wanted is not None:
            if wanted in self.names:
                return wanted
            hint = known_names(wanted, self.names, "columns")
            raise DataError(f"{self.where} has no column {wanted!r} (data.{field}){hint}", field)
        for name in usual:
            if name in self.names:
                return name
        raise DataError(
            f"{self.where} has no column {usual[0]!r}; say with data.{field} which one is meant. "
            f"{self.listed}"
        )

    def choose_prompt(self) -> str:
        """Returns the column with the prompts, by the template, its name, or as the only text.

        Raises:
            DataError: If there is no such column, or none was named and several could be meant.
        """
        if self.given("prompt_column") or "prompt" in self.names:
            return self.choose("prompt_column", "prompt")
        usual = [name for name in PROMPT_COLUMNS if name in self.names]
        for candidates in (usual, self.texts):
            if len(candidates) == 1:
                return candidates[0]
        raise DataError(
            f"{self.where}: say with data.prompt_column which column has the prompts. {self.listed}"
        )

    @property
    def listed(self) -> str:
        """The columns, as the end of a message."""
        return f"columns: {', '.join(self.names) or 'none'}"


def columns_of(records: Sequence[Record], where: str, data: TrainingData) -> Columns:
    """Returns the columns of some rows."""
    names = dict.fromkeys(name for record in records for name in record)
    texts = [
        name
        for name in names
        if all(isinstance(record.get(name), str | list | None) for record in records)
        and any(record.get(name) for record in records)
    ]
    return Columns(tuple(names), tuple(texts), where, data)


def inline_records(data: TrainingData) -> tuple[str, list[Record]]:
    """Returns the rows that are written into the template, and the field that has them."""
    if data.preferences:
        return "preferences", [each.model_dump() for each in data.preferences]
    if data.prompts:
        return "prompts", [{"prompt": each} for each in data.prompts]
    return "rows", list[Record](data.rows)


def cell[T](record: Record, column: str, read: Callable[[object], T]) -> T:
    """Reads a cell; what is wrong with it is told with the column's name.

    Raises:
        ValueError: If the cell is of no use.
    """
    try:
        return read(record.get(column))
    except ValueError as error:
        raise ValueError(f"{column} {error}") from None


def described(roles: Mapping[str, str]) -> str:
    """Returns columns by their role: `prompt: question, completion`."""
    return ", ".join(role if role == name else f"{role}: {name}" for role, name in roles.items())


def simple_layout(roles: Mapping[str, str], readers: Sequence[Callable[[object], Any]]) -> Layout:
    """Returns the layout in which each role is one cell."""
    parts = list(zip(roles.items(), readers, strict=True))

    def rows_of(record: Record) -> list[TrainingRow]:
        return [{role: cell(record, name, read) for (role, name), read in parts}]

    return Layout(described(roles), tuple(roles.values()), rows_of)


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
        roles = chat_roles(columns)
        return simple_layout(
            {role: name for role, (name, _) in roles.items()}, [read for _, read in roles.values()]
        )
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


def chat_roles(columns: Columns) -> dict[str, tuple[str, Callable[[object], object]]]:
    """Returns the columns of a chat by their role, each with what reads it.

    Raises:
        DataError: If a column is not there.
    """
    roles: dict[str, tuple[str, Callable[[object], object]]] = {
        "messages": (columns.choose("messages_column", "messages"), read_conversation)
    }
    if columns.has("tools_column", "tools"):
        roles["tools"] = (columns.choose("tools_column", "tools"), read_tools)
    return roles


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
