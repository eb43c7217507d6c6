"""How far the policy is from its reference, and what that costs.

The reward of a token is less by `coefficient × KL`, so that the policy keeps to what the reference
might have written: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences",
arXiv:1909.08593; Ouyang et al. 2022, "Training language models to follow instructions with human
feedback", arXiv:2203.02155. The estimators are those of John Schulman's note "Approximating KL
Divergence" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mloc_dagster.schema import PpoOptions

if TYPE_CHECKING:
    from torch import Tensor

# Ziegler et al., section 2.2: one look corrects as if the divergence were off by a fifth at most.
_LARGEST_ERROR = 0.2


def kl_estimate(logprobs: Tensor, other: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """Estimates KL(p ‖ q) from tokens that p sampled.

    Args:
        logprobs: log p of each token.
        other: log q of each token.
        estimator: `k1`, log(p/q): right on average, often negative. `k3`, q/p − 1 − log(q/p):
            right on average, never negative, and steadier while p and q are near.

    Returns:
        An estimate for each token.
    """
    difference = other - logprobs
    return -difference if estimator == "k1" else difference.expm1() - difference


class KlController(Protocol):
    """What a nat of divergence costs."""

    coefficient: float

    def update(self, kl: float, episodes: int) -> None:
        """Takes the mean divergence per answer, and how many answers that was measured on."""
        ...


@dataclass(slots=True)
class FixedKl:
    """Always the same price."""

    coefficient: float

    def update(self, kl: float, episodes: int) -> None:
        """Changes nothing."""


@dataclass(slots=True)
class AdaptiveKl:
    """Dearer while the divergence is above a target, cheaper below (Ziegler et al., section 2.2).

    Attributes:
        coefficient: The price now.
        target: Nats per answer to aim at.
        horizon: Rollouts over which the price would double or vanish at an error of 1.
    """

    coefficient: float
    target: float
    horizon: float

    def update(self, kl: float, episodes: int) -> None:
        """Moves the price in proportion to how far the divergence is off."""
        error = min(max(kl / self.target - 1, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.coefficient *= max(0.0, 1 + error * episodes / self.horizon)


def kl_controller(options: PpoOptions) -> KlController:
    """Returns the controller that the options ask for."""
    if options.adaptive_kl:
        return AdaptiveKl(options.kl_coef, options.kl_target, options.kl_horizon)
    return FixedKl(options.kl_coef)
