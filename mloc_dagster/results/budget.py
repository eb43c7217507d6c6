"""How many rows of a task may end with an error."""

from __future__ import annotations

import math
from fractions import Fraction


def allowed_errors(rows: int, budget: float) -> int:
    """Returns how many rows may fail before the task does.

    Any share above 0 allows at least one row and, of more than one, never all of them; 0 allows
    none. A task of a single row may thus never lose it.

    Args:
        rows: Rows of the task.
        budget: The share that may fail, 0 to 1.
    """
    if budget <= 0 or rows <= 0:
        return 0
    # str: 0.29 means 29 %, not the nearest binary fraction, which is less.
    share = math.floor(Fraction(str(budget)) * rows)
    return min(max(share, 1), rows - 1)
