"""Rewards of online training: registered functions, a reward model, or both.

Each takes prompts, completions and the rows' other columns, then its options, and returns a score
for each completion. What is compared is compared without white space around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mloc_dagster.errors import MlocError, TerminalError
from mloc_dagster.executors.training.sequences import Speech
from mloc_dagster.plugins import REWARDS_GROUP, registered_function, unfit_options
from mloc_dagster.schema import OnlineSpec, RewardFunction

Prompts = Sequence[Any]
Columns = Mapping[str, Sequence[Any]]


def contains(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    text: str | None = None,
    column: str | None = None,
    ignore_case: bool = True,
) -> list[float]:
    """Scores 1 where an answer has a text in it, else 0.

    Args:
        prompts: What was asked.
        completions: The answers.
        columns: The rows' other columns.
        text: The text that is looked for, the same for all rows.
        column: Or the column with each row's own; one that has a list has several to choose from.
        ignore_case: Whether upper and lower case are the same.
    """
    return _compared(completions, columns, text, column, ignore_case, lambda has, it: it in has)


def ends_with(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    text: str | None = None,
    column: str | None = None,
    ignore_case: bool = True,
) -> list[float]:
    """Scores 1 where an answer ends with a text, else 0; arguments are those of `contains`."""
    return _compared(completions, columns, text, column, ignore_case, str.endswith)


def exact_match(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    text: str | None = None,
    column: str | None = None,
    ignore_case: bool = True,
) -> list[float]:
    """Scores 1 where an answer is a text, else 0; arguments are those of `contains`."""
    return _compared(completions, columns, text, column, ignore_case, str.__eq__)


def regex(
    prompts: Prompts, completions: Sequence[str], columns: Columns, *, pattern: str
) -> list[float]:
    """Scores 1 where a regular expression matches somewhere in an answer, else 0."""
    found = re.compile(pattern).search
    return [float(found(each) is not None) for each in completions]


def length(
    prompts: Prompts,
    completions: Sequence[str],
    columns: Columns,
    *,
    least: int = 0,
    most: int | None = None,
    unit: Literal["words", "characters"] = "words",
) -> list[float]:
    """Scores 1 where an answer is as long as it should be, and less the further it is from that.

    A score falls in proportion: half of `least`, or one and a half times `most`, scores 0.5.

    Args:
        prompts: What was asked.
        completions: The answers.
        columns: The rows' other columns.
        least: The shortest that is long enough.
        most: The longest that is short enough; None: there is no such.
        unit: What is counted.
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}, not 'words' or 'characters'")
    if least < 0 or (most is not None and most < max(least, 1)):
        raise ValueError(f"least ({least}) and most ({most}) leave no length that fits")

    def score(completion: str) -> float:
        size = len(completion.split()) if unit == "words" else len(completion.strip())
        if size < least:
            return size / least
        if most is not None and size > most:
            return max(0.0, 1.0 - (size - most) / most)
        return 1.0

    return [score(each) for each in completions]


def calls_tool(
    prompts: Prompts, completions: Sequence[str], columns: Columns, *, tool: str | None = None
) -> list[float]:
    """Scores 1 where the model called a tool and got a result on its way to an answer, else 0.

    Args:
        prompts: What was asked.
        completions: The answers.
        columns: The rows' other columns, with the calls of each answer in `tool_calls`.
        tool: Only calls of this tool count; None: of any.
    """
    if "tool_calls" not in columns:
        raise ValueError("nothing can be called: the task has no training.tools")

    def score(calls: Sequence[Mapping[str, Any]]) -> float:
        answered = (each for each in calls if each["result"] is not None and not each["failed"])
        return float(any(tool in (None, each["name"]) for each in answered))

    return [score(each) for each in columns["tool_calls"]]


def _compared(
    completions: Sequence[str],
    columns: Columns,
    text: str | None,
    column: str | None,
    ignore_case: bool,
    holds: Callable[[str, str], bool],
) -> list[float]:
    def same(each: object) -> str:
        stripped = str(each).strip()
        return stripped.casefold() if ignore_case else stripped

    rows = zip(completions, _wanted(len(completions), columns, text, column), strict=True)
    return [float(any(holds(same(has), same(it)) for it in wanted)) for has, wanted in rows]


def _wanted(
    count: int, columns: Columns, text: str | None, column: str | None
) -> Sequence[Sequence[object]]:
    """Returns what each row is compared with."""
    if text is not None and column is not None:
        raise ValueError("give either text or column, not both")
    if text is not None:
        if not text.strip():
            raise ValueError("text is empty, which every answer has in it")
        return [[text]] * count
    if column is None:
        raise ValueError("give text, or the column that has each row's own")
    if column not in columns:
        raise ValueError(f"there is no column {column!r}; columns: {', '.join(columns) or 'none'}")
    wanted = [each if isinstance(each, list | tuple) else [each] for each in columns[column]]
    for row, each in enumerate(wanted):
        if not each or any(value is None or not str(value).strip() for value in each):
            raise ValueError(f"the column {column!r} is empty in row {row} of a batch")
    return wanted


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
