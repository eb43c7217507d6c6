"""PPO's arithmetic, on tensors of one entry per answer (rows) and token (columns).

Masks are boolean and true on tokens that were sampled: up to and including the end token. Masked
entries never reach a result, whatever they hold.

The papers:
    PPO: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347.
    GAE: Schulman et al. 2015, "High-Dimensional Continuous Control Using Generalized Advantage
        Estimation", arXiv:1506.02438.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-8


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Adds up the entries where the mask is true."""
    return values.masked_fill(~mask, 0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Averages the entries where the mask is true; 0 where there are none."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the variance over the mask, with Bessel's correction; 0 for a single entry."""
    squares = (values - masked_mean(values, mask)).square()
    return masked_sum(squares, mask) / (mask.sum() - 1).clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scales to unit variance over the mask, and to mean 0 unless told to keep the mean.

    Entries outside the mask become 0.
    """
    mean = masked_mean(values, mask)
    scaled = (values - mean) * (masked_variance(values, mask) + _TINY).rsqrt()
    return (scaled if shift_mean else scaled + mean).masked_fill(~mask, 0)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Estimates advantages (GAE, equations 11 and 16), and the returns that they imply.

    An answer is an episode: nothing comes after its last token, the value of what would is 0.

    Args:
        rewards: Rewards for each token.
        values: Value estimates of the text before each token.
        mask: Tokens that count; true from the left without gaps.
        gamma: Discount per token.
        lam: Weight of estimates that look further ahead.

    Returns:
        Advantages, and returns (advantages plus values); 0 outside the mask.
    """
    import torch

    rewards = rewards.masked_fill(~mask, 0)
    values = values.masked_fill(~mask, 0)
    advantages = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])
    next_value = ahead
    for place in reversed(range(values.shape[1])):
        error = rewards[:, place] + gamma * next_value - values[:, place]
        ahead = error + gamma * lam * ahead
        advantages[:, place] = ahead
        next_value = values[:, place]
    return advantages, advantages + values


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Computes the policy's loss (PPO, equation 7, as a loss), for each token.

    Args:
        logprobs: What the policy says of each sampled token now.
        old_logprobs: What it said when it sampled.
        advantages: How much better each token was than expected.
        cliprange: Epsilon: ratios outside `1 ± epsilon` gain nothing more.

    Returns:
        The loss, and where the clipped term is the larger one, so that no gradient flows.
    """
    import torch

    ratio = (logprobs - old_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float
) -> Tensor:
    """Computes half the squared error of values, for each token.

    Moving further than `cliprange` from the estimate at sampling time gains nothing, as in the
    PPO authors' own code.
    """
    import torch

    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Returns the share of the returns' variance that values foretold; 0 where there is none."""
    total = masked_variance(returns, mask)
    left = masked_variance(returns - values, mask)
    return (1 - left / total.clamp(min=_TINY)).masked_fill(total <= _TINY, 0)
