"""What a row is expected to cost, in prompt tokens that are really computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostWeights:
    """How an engine spends its time.

    Attributes:
        prefill: Cost of a prompt token that is not in the prefix cache.
        decode: Cost of a token that is written. Writing goes one step a token and reading all
            tokens at once; what a batch makes of that depends on the machine, so that this is a
            guess and balances no better than it.
        block_tokens: The prefix cache keeps blocks of so many tokens; 0 where there is none.
    """

    prefill: float = 1.0
    decode: float = 4.0
    block_tokens: int = 16


@dataclass(frozen=True, slots=True)
class RowLoad:
    """What one row asks of an engine.

    Attributes:
        prompt_tokens: Tokens that the model reads.
        cached_tokens: How many of them are expected in the prefix cache.
        output_tokens: Tokens that it is expected to write.
        cost: Expected cost, at least 1: also a row that is not computed is read and written.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float


def row_load(
    prompt_tokens: int,
    shared_tokens: int,
    output_tokens: int,
    weights: CostWeights,
    *,
    copied: bool = False,
) -> RowLoad:
    """Returns what a row asks of an engine that has just read the row before it.

    Args:
        prompt_tokens: Tokens of its prompt.
        shared_tokens: How many the row before has too.
        output_tokens: Tokens that it is expected to write.
        weights: How the engine spends its time.
        copied: Whether its answer is taken from the row before.
    """
    if copied:
        return RowLoad(0, 0, 0, 1.0)
    cached = 0
    if weights.block_tokens:
        # An engine reads at least the last token, to know what follows.
        findable = min(shared_tokens, prompt_tokens - 1)
        cached = max(findable, 0) // weights.block_tokens * weights.block_tokens
    cost = (prompt_tokens - cached) * weights.prefill + output_tokens * weights.decode
    return RowLoad(prompt_tokens, cached, output_tokens, max(cost, 1.0))
