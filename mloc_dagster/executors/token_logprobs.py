"""How likely the tokens of answers were, noted while they are generated.

Probabilities are the model's own: before penalties, temperature and the rest, as vLLM counts them
by default; under structured outputs among the tokens that their form allows, as there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mloc_dagster.results.rows import TokenLogprob

if TYPE_CHECKING:
    import torch


class LogprobRecorder:
    """Keeps a few numbers of each step; the whole distribution lives for one step only.

    `__call__` is a logits processor, `look` a stopping criterion that never stops.

    Args:
        top: How many of the likeliest tokens to keep at each place.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._newest: torch.Tensor | None = None
        self._chosen: list[torch.Tensor] = []
        self._likeliest: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Notes the likeliest tokens; returns the logits as they are."""
        import torch

        self._newest = torch.log_softmax(scores.float(), dim=-1)
        if self._top:
            values, tokens = self._newest.topk(min(self._top, scores.shape[-1]), dim=-1)
            self._likeliest.append((tokens, values))
        return scores

    def look(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Notes the token that was taken; returns that no answer has ended."""
        import torch

        if self._newest is not None:
            self._chosen.append(self._newest.gather(1, input_ids[:, -1:]))
            self._newest = None
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def read(self, answers: Sequence[list[int]], tokenizer: Any) -> list[list[TokenLogprob]]:
        """Returns one entry for each token of each answer of the batch."""
        import torch

        chosen = torch.cat(self._chosen, dim=1).tolist()
        tokens = values = [[[] for _ in row] for row in chosen]
        if self._top:
            tokens = torch.stack([step[0] for step in self._likeliest], dim=1).tolist()
            values = torch.stack([step[1] for step in self._likeliest], dim=1).tolist()
        seen = {token for answer in answers for token in answer}
        seen.update(token for row in tokens for step in row for token in step)
        names = _texts(sorted(seen), tokenizer)
        return [
            [
                TokenLogprob(
                    names[token],
                    chosen[place][step],
                    [
                        (names[likely], value)
                        for likely, value in zip(
                            tokens[place][step], values[place][step], strict=True
                        )
                        if math.isfinite(value)  # a form may leave fewer tokens than asked for
                    ],
                )
                for step, token in enumerate(answer)
            ]
            for place, answer in enumerate(answers)
        ]


def _texts(tokens: list[int], tokenizer: Any) -> dict[int, str]:
    texts = tokenizer.batch_decode(
        [[token] for token in tokens],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return dict(zip(tokens, texts, strict=True))
