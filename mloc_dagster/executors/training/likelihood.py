"""How likely a causal language model finds answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mloc_dagster.executors.training.sequences import TokenSequence, batched, padded


class Likelihood(NamedTuple):
    """The likelihood of one answer.

    Attributes:
        logprob: Natural logarithm, summed over its tokens.
        tokens: How many these are.
    """

    logprob: float
    tokens: int

    @property
    def mean(self) -> float:
        """Per token, so that a short answer is not likelier for being short."""
        return self.logprob / max(self.tokens, 1)


def answer_likelihoods(
    model: Any, sequences: Sequence[TokenSequence], pad: int
) -> list[Likelihood]:
    """Returns the likelihood of each answer after its prompt; gradients are not kept."""
    import torch

    found: dict[int, Likelihood] = {}
    with torch.no_grad():
        for places in batched([len(each.ids) for each in sequences]):
            batch = [sequences[place] for place in places]
            given = padded([each.ids for each in batch], pad, model.device, left=False)
            logits = model(**given, use_cache=False).logits
            for row, (place, each) in enumerate(zip(places, batch, strict=True)):
                ids = given["input_ids"][row, each.start : len(each.ids)]
                # A row at a time: the whole batch in float32 would double what it takes.
                scores = logits[row, each.start - 1 : len(each.ids) - 1].float()
                chosen = scores.gather(-1, ids[:, None])[:, 0] - scores.logsumexp(-1)
                found[place] = Likelihood(float(chosen.sum()), len(ids))
    return [found[place] for place in range(len(sequences))]
