"""Prompts: which ones an update takes, and their token ids."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training.base import Row


class PromptOrder:
    """Which rows each update takes: every pass over the data in an order of its own.

    The order depends on the seed and the place alone, so nothing of it has to be kept to resume.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._known: tuple[int, list[int]] = (-1, [])

    def take(self, start: int, count: int) -> list[int]:
        """Returns the rows of the episodes from `start` on."""
        return [self._row(place) for place in range(start, start + count)]

    def _row(self, place: int) -> int:
        turn, within = divmod(place, self._rows)
        if self._known[0] != turn:
            order = list(range(self._rows))
            Random(f"{self._seed}:{turn}").shuffle(order)  # noqa: S311 - repeatable on purpose
            self._known = (turn, order)
        return self._known[1][within]


def prompt_limit(model: Any, max_new_tokens: int, asked: int | None) -> int | None:
    """Returns how many tokens of a prompt the model can take, if there is a limit.

    Args:
        model: The model, whose positions have to hold the answer as well.
        max_new_tokens: Room for the answer.
        asked: The limit that the user gave.

    Raises:
        TerminalError: If no room is left for prompts.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return asked
    room = positions - max_new_tokens
    if room < 1:
        raise TerminalError(
            f"generation.max_new_tokens is {max_new_tokens}, but the model has {positions} "
            "positions for prompt and answer together"
        )
    return room if asked is None else min(asked, room)


def encode_prompts(tokenizer: Any, rows: Sequence[Row], limit: int | None) -> list[list[int]]:
    """Turns prompts into token ids; chats through the chat template, ready for an answer.

    Args:
        tokenizer: The model's.
        rows: Rows with a `prompt`: a text, or a list of messages.
        limit: Tokens per prompt; longer ones lose their beginning.

    Raises:
        TerminalError: If a prompt is missing or empty.
    """
    encoded: list[list[int]] = []
    for row in rows:
        ids = _encode(tokenizer, row.get("prompt"))
        if not ids:
            raise TerminalError(
                f"PPO needs a prompt in each row, this has none: {dict(row)!r:.200}"
            )
        encoded.append(ids if limit is None else ids[-limit:])
    return encoded


def _encode(tokenizer: Any, prompt: Any) -> list[int]:
    if not prompt:
        return []
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    goes_on = prompt[-1]["role"] == "assistant"  # the answer has been begun already
    text = tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]
