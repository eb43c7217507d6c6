"""How many rows of a task may end with an error."""

from __future__ import annotations

import math
from fractions import Fraction

_FIRST_ERROR = 300
"""Characters of the first error: what is to be done comes after it and must be read, too."""


def allowed_errors(rows: int, budget: float, upstream: int = 0) -> int:
    """Returns how many rows may fail before the task does.

    Any share above 0 allows at least one row and, of more than one, never all of them; 0 allows
    none. A task of a single row may thus never lose it.

    Args:
        rows: Rows of the task.
        budget: The share that may fail, 0 to 1.
        upstream: Rows that failed in an earlier task, whose budget they were charged to: they may
            all, and the share is that of the others.
    """
    return upstream + _share(rows - upstream, budget)


def _share(rows: int, budget: float) -> int:
    if budget <= 0 or rows <= 0:
        return 0
    # str: 0.29 means 29 %, not the nearest binary fraction, which is less.
    share = math.floor(Fraction(str(budget)) * rows)
    return min(max(share, 1), rows - 1)


def budget_problem(
    errors: int, rows: int, allowed: int, first: tuple[int, str] | None, *, again: str = ""
) -> str:
    """Returns what is said of a task with more errors than it may have, wherever it is said.

    Args:
        errors: Rows that ended with an error.
        rows: Rows of the task.
        allowed: How many of them might have.
        first: Index and text of the first of them.
        again: The command that computes them again; empty where it is said elsewhere.
    """
    named = ""
    if first is not None:
        index, text = first
        text = " ".join(text.split())
        named = f"; the first, row {index}: {text[:_FIRST_ERROR]}{'…' * (len(text) > _FIRST_ERROR)}"
    command = f" (`{again}`)" if again else ""
    return (
        f"{errors:,} of {rows:,} rows ended with an error, and error_budget allows {allowed:,}"
        f"{named}. Compute them again{command}, or run the template with a larger error_budget"
    )
