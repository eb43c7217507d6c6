"""Learning from experience: passes over it in mini-batches (PPO, arXiv:1707.06347, algorithm 1)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import TaskCancelled, TerminalError
from mloc_dagster.executors.training.ppo.experience import Experience
from mloc_dagster.executors.training.ppo.kl import kl_estimate
from mloc_dagster.executors.training.ppo.losses import (
    clipped_surrogate,
    clipped_value_loss,
    masked_sum,
)
from mloc_dagster.executors.training.ppo.policy import Policy, recomputing
from mloc_dagster.schema import PpoOptions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Learner:
    """Takes optimiser steps.

    Attributes:
        policy: What learns.
        optimizer: Over all of the policy's parameters.
        options: The training's options.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        recompute: Forget activations on the way, and compute them again (gradient checkpointing).
        cancelled: Looked at before each pass through the model.
    """

    policy: Policy
    optimizer: Any
    options: PpoOptions
    max_grad_norm: float
    recompute: bool
    cancelled: Callable[[], bool]

    def learn(self, experience: Experience, seed: int) -> dict[str, float]:
        """Learns from an update's experience; returns figures, averaged over its mini-batches.

        Ends early when a mini-batch finds the policy further than `target_kl` from where it
        sampled; that mini-batch is not learned from.

        Raises:
            TaskCancelled: If the task was asked to stop.
            TerminalError: If the loss is no number any more.
        """
        seen: dict[str, list[float]] = defaultdict(list)
        steps = 0
        for rows in self._mini_batches(len(experience.logprobs), seed):
            figures = self._backward(experience, rows)
            for name, value in figures.items():
                seen[name].append(value)
            target = self.options.target_kl
            if target is not None and figures["policy/approxkl"] > target:
                self.optimizer.zero_grad(set_to_none=True)
                break
            self._step()
            steps += 1
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        return {**means, "policy/optimizer_steps": float(steps)}

    def _mini_batches(self, rows: int, seed: int) -> list[Any]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        return [
            part
            for _ in range(self.options.passes)
            for part in torch.randperm(rows, generator=generator).split(self.options.mini_batch)
        ]

    def _backward(self, experience: Experience, rows: Tensor) -> dict[str, float]:
        """Adds up gradients over a mini-batch, a chunk at a time.

        Every token of the mini-batch weighs the same, whichever chunk it is in.
        """
        rows = rows.to(experience.logprobs.device)
        tokens = int(experience.rollouts.mask[rows].sum())
        sums: dict[str, float] = defaultdict(float)
        for chunk in rows.split(self.options.chunk):
            if self.cancelled():
                raise TaskCancelled("stopped between two mini-batches")
            with recomputing(self.policy.model, enabled=self.recompute):
                losses = self._losses(experience, chunk)
                loss = losses["loss/policy"] + self.options.vf_coef * losses["loss/value"]
                (loss / tokens).backward()
            for name, value in losses.items():
                sums[name] += float(value.detach())
        figures = {name: value / tokens for name, value in sums.items()}
        figures["loss"] = figures["loss/policy"] + self.options.vf_coef * figures["loss/value"]
        if not math.isfinite(figures["loss"]):
            raise TerminalError(
                f"PPO's loss became {figures['loss']}: try a smaller learning_rate than "
                f"{self.optimizer.param_groups[0]['lr']:g}, or a smaller max_grad_norm than "
                f"{self.max_grad_norm:g}"
            )
        return figures

    def _losses(self, experience: Experience, rows: Tensor) -> dict[str, Tensor]:
        """Returns losses and figures, as sums over the rows' tokens."""
        rollouts, old = experience.rollouts.pick(rows), experience.logprobs[rows]
        now = self.policy.figures(rollouts)
        policy_loss, clipped = clipped_surrogate(
            now.logprobs, old, experience.advantages[rows], self.options.cliprange
        )
        value_loss = clipped_value_loss(
            now.values,
            experience.values[rows],
            experience.returns[rows],
            self.options.cliprange_value,
        )
        per_token = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "policy/clipfrac": clipped.float(),
            "policy/approxkl": kl_estimate(old, now.logprobs.detach(), "k3"),
        }
        return {name: masked_sum(each, rollouts.mask) for name, each in per_token.items()}

    def _step(self) -> None:
        import torch

        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_optimizer(policy: Policy, learning_rate: float, weight_decay: float) -> Any:
    """Returns AdamW; vectors, which are biases and norms, do not decay."""
    import torch

    parameters = policy.parameters()
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)
