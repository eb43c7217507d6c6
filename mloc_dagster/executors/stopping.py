"""Looking, between two tokens, whether to go on: stop strings and cancellation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import TaskCancelled

if TYPE_CHECKING:
    import torch

SECONDS_PER_LOOK = 0.1
# A token adds at least a byte; a few more absorb characters and spaces cut at the tail's start.
TAIL_MARGIN = 4


class StopWhenCancelled:
    """Raises `TaskCancelled` out of `generate`; asks ten times a second at most."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._next_look = 0.0
        self._go_on: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Returns that no answer has ended."""
        import torch

        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + SECONDS_PER_LOOK
            if self._cancelled():
                raise TaskCancelled("stopped between two tokens")
        if self._go_on is None:
            self._go_on = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return self._go_on


class StopStrings:
    """Ends an answer as soon as its text holds a stop string.

    Args:
        stop: The strings.
        decode: Turns lists of token ids into texts.
        width: Tokens of the padded prompts.
        least: New tokens at the start that are not looked at (`min_tokens`).

    Attributes:
        ended_at: Tokens of each answer when that happened; None where it did not.
    """

    def __init__(
        self, stop: Sequence[str], decode: Callable[[Any], list[str]], *, width: int, least: int
    ) -> None:
        self._stop = tuple(stop)
        self._decode = decode
        self._width = width
        self._least = least
        self._tail = max((len(text.encode()) for text in stop), default=0) + TAIL_MARGIN
        self._ended: torch.Tensor | None = None
        self.ended_at: list[int | None] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Returns which answers have ended by now."""
        import torch

        if self._ended is None:
            self.ended_at = [None] * input_ids.shape[0]
            self._ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        tokens = input_ids.shape[1] - self._width
        if tokens <= self._least:
            return self._ended
        going = [place for place, ended in enumerate(self.ended_at) if ended is None]
        start = max(self._width + self._least, input_ids.shape[1] - self._tail)
        texts = self._decode(input_ids[going, start:].tolist())
        found = [
            place
            for place, text in zip(going, texts, strict=True)
            if any(stop in text for stop in self._stop)
        ]
        for place in found:
            self.ended_at[place] = tokens
        if found:
            self._ended[found] = True
        return self._ended


def cut_at_stop(text: str, stop: Sequence[str], start: int = 0) -> tuple[str, bool]:
    """Returns the text before the first stop string at or after `start`, and if there was one."""
    places = [place for each in stop if (place := text.find(each, start)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
