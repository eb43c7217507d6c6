"""What an evaluation measures: each metric is a function of a `Measurement`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from mloc_dagster.errors import TerminalError, nearest_hint
from mloc_dagster.executors.training.measurement import Measurement
from mloc_dagster.plugins import METRICS_GROUP, entry_points, registered_function
from mloc_dagster.schema.metrics import BUILTIN_METRICS, CLASSIFIER_METRICS

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


def _share(results: Sequence[bool]) -> float:
    return sum(results) / len(results)


def _loss(measurement: Measurement) -> float:
    return -measurement.likelihood.mean


def _perplexity(measurement: Measurement) -> float:
    loss = _loss(measurement)
    return math.exp(loss) if loss <= _LARGEST_EXPONENT else math.inf


def _exact_match(measurement: Measurement) -> float:
    return _share([answer == reference for answer, reference in measurement.compared()])


def _contains(measurement: Measurement) -> float:
    return _share([reference in answer for answer, reference in measurement.compared()])


def _regex(measurement: Measurement) -> float:
    pattern = measurement.evaluation.pattern or ""
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise TerminalError(f"evaluation.pattern {pattern!r} cannot be read: {error}") from error
    return _share([found(answer) is not None for answer in measurement.answers])


def _win_rate(measurement: Measurement) -> float:
    return _share([better > worse for better, worse in measurement.comparisons])


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
