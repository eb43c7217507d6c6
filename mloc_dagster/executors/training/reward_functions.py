"""Rewards that are computed from the answer's text; found by entry point, as anyone's are.

Each takes prompts, completions and the rows' other columns, then its options, and returns a score
for each completion. What is compared is compared without white space around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Prompts = Sequence[Any]
Columns = Mapping[str, Sequence[Any]]


def contains(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    text: str | None = None,
    column: str | None = None,
    ignore_case: bool = True,
) -> list[float]:
    """Scores 1 where an answer has a text in it, else 0.

    Args:
        prompts: What was asked.
        completions: The answers.
        columns: The rows' other columns.
        text: The text that is looked for, the same for all rows.
        column: Or the column with each row's own; one that has a list has several to choose from.
        ignore_case: Whether upper and lower case are the same.
    """
    return _compared(completions, columns, text, column, ignore_case, lambda has, it: it in has)


def ends_with(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    text: str | None = None,
    column: str | None = None,
    ignore_case: bool = True,
) -> list[float]:
    """Scores 1 where an answer ends with a text, else 0; arguments are those of `contains`."""
    return _compared(completions, columns, text, column, ignore_case, str.endswith)


def exact_match(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    text: str | None = None,
    column: str | None = None,
    ignore_case: bool = True,
) -> list[float]:
    """Scores 1 where an answer is a text, else 0; arguments are those of `contains`."""
    return _compared(completions, columns, text, column, ignore_case, str.__eq__)


def regex(
    prompts: Prompts, completions: Sequence[str], columns: Columns, *, pattern: str
) -> list[float]:
    """Scores 1 where a regular expression matches somewhere in an answer, else 0."""
    found = re.compile(pattern).search
    return [float(found(each) is not None) for each in completions]


def length(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    least: int = 0,
    most: int | None = None,
    unit: Literal["words", "characters"] = "words",
) -> list[float]:
    """Scores 1 where an answer is as long as it should be, and less the further it is from that.

    A score falls in proportion: half of `least`, or one and a half times `most`, scores 0.5.

    Args:
        prompts: What was asked.
        completions: The answers.
        columns: The rows' other columns.
        least: The shortest that is long enough.
        most: The longest that is short enough; None: there is no such.
        unit: What is counted.
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}, not 'words' or 'characters'")
    if least < 0 or (most is not None and most < max(least, 1)):
        raise ValueError(f"least ({least}) and most ({most}) leave no length that fits")

    def score(completion: str) -> float:
        size = len(completion.split()) if unit == "words" else len(completion.strip())
        if size < least:
            return size / least
        if most is not None and size > most:
            return max(0.0, 1.0 - (size - most) / most)
        return 1.0

    return [score(each) for each in completions]


def _compared(
    completions: Sequence[str],
    columns: Columns,
    text: str | None,
    column: str | None,
    ignore_case: bool,
    holds: Callable[[str, str], bool],
) -> list[float]:
    def same(each: object) -> str:
        stripped = str(each).strip()
        return stripped.casefold() if ignore_case else stripped

    rows = zip(completions, _wanted(len(completions), columns, text, column), strict=True)
    return [float(any(holds(same(has), same(it)) for it in wanted)) for has, wanted in rows]


def _wanted(
    count: int, columns: Columns, text: str | None, column: str | None
) -> Sequence[Sequence[object]]:
    """Returns what each row is compared with."""
    if text is not None and column is not None:
        raise ValueError("give either text or column, not both")
    if text is not None:
        if not text.strip():
            raise ValueError("text is empty, which every answer has in it")
        return [[text]] * count
    if column is None:
        raise ValueError("give text, or the column that has each row's own")
    if column not in columns:
        raise ValueError(f"there is no column {column!r}; columns: {', '.join(columns) or 'none'}")
    wanted = [each if isinstance(each, list | tuple) else [each] for each in columns[column]]
    for row, each in enumerate(wanted):
        if not each or any(value is None or not str(value).strip() for value in each):
            raise ValueError(f"the column {column!r} is empty in row {row} of a batch")
    return wanted
