"""What scores the answers of an online training: registered functions, a reward model, or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.errors import MlocError, TerminalError
from mloc_dagster.executors.training.sequences import Speech
from mloc_dagster.plugins import REWARDS_GROUP, registered_function, unfit_options
from mloc_dagster.schema.task import OnlineSpec
from mloc_dagster.schema.training import RewardFunction

ScoreFunction = Callable[[Sequence[Speech], Sequence[str], Mapping[str, Sequence[Any]]], Any]
"""Prompts, completions and the rows' other columns to a score for each completion."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the things that score.

    Attributes:
        name: What it is called in messages: "the reward function 'contains'".
        weight: What its score counts in the sum.
        score: Computes it.
    """

    name: str
    weight: float
    score: ScoreFunction


class Scorer:
    """The weighted sum of several scores.

    Args:
        parts: What is summed.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)

    def score(
        self,
        prompts: Sequence[Speech],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Returns a score for each completion.

        Args:
            prompts: Texts or messages, one for each completion.
            completions: The answers.
            columns: The rows' other columns, one value for each completion.

        Raises:
            TerminalError: If something that scores fails, or gives no number for an answer.
        """
        totals = [0.0] * len(completions)
        for part in self._parts:
            for place, score in enumerate(_scores(part, prompts, completions, columns)):
                totals[place] += part.weight * score
        return totals


def build_scorer(spec: OnlineSpec, device: Any, log: Callable[[str], None]) -> Scorer:
    """Returns what scores the answers of a task.

    Args:
        spec: The task's spec.
        device: Where a reward model computes.
        log: Hears what scores.

    Raises:
        TerminalError: If options do not fit a function, or the reward model does not fit.
        TransientError: If the hub cannot be reached.
        UnknownNameError: If nobody registered a function of that name.
    """
    parts = [_part(reward) for reward in spec.rewards]
    if parts:
        listed = ", ".join(f"{each.weight:g} x {each.name}" for each in spec.rewards)
        log(f"answers are scored by {listed}")
    if spec.reward_model is not None:
        from mloc_dagster.executors.training.reward_model import load_reward_model

        # Text by choice is judged as text; where the policy merely has no template, as a chat.
        plain = spec.data.format == "plain" or "separator" in spec.data.model_fields_set
        model = load_reward_model(spec.reward_model, device, log, plain=plain)
        name = f"the reward model {spec.reward_model.identifier!r}"
        parts.append(Part(name, 1.0, model))
    return Scorer(parts)


def _part(reward: RewardFunction) -> Part:
    function = registered_function(REWARDS_GROUP, "reward function", reward.name)
    options = dict(reward.options)
    reason = unfit_options(function, 3, options)
    if reason is not None:
        raise TerminalError(
            f"the reward function {reward.name!r} does not take its options: {reason}"
        )

    def score(
        prompts: Sequence[Speech],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> Any:
        return function(prompts, completions, columns, **options)

    return Part(f"the reward function {reward.name!r}", reward.weight, score)


def _scores(
    part: Part,
    prompts: Sequence[Speech],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[float]:
    try:
        scores = [float(each) for each in part.score(prompts, completions, columns)]
    except MlocError:
        raise
    except Exception as error:  # anyone's code
        raise TerminalError(f"{part.name} failed: {type(error).__name__}: {error}") from error
    if len(scores) != len(completions):
        raise TerminalError(f"{part.name} gave {len(scores)} scores for {len(completions)} answers")
    for place, score in enumerate(scores):
        if not math.isfinite(score):
            raise TerminalError(
                f"{part.name} gave {score} for the answer {completions[place][:80]!r}"
            )
    return scores
