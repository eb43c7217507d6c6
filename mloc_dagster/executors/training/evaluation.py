"""Measuring a model, which leaves no trace: neither in the model nor in what is drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from mloc_dagster.errors import DataError, TerminalError, nearest_hint
from mloc_dagster.executors.training.base import Row
from mloc_dagster.executors.training.harness import harness_metrics
from mloc_dagster.executors.training.metrics import Measurement, check_metrics, measure
from mloc_dagster.executors.training.sequences import is_classifier
from mloc_dagster.executors.training.tool_use import MOST_TURNS, greedy_tool_answers
from mloc_dagster.schema import BUILTIN_METRICS, Evaluation, parse_gate


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    evaluation: Evaluation,
    *,
    reference_answers: Sequence[str] | None = None,
    tools: Sequence[Callable[..., str]] = (),
    most_turns: int = MOST_TURNS,
    log: Callable[[str], None],
) -> dict[str, float]:
    """Returns the metrics that an `evaluation` block asks for, in its order, then benchmarks'.

    Answers are greedy, and are compared without white space around them and without regard to
    upper case. `loss` and `perplexity` are of the right answers alone, each token counting the
    same; a reward model's `loss` is that of its training. `win_rate` compares log probabilities
    per token.

    Args:
        model: A causal language model or a reward model; may be in the middle of its training.
        tokenizer: Its tokenizer.
        rows: What it is measured on, out of `examples.rendered_rows`.
        evaluation: The block.
        reference_answers: What answers are compared with, instead of the rows' own.
        tools: What the model may call before it answers.
        most_turns: Turns with calls at most.
        log: Hears of rows that were cut.

    Raises:
        DataError: If there are no rows, or they lack what a metric needs.
        MissingExtraError: If benchmarks are asked for, and their library is not installed.
        TerminalError: If a metric is unknown, does not fit the model, fails, or is not a number; or
            if the gate names what is not measured.
    """
    if not rows:
        raise DataError("evaluation.data gave no rows to measure on")
    classifies = is_classifier(model)
    check_metrics(evaluation.metrics, classifies=classifies)
    if evaluation.harness is not None and classifies:
        raise TerminalError("evaluation.harness is not for a reward model, which writes no text")
    with undisturbed(model):
        answer = None
        if tools:
            options = {"tools": tools, "most_turns": most_turns}
            answer = partial(greedy_tool_answers, model, tokenizer, **options)
        measurement = Measurement(model, tokenizer, rows, evaluation, reference_answers, answer)
        found = {name: measure(name, measurement) for name in evaluation.metrics}
        if evaluation.harness is not None:
            found |= harness_metrics(model, tokenizer, evaluation.harness, log)
    _check_gate(evaluation, found)
    if measurement.cut:
        log(f"evaluation: {measurement.cut} texts were too long and lost their beginning")
    for name, value in found.items():
        # Of ours, only a model that has gone astray makes one: that is for the gate to tell.
        if not math.isfinite(value) and name not in BUILTIN_METRICS:
            raise TerminalError(f"the metric {name!r} gave {value}, which is no number")
    return found


def _check_gate(evaluation: Evaluation, found: Mapping[str, float]) -> None:
    """Checks, before a training spends its hours, that the gate can be judged after it."""
    named = parse_gate(evaluation.gate).metrics if evaluation.gate else frozenset[str]()
    for name in sorted(named - found.keys()):
        raise TerminalError(
            f"evaluation.gate {evaluation.gate!r} asks for {name!r}, which was not measured"
            f"{nearest_hint(name, found)}"
        )


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Puts a model into evaluation mode, and afterwards everything back where it was.

    That is the mode of each module, and the state of each source of randomness: a training with
    evaluations draws what it would draw without.
    """
    import numpy as np
    import torch

    modes = [(module, module.training) for module in model.modules()]
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(numbers)
