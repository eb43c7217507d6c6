"""How the rows of a task are scored, and what the scores must be for its result to be handed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field, JsonValue, model_validator

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.tracking import ReportTo

ROW_METRICS: Mapping[str, frozenset[str]] = {
    "exact_match": frozenset({"reference", "extract"}),
    "contains": frozenset({"reference", "extract"}),
    "f1": frozenset({"reference", "extract"}),
    "numeric": frozenset({"reference", "extract", "tolerance"}),
    "regex": frozenset({"pattern"}),
    "number": frozenset({"extract", "scale"}),
    "json_valid": frozenset({"extract", "json_schema"}),
    "citation_precision": frozenset(),
    "faithfulness": frozenset(),
}
"""The metrics of answers that every installation has, each with the options that it reads."""

COMPARING_METRICS = frozenset(
    name for name, options in ROW_METRICS.items() if "reference" in options
)
"""Those that compare an answer with the right one."""

JUDGED_METRICS = frozenset({"faithfulness"})
"""Those that a judge's verdict gives."""

_PASSAGE_METRIC = re.compile(r"(?P<name>recall|precision|ndcg|mrr|map)(?:@(?P<k>[1-9]\d{0,3}))?")
_WITH_PLACES = ("recall", "precision")

PASSAGE_METRICS = ("recall@5", "precision@5", "ndcg@10", "mrr", "map")
"""Examples of the metrics of what was found; another number may stand behind the `@`."""


def passage_metric(name: str) -> tuple[str, int | None] | None:
    """Returns which metric of what was found a name means, over how many places; None if none."""
    found = _PASSAGE_METRIC.fullmatch(name)
    if found is None or (found["k"] is None and found["name"] in _WITH_PLACES):
        return None
    return found["name"], None if found["k"] is None else int(found["k"])


def needs_relevant(name: str) -> bool:
    """Tells whether a metric reads `relevant_column`."""
    return name == "citation_precision" or passage_metric(name) is not None


_EVERY_METRIC = frozenset({"type", "name", "pass_at"})
_OPTIONS_OF_OTHERS = _EVERY_METRIC | {"reference", "extract"}


class RowMetric(Block):
    """A number for each answer."""

    type: str
    """`exact_match`, `contains`, `f1`, `numeric`, `regex`, `number`, `json_valid`; of tasks that
    find passages `recall@5`, `precision@5`, `ndcg@10`, `mrr`, `map`, with any number; of answers by
    passages `citation_precision`, and `faithfulness`, for which a judge reads them; or a registered
    metric."""

    name: Name | None = None
    """What the column of scores is called; by default as `type`."""

    reference: str | None = None
    """The column with the right answer, instead of the block's."""

    extract: str | None = None
    """A regular expression that finds in an answer what is scored: its first group, or all of it.
    The last place where it matches counts."""

    pattern: str | None = None
    """What `regex` looks for in an answer."""

    tolerance: float = Field(default=0.0, ge=0)
    """By how much `numeric` lets the two numbers differ."""

    scale: float = Field(default=1.0, gt=0)
    """What `number` divides the answer's number by: 10 makes scores of marks up to 10."""

    json_schema: Mapping[str, JsonValue] | None = None
    """What `json_valid` checks the answer against, beside being JSON."""

    pass_at: tuple[int, ...] = ()
    """Of several answers to a row (`inference.n`), how likely one of so many, drawn at random, has
    the score 1; a figure `NAME/pass@K` for each."""

    @property
    def label(self) -> str:
        """What its column is called."""
        return self.name or self.type

    @model_validator(mode="after")
    def _fits(self) -> RowMetric:
        for field in ("extract", "pattern"):
            text = getattr(self, field)
            if text is not None:
                _check_pattern(field, text)
        if self.type == "regex" and self.pattern is None:
            raise ValueError("the metric 'regex' needs a pattern")
        known = ROW_METRICS.get(self.type)
        if needs_relevant(self.type) or self.type in JUDGED_METRICS:
            for field in sorted(self.model_fields_set - {"type", "name"}):
                raise ValueError(f"the metric {self.type!r} has no option {field!r}")
        read = _OPTIONS_OF_OTHERS if known is None else known | _EVERY_METRIC
        for field in sorted(self.model_fields_set - read):
            raise ValueError(f"the metric {self.type!r} has no option {field!r}")
        if any(each < 1 for each in self.pass_at):
            raise ValueError("pass_at: expected whole numbers from 1 on")
        return self


def _check_pattern(field: str, text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{field} {text!r} cannot be read: {error}") from None


class RowEvaluation(Block):
    """How answers are scored once all are there."""

    reference: str | None = None
    """The column of the input with the right answer; of a nested one `answers.text`. Where it holds
    a list, the best of its elements counts."""

    answer_column: str | None = None
    """Another name of `reference`."""

    relevant_column: str | None = None
    """The column with the ids of what should be found, a list of them or one: of passages, or of
    documents. Where none of a row's ids is that of a passage that was found, they are documents,
    each of which is found where its first passage stands."""

    metrics: tuple[str | RowMetric, ...]
    """Names of metrics, or blocks with their options. Each is a column of the results."""

    gate: str | None = None
    """What must hold for the result to be handed on: `exact_match >= 0.6 and f1 > 0.7`."""

    report_to: ReportTo = ()
    """Where the means are sent as well: `mlflow`, `tensorboard`, `wandb`, or a list of them."""

    @property
    def row_metrics(self) -> tuple[RowMetric, ...]:
        """The metrics, each as a block."""
        return tuple(
            RowMetric(type=each) if isinstance(each, str) else each for each in self.metrics
        )

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of what is measured over all rows."""
        return tuple(
            name
            for each in self.row_metrics
            for name in (each.label, *(f"{each.label}/pass@{k}" for k in each.pass_at))
        )

    @model_validator(mode="before")
    @classmethod
    def _one_reference(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        column = given.get("answer_column")
        if column is None:
            return given
        if given.get("reference") not in (None, column):
            raise ValueError("give either reference or answer_column: they are the same")
        return {**given, "reference": column}

    @model_validator(mode="after")
    def _is_whole(self) -> RowEvaluation:
        if not self.metrics:
            raise ValueError("metrics: expected at least one")
        if "regex" in self.metrics:
            raise ValueError("the metric 'regex' needs a pattern: {type: regex, pattern: …}")
        labels = [each.label for each in self.row_metrics]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two metrics are called {label!r}: give one of them a name")
        for each in self.row_metrics:
            if each.type in COMPARING_METRICS and (each.reference or self.reference) is None:
                raise ValueError(
                    f"the metric {each.type!r} compares with the right answer: give reference, the"
                    " column that has it"
                )
            if needs_relevant(each.type) and self.relevant_column is None:
                raise ValueError(
                    f"the metric {each.type!r} needs to know what should be found: give"
                    " relevant_column, the column that has its ids"
                )
        return self
