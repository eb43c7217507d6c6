"""The columns of a source of training rows, and how its rows are read: a `Layout`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.errors import DataError
from mloc_dagster.schema.data import TrainingData
from mloc_dagster.schema.hints import known_names

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
