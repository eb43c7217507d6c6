"""The task type `readability`: how many years of school a text takes."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from mloc_dagster.errors import DataError
from mloc_dagster.executors import InputRow, RowExecutor, last_user_text
from mloc_dagster.schema import Block, RowSpec, TaskType


class Readability(Block):
    """How texts are graded."""

    formula: Literal["ari", "coleman_liau"] = "ari"
    """Automated readability index, or Coleman-Liau index."""

    error_budget: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that may end with an error."""


class ReadabilitySpec(RowSpec):
    """Grades each row: how many years of school it takes to read it."""

    block_name = "readability"

    readability: Readability = Readability()


def grade(row: InputRow, spec: ReadabilitySpec) -> str:
    """Returns the grade of a row."""
    text = last_user_text(row.prompt)
    words = re.findall(r"\w+", text)
    if not words:
        raise DataError("there are no words in this row")
    letters = sum(len(word) for word in words) / len(words)
    sentences = (len(re.findall(r"[.!?]+", text)) or 1) / len(words)
    if spec.readability.formula == "ari":
        return f"{4.71 * letters + 0.5 / sentences - 21.43:.1f}"
    return f"{5.88 * letters - 29.6 * sentences - 15.8:.1f}"


READABILITY = TaskType(
    name="readability",
    kinds=("ReadabilityTask",),
    spec=ReadabilitySpec,
    executor=lambda: RowExecutor(grade, engine="acme-readability 1.0"),
)
