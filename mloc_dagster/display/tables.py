"""Tables, numbers and texts for the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def count(number: int, noun: str) -> str:
    """Returns `1 row`, `1,024 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counts_in_words(counts: Mapping[str, int]) -> list[str]:
    """Returns `41 turns`, `1 tool call`, of names that are plurals; what is 0 is left out."""
    return [
        count(number, name.replace("_", " ").removesuffix("s"))
        for name, number in counts.items()
        if number
    ]


def rate(per_second: float) -> str:
    """Returns a rate with about three digits: `0.84`, `31.2`, `4,096`."""
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 10 else f"{per_second:.2f}"


def short_rate(per_second: float) -> str:
    """Returns a rate with two or three digits: `0.8`, `31`, `4.1k`, `12k`, `1.2M`."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= limit * 0.9995:
            scaled = per_second / limit
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{per_second:.1f}" if per_second < 9.95 else f"{per_second:.0f}"


def duration(seconds: float) -> str:
    """Returns `8.4 s` below a minute, else `3:07`, or `1:02:03`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}"


def shorten(text: str, width: int) -> str:
    """Returns `text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


_WHOLE_WORD = 12
_WITHOUT_TERMINAL = 200
"""Columns of what is piped or saved: rich would cut it to 80."""


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    console: Console | None = None,
) -> None:
    """Prints a table.

    Args:
        headings: One per column.
        rows: Texts; shown as they are, without markup.
        numbers: Columns that align to the right.
        console: Where to; stdout by default.
    """
    from rich.text import Text

    console = console or _stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        right = place in numbers
        table.add_column(
            heading,
            justify="right" if right else "left",
            no_wrap=right or place == 0,
            overflow="fold",
            min_width=_longest_word(heading, *(row[place] for row in rows)),
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _stdout() -> Console:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WITHOUT_TERMINAL
    return console


def _longest_word(*texts: str) -> int:
    """Returns the width that keeps short words whole in a narrow terminal; 0 if they are long."""
    longest = max(len(word) for text in texts for word in (text.split() or [""]))
    return longest if longest <= _WHOLE_WORD else 0
