"""Requests → batches: sorted by length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mloc_dagster.executors.engine import EngineRequest

BY_ROW = {"system_prompt", "seed", "n", "structured_outputs", "error_budget"}
"""Fields of `inference` in which the rows of a batch may differ."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one answer in a batch; a request has `n` of them.

    Attributes:
        request: The request.
        answer: Place among the request's answers, from 0.
        room: New tokens that it may get: `max_tokens`, or less where the model's context ends.
        grammar: The compiled grammar of its form (see `guided`); None when it is free.
        pixels: Its images as tensors (see `transformers_vision`); empty without any.
    """

    request: EngineRequest
    answer: int
    room: int
    grammar: Any | None = None
    pixels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        """The prompt."""
        return self.request.tokens


def make_batches(
    slots: Iterable[Slot], max_batch_size: int, max_batch_tokens: int
) -> Iterator[list[Slot]]:
    """Yields batches, longest prompts first: what does not fit in memory shows at once.

    All slots of a batch have the same adapter, the same sampling but for `BY_ROW`, and the same
    `room`: none may run past the model's last position, and none may be cut short because its
    neighbour is longer.

    Args:
        slots: What to generate; held in memory.
        max_batch_size: Slots per batch at most.
        max_batch_tokens: Prompt and new tokens per batch at most, padding included; a single
            slot above it gets a batch of its own.
    """
    for alike in _alike(slots):
        batch: list[Slot] = []
        for each in sorted(alike, key=lambda one: len(one.tokens), reverse=True):
            if batch:
                width = len(batch[0].tokens) + batch[0].room
                full = len(batch) >= max_batch_size or (len(batch) + 1) * width > max_batch_tokens
                if full or each.room != batch[0].room:
                    yield batch
                    batch = []
            batch.append(each)
        if batch:
            yield batch


def _alike(slots: Iterable[Slot]) -> list[list[Slot]]:
    groups: dict[tuple[str | None, str, int], list[Slot]] = {}
    keys: dict[int, str] = {}  # slots hold their blocks, so an identity stays one block's
    for slot in slots:
        sampling = slot.request.sampling
        key = keys.get(id(sampling))
        if key is None:
            key = "" if sampling is None else sampling.model_dump_json(exclude=BY_ROW)
            keys[id(sampling)] = key
        images = len(slot.request.rendered.images)  # of one shape, for models that want it so
        groups.setdefault((slot.request.adapter, key, images), []).append(slot)
    return list(groups.values())
