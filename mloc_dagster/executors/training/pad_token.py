"""The token that fills shorter rows: there must be one, and it must not be one that ends answers.

Otherwise a model never learns to stop: what follows an answer is left out of the loss, and its end
along with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

ADDED = "<|pad|>"
_FITTING = ("pad", "reserved", "unused")


def ensure_pad_token(model: Any, tokenizer: Any, log: Callable[[str], None]) -> None:
    """Gives model and tokenizer a pad token that is no end token, a known one where possible."""
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None or pad in ends:
        taken = next(_candidates(tokenizer, ends), None)
        if taken is None:
            tokenizer.add_special_tokens({"pad_token": ADDED})
        else:
            tokenizer.pad_token = taken
        log(f"the tokenizer has no pad token of its own: {tokenizer.pad_token!r} is used")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # Its vector never counts; a mean of the others, which is the default, would take minutes.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        log(f"the model's embeddings grew from {rows} to {len(tokenizer)} rows")
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    given = generation.eos_token_id if generation is not None else model.config.eos_token_id
    several = given if isinstance(given, list | tuple) else [given]
    return frozenset(each for each in [*several, tokenizer.eos_token_id] if each is not None)


def _candidates(tokenizer: Any, ends: frozenset[int]) -> Iterator[str]:
    """Yields special tokens that no text contains, best first."""
    special = {
        token.content: number
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in ends
    }
    for part in _FITTING:
        yield from (token for token in special if part in token.lower())
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in ends:
        yield tokenizer.unk_token
