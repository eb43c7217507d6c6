"""A metric and a reward function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def brevity(answers: Sequence[str], references: Sequence[str | None], rows: Sequence[Any]) -> float:
    """Returns the share of answers that are no longer than the right ones."""
    pairs = zip(answers, references, strict=True)
    brief = [right is not None and len(answer) <= len(right) for answer, right in pairs]
    return sum(brief) / len(brief)


def short(
    prompts: Sequence[Any],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    words: int = 20,
) -> list[float]:
    """Returns 1 for an answer within a number of words, and less the longer it is."""
    return [min(1.0, words / max(1, len(each.split()))) for each in completions]
