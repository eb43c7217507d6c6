"""From one cell of a table to a prompt; and which column holds the prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from mloc_dagster.errors import DataError, nearest_hint
from mloc_dagster.results.rows import Message, Prompt
from mloc_dagster.schema.hints import known_names
from mloc_dagster.schema.training_columns import PROMPT_COLUMNS

_ROLES = frozenset(("system", "user", "assistant", "tool"))


def to_prompt(cell: object) -> Prompt:
    """Turns a cell into a prompt.

    Strings pass; null, and NaN as data frames write it, become the empty string, so that no row
    disappears; numbers and booleans are written as JSON writes them; a list must be chat messages.

    Raises:
        ValueError: If the cell is anything else.
    """
    match cell:
        case str():
            return cell
        case None:
            return ""
        case float() if math.isnan(cell):
            return ""
        case float() if math.isinf(cell):
            raise ValueError(f"expected text, got {cell}")
        case bool():
            return "true" if cell else "false"
        case int() | float():
            return str(cell)
        case list():
            return _to_messages(cell)
        case _:
            raise ValueError(f"expected text or chat messages, got {_describe(cell)}")


def _to_messages(cell: list[object]) -> list[Message]:
    if not cell:
        raise ValueError("expected chat messages, got an empty list")
    try:
        messages = msgspec.convert(cell, list[Message])
    except msgspec.ValidationError as error:
        raise ValueError(f"expected chat messages ({{role, content}} each): {error}") from None
    for place, message in enumerate(messages):
        if message.role not in _ROLES:
            raise ValueError(
                f"message {place} has the role {message.role!r}{nearest_hint(message.role, _ROLES)}"
            )
    return messages


def _describe(cell: object) -> str:
    text = repr(cell)
    return f"{type(cell).__name__} {text if len(text) <= 60 else text[:59] + '…'}"


def choose_column(wanted: str | None, columns: Sequence[str], where: str) -> str:
    """Returns the column of prompts.

    Args:
        wanted: The column that the template names, if it does.
        columns: What there is.
        where: The file or dataset, for the message.

    Raises:
        DataError: If the column is missing, or none was named and the choice is not obvious.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        hint = known_names(wanted, columns, "columns")
        raise DataError(f"{where} has no column {wanted!r}{hint}", "column")
    if len(columns) == 1:
        return columns[0]
    usual = [name for name in PROMPT_COLUMNS if name in columns]
    if len(usual) == 1:
        return usual[0]
    raise DataError(
        f"{where} has {len(columns)} columns; say which holds the prompts with data.column: "
        f"{', '.join(columns)}"
    )
