"""Prompts → batches: sorted by length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mloc_dagster.results.rows import InputRow


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to be generated; a row has `n` of them.

    Attributes:
        row: The row.
        answer: Place among the row's answers, from 0.
        tokens: The rendered prompt.
        room: New tokens that it may get: `max_tokens`, or less where the model's context ends.
    """

    row: InputRow
    answer: int
    tokens: list[int]
    room: int


def make_batches(
    requests: Iterable[Request], max_batch_size: int, max_batch_tokens: int
) -> Iterator[list[Request]]:
    """Yields batches, longest prompts first: what does not fit in memory shows at once.

    All requests of a batch have the same `room`: none may run past the model's last position,
    and none may be cut short because its neighbour is longer.

    Args:
        requests: What to generate; held in memory.
        max_batch_size: Requests per batch at most.
        max_batch_tokens: Prompt and new tokens per batch at most, padding included; a single
            request above it gets a batch of its own.
    """
    batch: list[Request] = []
    for each in sorted(requests, key=lambda one: len(one.tokens), reverse=True):
        if batch:
            width = len(batch[0].tokens) + batch[0].room
            full = len(batch) >= max_batch_size or (len(batch) + 1) * width > max_batch_tokens
            if full or each.room != batch[0].room:
                yield batch
                batch = []
        batch.append(each)
    if batch:
        yield batch
