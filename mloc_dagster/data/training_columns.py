"""The columns of a source of training rows, and how its rows are read: a `Layout`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.data.cells import PROMPT_COLUMNS
from mloc_dagster.data.hints import known_names
from mloc_dagster.errors import DataError
from mloc_dagster.schema.data import TrainingData

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
