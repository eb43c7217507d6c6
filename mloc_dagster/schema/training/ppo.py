"""What a PPO training does, worked out of its spec; needs no torch, so that checking is cheap."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, ValidationError

from mloc_dagster.errors import TerminalError, nearest_hint
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.engine_type import Refusal
from mloc_dagster.schema.task import PpoSpec
from mloc_dagster.schema.training.spec import Training

# Named options of `training` that mean nothing here, with the value that means "not given".
_UNUSED: Mapping[str, object] = {
    "packing": False,
    "deepspeed": None,
    "beta": None,
    "loss_type": None,
}
LEARNING_RATE = 5e-5
"""Where the template says nothing."""

_OPTIMISERS = (None, "adamw_torch", "adamw_torch_fused")


class PpoExtras(Block):
    """Options of `training` that only PPO has; names and defaults are those of TRL's last PPO."""

    num_mini_batches: int | None = Field(default=None, ge=1)
    """Optimiser steps per pass over the rollouts; or give `mini_batch_size`."""

    total_episodes: int | None = Field(default=None, ge=1)
    """Rollouts in all; or give `max_steps` or `num_train_epochs`."""

    cliprange: float = Field(default=0.2, gt=0)
    """How far the ratio of new to old probability may pay off."""

    cliprange_value: float = Field(default=0.2, gt=0)
    """How far a new value estimate may pay off."""

    vf_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""

    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda: 0 trusts the value head, 1 the rewards."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Price per nat of leaving the reference; where it starts, if `adaptive_kl`."""

    adaptive_kl: bool = False
    """Steer the price so that the KL divergence comes near `kl_target`."""

    kl_target: float = Field(default=6.0, gt=0)
    """Nats per answer that `adaptive_kl` aims at."""

    kl_horizon: float = Field(default=10000, gt=0)
    """Rollouts over which `adaptive_kl` corrects; smaller is faster."""

    kl_estimator: Literal["k1", "k3"] = "k1"
    """How the divergence is estimated from samples."""

    whiten_rewards: bool = False
    """Scale rewards to unit variance."""

    whiten_advantages: bool = True
    """Scale advantages to mean 0 and unit variance."""

    missing_eos_penalty: float | None = Field(default=None, ge=0)
    """Taken off the score of an answer that did not end by itself."""


class PpoOptions(PpoExtras):
    """Everything that steers the loop."""

    updates: int
    """Rounds of sampling and learning: the steps that a user sees."""

    rollouts: int
    """Answers sampled per update."""

    chunk: int
    """Rows that go through the model at once."""

    mini_batch: int
    """Rows per optimiser step."""

    passes: int
    """Passes over the rollouts of an update."""

    target_kl: float | None
    """An update ends once the policy moved this far from where it sampled."""

    learning_rate: float
    """The highest learning rate."""

    warmup: int
    """Updates until the learning rate is reached."""

    max_prompt_tokens: int | None
    """Longer prompts lose their beginning."""


def ppo_options(spec: PpoSpec, rows: int) -> PpoOptions:
    """Works out the options of a training.

    Args:
        spec: The task's spec.
        rows: Prompts to train on.

    Raises:
        TerminalError: If an option is unknown, out of bounds, or contradicts another; the message
            tells all of them.
    """
    training = spec.training
    extras = check_training(spec)
    rollouts = training.per_device_train_batch_size * training.gradient_accumulation_steps
    updates = _updates(training, extras, rollouts, rows)
    warmup = training.warmup_steps or 0
    derived = {
        "updates": updates,
        "rollouts": rollouts,
        "chunk": training.per_device_train_batch_size,
        "mini_batch": _mini_batch(training, extras, rollouts),
        "passes": training.num_ppo_epochs or 4,
        "target_kl": training.target_kl,
        "learning_rate": training.learning_rate or LEARNING_RATE,
        "warmup": math.ceil(warmup * updates) if warmup < 1 else int(warmup),
        "max_prompt_tokens": training.max_length,
    }
    return PpoOptions.model_validate({**extras.model_dump(), **derived})


def check_training(spec: PpoSpec) -> PpoExtras:
    """Returns PPO's own options, after a look at all names and values that need no data.

    Raises:
        TerminalError: As `ppo_options`.
    """
    given = spec.training.model_extra or {}
    known = {*PpoExtras.model_fields, *Training.model_fields} - set(_UNUSED)
    problems = [
        f"training.{name}: PPO has no such option{nearest_hint(name, known)}"
        for name in given
        if name not in PpoExtras.model_fields
    ]
    problems += [
        f"training.{name}: {getattr(spec.training, name)!r} means nothing to PPO; leave it out"
        for name, absent in _UNUSED.items()
        if getattr(spec.training, name) != absent
    ]
    problems += [f"{'.'.join(map(str, each.path))}: {each.reason}" for each in refused_in_ppo(spec)]
    if problems:
        raise TerminalError("\n".join(problems))
    return PpoExtras.model_validate(given)


def refused_in_ppo(spec: PpoSpec) -> Iterator[Refusal]:
    """Yields the values of PPO's options that cannot be had, with their place below the spec."""
    training = spec.training
    if not spec.generation.do_sample:
        yield Refusal(("generation", "do_sample"), "PPO learns from samples, it cannot be false")
    if training.optim not in _OPTIMISERS:
        yield Refusal(("training", "optim"), f"PPO has 'adamw_torch' only, not {training.optim!r}")
    given = training.model_extra or {}
    ours = {name: value for name, value in given.items() if name in PpoExtras.model_fields}
    try:
        extras = PpoExtras.model_validate(ours)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            value = json.dumps(each["input"], ensure_ascii=False, default=str)
            wanted = each["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            yield Refusal(("training", *each["loc"]), f"expected {wanted}, got {value}")
        return
    if training.max_steps > 0 and extras.total_episodes is not None:
        yield Refusal(
            ("training", "total_episodes"),
            f"give max_steps ({training.max_steps}) or total_episodes ({extras.total_episodes}), "
            "not both",
        )
    if training.mini_batch_size is not None and extras.num_mini_batches is not None:
        yield Refusal(
            ("training", "num_mini_batches"),
            f"give mini_batch_size ({training.mini_batch_size}) or num_mini_batches "
            f"({extras.num_mini_batches}), not both",
        )
    rollouts = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if (training.mini_batch_size or 0) > rollouts:
        yield Refusal(
            ("training", "mini_batch_size"),
            f"mini_batch_size {training.mini_batch_size} is more than the {rollouts} rollouts of "
            "an update (per_device_train_batch_size × gradient_accumulation_steps)",
        )


def _updates(training: Training, extras: PpoExtras, rollouts: int, rows: int) -> int:
    if training.max_steps > 0:
        return training.max_steps
    episodes = extras.total_episodes or math.ceil(training.num_train_epochs * rows)
    return max(1, math.ceil(episodes / rollouts))


def _mini_batch(training: Training, extras: PpoExtras, rollouts: int) -> int:
    return training.mini_batch_size or math.ceil(rollouts / (extras.num_mini_batches or 1))
