"""One look at a model: its answers, and how good it finds given ones, each computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from mloc_dagster.errors import DataError
from mloc_dagster.executors.training.answers import greedy_answers
from mloc_dagster.executors.training.base import Row
from mloc_dagster.executors.training.classifier import class_logits, is_classifier
from mloc_dagster.executors.training.likelihood import Likelihood, answer_likelihoods
from mloc_dagster.executors.training.sequences import (
    Speech,
    TokenSequence,
    answered,
    said,
    token_limit,
)
from mloc_dagster.schema.training import Evaluation

_Answered = tuple[Speech | None, Speech | None]


class Example(NamedTuple):
    """A row as an evaluation sees it.

    Attributes:
        prompt: What is asked; None of a whole text.
        reference: The right answer, where one is known; of a comparison the better one.
        pair: The better and the worse answer of a comparison.
    """

    prompt: Speech | None
    reference: Speech | None
    pair: tuple[Speech, Speech] | None


def example_of(row: Row) -> Example:
    """Returns what an evaluation sees in a row of TRL's formats."""
    pair = (row["chosen"], row["rejected"]) if "chosen" in row and "rejected" in row else None
    if "prompt" in row or pair is not None:
        completion = row.get("completion")
        usable = isinstance(completion, list) or (isinstance(completion, str) and completion)
        better = pair[0] if pair is not None else None
        return Example(row.get("prompt"), completion if usable else better, pair)
    if "messages" in row:
        turns = list(row["messages"])
        last = max((at for at, each in enumerate(turns) if each["role"] == "assistant"), default=-1)
        return (
            Example(turns[:last], [turns[last]], None) if last > 0 else Example(None, turns, None)
        )
    return Example(None, row.get("text"), None)


class Measurement:
    """One look at a model; what several metrics need is computed once.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        rows: What it is measured on, in the form that it reads.
        evaluation: The block that asks for it.
        reference_answers: What answers are compared with, instead of the rows' own.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        rows: Sequence[Row],
        evaluation: Evaluation,
        reference_answers: Sequence[str] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.rows = rows
        self.evaluation = evaluation
        self.classifies = is_classifier(model)
        self.cut = 0
        self._examples = [example_of(row) for row in rows]
        self._limit = token_limit(model, tokenizer)
        self._given = reference_answers

    @cached_property
    def references(self) -> list[str | None]:
        """The right answers as texts, None where none is known."""
        if self._given is not None:
            return list(self._given)
        return [None if each.reference is None else said(each.reference) for each in self._examples]

    @cached_property
    def answers(self) -> list[str]:
        """What the model answers itself."""
        prompts = [each.prompt for each in self._examples]
        if None in prompts:
            raise DataError(
                f"evaluation row {prompts.index(None)} has no prompt to answer: give "
                "evaluation.data.prompt_column"
            )
        asked = [each for each in prompts if each is not None]
        return greedy_answers(self.model, self.tokenizer, asked, self.evaluation.max_new_tokens)

    @cached_property
    def likelihood(self) -> Likelihood:
        """The likelihood of the right answers, all together."""
        pairs = [(each.prompt, each.reference) for each in self._examples]
        found = self._likelihoods(pairs)
        return Likelihood(
            math.fsum(each.logprob for each in found), sum(each.tokens for each in found)
        )

    @cached_property
    def comparisons(self) -> list[tuple[float, float]]:
        """How good the model finds the better and the worse answer of each row."""
        better: list[_Answered] = []
        worse: list[_Answered] = []
        for number, each in enumerate(self._examples):
            if each.pair is None:
                raise DataError(f"evaluation row {number} has no chosen and rejected answer")
            better.append((each.prompt, each.pair[0]))
            worse.append((each.prompt, each.pair[1]))
        if self.classifies:
            ids = [each.ids for each in self._sequences([*better, *worse])]
            scores = [logits[-1] for logits in class_logits(self.model, ids)]
        else:
            scores = [each.mean for each in self._likelihoods([*better, *worse])]
        return list(zip(scores[: len(better)], scores[len(better) :], strict=True))

    def compared(self) -> list[tuple[str, str]]:
        """Returns answers and right answers, without white space around them or upper case.

        Raises:
            DataError: If a right answer is not known.
        """
        references = [each for each in self.references if each is not None]
        if len(references) != len(self.rows):
            number = self.references.index(None) if None in self.references else len(references)
            raise DataError(_without_reference(number))
        return list(zip(map(_same, self.answers), map(_same, references), strict=True))

    def _likelihoods(self, pairs: Sequence[_Answered]) -> list[Likelihood]:
        pad = self.tokenizer.pad_token_id
        return answer_likelihoods(self.model, self._sequences(pairs), 0 if pad is None else pad)

    def _sequences(self, pairs: Sequence[_Answered]) -> list[TokenSequence]:
        sequences: list[TokenSequence] = []
        for number, (prompt, answer) in enumerate(pairs):
            if answer is None:
                raise DataError(_without_reference(number))
            sequences.append(answered(self.tokenizer, prompt, answer, self._limit))
        self.cut += sum(each.cut for each in sequences)
        return sequences


def _same(text: str) -> str:
    return text.strip().casefold()


def _without_reference(number: int) -> str:
    return (
        f"evaluation row {number} has no right answer to compare with: give "
        "evaluation.data.response_column, or a column named completion or answer"
    )
