"""From rollouts to experience: scores, the KL penalty, rewards, advantages.

The reward is that of Ziegler et al. 2019 (arXiv:1909.08593) and Ouyang et al. 2022
(arXiv:2203.02155): every token pays for its divergence from the reference, the last one gets the
score of the whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training.ppo.kl import kl_estimate
from mloc_dagster.executors.training.ppo.losses import (
    advantages_and_returns,
    explained_variance,
    masked_mean,
    masked_sum,
    whiten,
)
from mloc_dagster.executors.training.ppo.policy import Policy, Reference
from mloc_dagster.executors.training.ppo.rollouts import Rollouts
from mloc_dagster.schema import PpoOptions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Experience:
    """What an update learns from.

    Attributes:
        rollouts: The answers.
        logprobs: Log-probabilities of their tokens when they were sampled.
        values: Value estimates then.
        advantages: How much better each token was than expected.
        returns: What the value head ought to have said.
        figures: What there is to log about it.
    """

    rollouts: Rollouts
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    figures: dict[str, float]


def judge(
    rollouts: Rollouts,
    scores: Sequence[float],
    policy: Policy,
    reference: Reference,
    kl_coef: float,
    options: PpoOptions,
) -> Experience:
    """Works out what was good about rollouts.

    Args:
        rollouts: Answers that the policy sampled, with its weights as they are now.
        scores: The score of each.
        policy: The policy.
        reference: What it is not to leave too far.
        kl_coef: Price per nat.
        options: The training's options.
    """
    import torch

    with torch.no_grad():
        seen = [policy.figures(chunk) for chunk in rollouts.chunks(options.chunk)]
        logprobs = torch.cat([each.logprobs for each in seen])
        entropy = torch.cat([each.entropy for each in seen])
        values = torch.cat([each.values for each in seen])
        with reference.model() as model:
            others = [policy.logprobs_of(model, each) for each in rollouts.chunks(options.chunk)]
        kl = kl_estimate(logprobs, torch.cat(others), options.kl_estimator)
        mask = rollouts.mask
        given = penalised(scores, rollouts, options.missing_eos_penalty)
        rewards = token_rewards(given, kl, mask, kl_coef)
        learned = whiten(rewards, mask, shift_mean=False) if options.whiten_rewards else rewards
        advantages, returns = advantages_and_returns(
            learned, values, mask, gamma=options.gamma, lam=options.lam
        )
        answers = len(scores)
        figures = {
            "objective/kl": masked_sum(kl, mask) / answers,
            "objective/score": sum(scores) / answers,
            "objective/non_score_reward": -kl_coef * masked_sum(kl, mask) / answers,
            "objective/rlhf_reward": rewards.sum() / answers,
            "objective/kl_coef": kl_coef,
            "policy/entropy": masked_mean(entropy, mask),
            "val/explained_variance": explained_variance(values, returns, mask),
            "completions/mean_length": mask.sum() / answers,
            "completions/ended": rollouts.ended.float().mean(),
        }
    return Experience(
        rollouts=rollouts,
        logprobs=logprobs,
        values=values,
        advantages=whiten(advantages, mask) if options.whiten_advantages else advantages,
        returns=returns,
        figures={name: float(value) for name, value in figures.items()},
    )


def penalised(scores: Sequence[float], rollouts: Rollouts, penalty: float | None) -> Tensor:
    """Returns the scores, less the penalty where an answer was cut off."""
    import torch

    given = torch.tensor(list(scores), dtype=torch.float32, device=rollouts.mask.device)
    return given if penalty is None else given - penalty * ~rollouts.ended


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Returns each token's reward: less for its divergence, and the score on the last one."""
    rewards = (-kl_coef * kl).masked_fill(~mask, 0)
    last = mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last, scores.unsqueeze(-1))


def checked_scores(scores: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Returns the scores as numbers.

    Raises:
        TerminalError: If there are too few or too many, or one is not a finite number.
    """
    if len(scores) != len(answers):
        raise TerminalError(f"the scorer gave {len(scores)} scores for {len(answers)} answers")
    for score, answer in zip(scores, answers, strict=True):
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise TerminalError(
                f"the scorer gave {score!r}, not a finite number, for the answer {answer!r:.200}"
            )
    return [float(score) for score in scores]
