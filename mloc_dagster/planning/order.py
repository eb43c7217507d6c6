"""The order in which a model should read rows: common beginnings together.

Lexicographic order of what the model reads walks the tree of all prompts' beginnings depth
first. Every beginning is then read in one go, so that whatever a prefix cache evicts (the oldest
first) is never needed again: no other order finds more in a cache that holds one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

_FIRST_STEP = 64  # most neighbours differ earlier; comparing so much is one memcmp


class RowKey(NamedTuple):
    """Where a row belongs in the order; rows with equal keys have the same input.

    Attributes:
        adapter: Name of the adapter that answers it; caches never share across adapters.
        text: What the model reads, as far as it is known before an engine renders it.
        rest: Tells rows with the same text apart: options, the form of the prompt.
    """

    adapter: str
    text: str
    rest: bytes = b""


def planned_order(keys: Sequence[RowKey]) -> list[int]:
    """Returns the positions of `keys` in their planned order; equal keys keep theirs."""
    return sorted(range(len(keys)), key=keys.__getitem__)


def shared_beginnings(keys: Sequence[RowKey]) -> Iterator[int]:
    """Yields for each key how many characters of its text the key before it begins with too."""
    if keys:
        yield 0
    for before, key in pairwise(keys):
        yield common_length(before.text, key.text) if before.adapter == key.adapter else 0


def common_length(left: str, right: str) -> int:
    """Returns the length of the longest common beginning, comparing slices and no characters."""
    limit = min(len(left), len(right))
    low, step = 0, _FIRST_STEP
    while low < limit and left[low : low + step] == right[low : low + step]:
        low, step = low + step, step * 2
    high = min(low + step, limit)
    low = min(low, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def tokens_along(
    lengths: Sequence[int], shared: Sequence[int], tail_tokens: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yields each row's prompt tokens, and how many of them it shares with the row before.

    Only what a row does not share is ever tokenized; the tokens of its beginning are known from
    the rows before it, and interpolated where that beginning ends within one of their tails.

    Args:
        lengths: Characters of each row's text, in planned order.
        shared: How many of them the row before has too.
        tail_tokens: Tokens of the others.
    """
    # (characters, tokens) where the beginnings of the row before end, shortest first.
    marks = [(0, 0)]
    for length, common, tail in zip(lengths, shared, tail_tokens, strict=True):
        while len(marks) > 1 and marks[-2][0] >= common:
            marks.pop()
        if len(marks) > 1:
            (from_characters, from_tokens), (characters, tokens) = marks[-2:]
            part = (common - from_characters) / (characters - from_characters)
            marks[-1] = (common, from_tokens + round((tokens - from_tokens) * part))
        known = marks[-1][1]
        if length > common:
            marks.append((length, known + tail))
        yield known + tail, known
