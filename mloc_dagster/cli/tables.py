"""Tables for the terminal; plain aligned columns where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_WHOLE_WORD = 12


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

    console = console or Console()
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


def _longest_word(*texts: str) -> int:
    """Returns the width that keeps short words whole in a narrow terminal; 0 if they are long."""
    longest = max(len(word) for text in texts for word in (text.split() or [""]))
    return longest if longest <= _WHOLE_WORD else 0
