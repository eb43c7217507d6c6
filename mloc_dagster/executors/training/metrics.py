"""What an evaluation measures: each metric is a function of a `Measurement` of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from mloc_dagster.errors import DataError, TerminalError, nearest_hint
from mloc_dagster.executors.training.base import Row
from mloc_dagster.executors.training.sequences import (
    Speech,
    TokenSequence,
    Tools,
    answered,
    batched,
    class_logits,
    is_classifier,
    padded,
    prompt_ids,
    said,
    token_limit,
)
from mloc_dagster.plugins import METRICS_GROUP, entry_points, registered_function
from mloc_dagster.results import holds_text, same_text
from mloc_dagster.schema import BUILTIN_METRICS, CLASSIFIER_METRICS, Evaluation


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Speech],
    max_new_tokens: int,
    tools: Sequence[Tools] = (),
) -> list[str]:
    """Returns the model's answer to each prompt, always of the likeliest tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Texts or messages.
        max_new_tokens: Tokens of an answer at most.
        tools: What each prompt offers, where one offers any.

    Raises:
        DataError: If the chat template refuses a prompt.
    """
    new, room = answer_room(model, tokenizer, max_new_tokens)
    offered = tools or [()] * len(prompts)
    ids = [
        prompt_ids(tokenizer, each, room, some) for each, some in zip(prompts, offered, strict=True)
    ]
    written = greedy_tokens(model, tokenizer, ids, new)
    return tokenizer.batch_decode(written, skip_special_tokens=True)


def answer_room(model: Any, tokenizer: Any, max_new_tokens: int) -> tuple[int, int | None]:
    """Returns how many tokens an answer and its prompt may have; None: as many as there are."""
    limit = token_limit(model, tokenizer)
    # Half of the positions at least are for the prompt, whatever an answer may take.
    new = max_new_tokens if limit is None else min(max_new_tokens, max(limit // 2, 1))
    return new, None if limit is None else limit - new


def greedy_tokens(
    model: Any, tokenizer: Any, ids: Sequence[Sequence[int]], new: int
) -> list[list[int]]:
    """Returns the tokens that a model writes after each prompt, the first that ends it included.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        ids: The prompts.
        new: Tokens of an answer at most.
    """
    import torch
    from transformers import GenerationConfig

    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    # Each is set: `generate` takes from the model's own defaults what is not.
    config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
    )
    found: dict[int, list[int]] = {}
    with torch.no_grad():
        for places in batched([len(each) + new for each in ids]):
            batch = padded([ids[place] for place in places], pad, model.device, left=True)
            out = model.generate(**batch, generation_config=config)
            written = out[:, batch["input_ids"].shape[1] :].tolist()
            for place, tokens in zip(places, written, strict=True):
                end = next((at for at, each in enumerate(tokens) if each in ends), len(tokens))
                found[place] = tokens[: end + 1]
    return [found[place] for place in range(len(ids))]


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    several = given if isinstance(given, list | tuple) else [given]
    return {each for each in [*several, tokenizer.eos_token_id] if each is not None}


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
        answer: Returns what the model answers to prompts, of so many tokens at most; by default
            `greedy_answers`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        rows: Sequence[Row],
        evaluation: Evaluation,
        reference_answers: Sequence[str] | None = None,
        answer: Callable[[Sequence[Speech], int], list[str]] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.rows = rows
        self.evaluation = evaluation
        self.classifies = is_classifier(model)
        self.cut = 0
        self._examples = [example_of(row) for row in rows]
        self._tools: list[Tools] = [row.get("tools") or () for row in rows]
        self._limit = token_limit(model, tokenizer)
        self._given = reference_answers
        self._answer = answer

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
        if self._answer is not None:
            return self._answer(asked, self.evaluation.max_new_tokens)
        return greedy_answers(
            self.model, self.tokenizer, asked, self.evaluation.max_new_tokens, self._tools
        )

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
        """Returns answers and right answers.

        Raises:
            DataError: If a right answer is not known.
        """
        references = [each for each in self.references if each is not None]
        if len(references) != len(self.rows):
            number = self.references.index(None) if None in self.references else len(references)
            raise DataError(_without_reference(number))
        return list(zip(self.answers, references, strict=True))

    def _likelihoods(self, pairs: Sequence[_Answered]) -> list[Likelihood]:
        pad = self.tokenizer.pad_token_id
        return answer_likelihoods(self.model, self._sequences(pairs), 0 if pad is None else pad)

    def _sequences(self, pairs: Sequence[_Answered]) -> list[TokenSequence]:
        sequences: list[TokenSequence] = []
        for number, (prompt, answer) in enumerate(pairs):
            if answer is None:
                raise DataError(_without_reference(number))
            tools = self._tools[number % len(self._tools)]  # of a comparison both answers
            sequences.append(answered(self.tokenizer, prompt, answer, self._limit, tools))
        self.cut += sum(each.cut for each in sequences)
        return sequences


def _without_reference(number: int) -> str:
    return (
        f"evaluation row {number} has no right answer to compare with: give "
        "evaluation.data.response_column, or a column named completion or answer"
    )


_LARGEST_EXPONENT = 700.0


def measure(name: str, measurement: Measurement) -> float:
    """Returns a metric by its name.

    Raises:
        DataError: If the rows lack what it needs.
        TerminalError: If it fails.
    """
    if name in BUILTIN_METRICS:
        return (OF_CLASSIFIERS if measurement.classifies else OF_WRITERS)[name](measurement)
    function = registered_function(METRICS_GROUP, "metric", name)
    answers, references = measurement.answers, measurement.references
    try:
        return float(function(answers, references, measurement.rows))
    except Exception as error:  # anyone's code
        raise TerminalError(
            f"the metric {name!r} failed: {type(error).__name__}: {error}"
        ) from error


def check_metrics(names: Sequence[str], *, classifies: bool) -> None:
    """Checks, before anything is computed, that these metrics are known and fit the model.

    Raises:
        TerminalError: If one does not, or nobody registered it.
    """
    fitting = CLASSIFIER_METRICS if classifies else frozenset(OF_WRITERS)
    for name in names:
        if name not in BUILTIN_METRICS:
            _check_registered(name)
        if name in fitting or (name not in BUILTIN_METRICS and not classifies):
            continue
        kind = "a reward model, which writes no text" if classifies else "a model that writes"
        raise TerminalError(
            f"the metric {name!r} is not for {kind}; it has {', '.join(sorted(fitting))}"
        )


def _check_registered(name: str) -> None:
    known = BUILTIN_METRICS | entry_points(group=METRICS_GROUP).names
    if name not in known:
        raise TerminalError(f"unknown metric {name!r}{nearest_hint(name, known)}")
    registered_function(METRICS_GROUP, "metric", name)


def _mean(results: Sequence[float]) -> float:
    return sum(results) / len(results)


def _loss(measurement: Measurement) -> float:
    return -measurement.likelihood.mean


def _perplexity(measurement: Measurement) -> float:
    loss = _loss(measurement)
    return math.exp(loss) if loss <= _LARGEST_EXPONENT else math.inf


def _exact_match(measurement: Measurement) -> float:
    return _mean([same_text(*each) for each in measurement.compared()])


def _contains(measurement: Measurement) -> float:
    return _mean([holds_text(*each) for each in measurement.compared()])


def _regex(measurement: Measurement) -> float:
    pattern = measurement.evaluation.pattern or ""
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise TerminalError(f"evaluation.pattern {pattern!r} cannot be read: {error}") from error
    return _mean([found(answer) is not None for answer in measurement.answers])


def _win_rate(measurement: Measurement) -> float:
    return _mean([better > worse for better, worse in measurement.comparisons])


def _pairwise_loss(measurement: Measurement) -> float:
    margins = [better - worse for better, worse in measurement.comparisons]
    return math.fsum(_softplus(-margin) for margin in margins) / len(margins)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


_Metric = Callable[[Measurement], float]

OF_WRITERS: Mapping[str, _Metric] = {
    "loss": _loss,
    "perplexity": _perplexity,
    "exact_match": _exact_match,
    "contains": _contains,
    "regex": _regex,
    "win_rate": _win_rate,
}

OF_CLASSIFIERS: Mapping[str, _Metric] = {
    "loss": _pairwise_loss,
    "win_rate": _win_rate,
    "accuracy": _win_rate,
}
