"""Scoring a task's rows: a column for each metric, and its mean over the rows that have a score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from mloc_dagster.errors import DataError, TerminalError, nearest_hint
from mloc_dagster.plugins import METRICS_GROUP, registered_function
from mloc_dagster.results import scores
from mloc_dagster.results.columns import SCORES_NAME, ColumnWriter, arrow
from mloc_dagster.results.export_row import column_called
from mloc_dagster.results.rows import OutputRow, Prompt
from mloc_dagster.results.store import Folder
from mloc_dagster.results.summary import Scores
from mloc_dagster.schema import COMPARING_METRICS, ROW_METRICS, RowEvaluation, RowMetric, parse_gate

Columns = Mapping[str, object]

Score = float | None
"""A number, or None where a row cannot be scored: it failed, or there is no right answer."""

_Compare = Callable[[str, str], Score]


class Scorer:
    """Scores rows one after the other, and writes their scores beside them.

    Args:
        folder: The task's folder.
        evaluation: What is asked for.

    Raises:
        UnknownNameError: If nobody registered a metric.
        TerminalError: If a registered metric cannot be used.
    """

    def __init__(self, folder: Folder, evaluation: RowEvaluation) -> None:
        self._evaluation = evaluation
        self._metrics = [_Metric(each, evaluation.reference) for each in evaluation.row_metrics]
        folder.delete(SCORES_NAME)
        types = {each.label: arrow().float64() for each in self._metrics}
        self._writer = ColumnWriter(folder, types, SCORES_NAME)

    def score(self, row: OutputRow, columns: Columns) -> dict[str, Score]:
        """Returns a row's score of each metric; takes rows in order of index.

        Raises:
            DataError: If the row lacks the column with the right answer.
            TerminalError: If a registered metric fails.
        """
        found = {each.label: each.score(row, columns) for each in self._metrics}
        self._writer.add(found)
        return found

    def close(self) -> Scores:
        """Writes what is left; returns what the rows came to."""
        figures: dict[str, float] = {}
        for each in self._metrics:
            figures |= each.figures()
        gate, passed = self._judge(figures)
        return Scores(
            metrics=figures,
            scored={each.label: each.scored for each in self._metrics},
            columns=self._writer.close(),
            gate=gate,
            passed=passed,
        )

    def _judge(self, figures: Mapping[str, float]) -> tuple[str, bool]:
        if self._evaluation.gate is None:
            return "", True
        gate = parse_gate(self._evaluation.gate)
        # A metric without a scored row has no mean, and no number passes for it.
        measured = {name: figures.get(name, math.nan) for name in gate.metrics}
        found = gate.check({}, measured)
        return found.text, found.passed


def refused_by_gate(scores: Scores) -> str:
    """Returns what is said of a result that did not pass its gate, wherever it is said."""
    return f"the result did not pass its gate: {scores.gate}"


class _Metric:
    """One metric, and the sums of its scores."""

    def __init__(self, metric: RowMetric, reference: str | None) -> None:
        self.label = metric.label
        self.scored = 0
        self._metric = metric
        compares = metric.type in COMPARING_METRICS or metric.type not in ROW_METRICS
        place = (metric.reference or reference) if compares else None
        self._reference = () if place is None else tuple(place.split("."))
        ours = metric.type in ROW_METRICS
        self._compare = _compare(metric) if ours else None
        self._function: Any = (
            None if ours else registered_function(METRICS_GROUP, "metric", metric.type)
        )
        self._extract = None if metric.extract is None else re.compile(metric.extract)
        self._sum = 0.0
        self._passes = dict.fromkeys(metric.pass_at, 0.0)

    def score(self, row: OutputRow, columns: Columns) -> Score:
        if row.error is not None:
            return None
        answers = row.outputs or [row.output]
        references = self._references(row, columns)
        found = [self._best(answer, references, row, columns) for answer in answers]
        known = [each for each in found if each is not None and math.isfinite(each)]
        if not known:
            return None
        score = math.fsum(known) / len(known)
        self.scored += 1
        self._sum += score
        right = sum(each >= 1 for each in known)
        for k in self._passes:
            self._passes[k] += scores.pass_at(right, len(answers), min(k, len(answers)))
        return score

    def figures(self) -> dict[str, float]:
        """Returns the means; nothing if no row has a score."""
        if not self.scored:
            return {}
        passes = {f"{self.label}/pass@{k}": each for k, each in self._passes.items()}
        sums = {self.label: self._sum, **passes}
        return {name: round(each / self.scored, 9) for name, each in sums.items()}

    def _best(
        self, answer: str, references: Sequence[str], row: OutputRow, columns: Columns
    ) -> Score:
        if self._extract is not None:
            answer = scores.extracted(self._extract, answer)
        if self._compare is None:
            return self._registered(answer, references, row, columns)
        found = [self._compare(answer, each) for each in references]
        return max((each for each in found if each is not None), default=None)

    def _registered(
        self, answer: str, references: Sequence[str], row: OutputRow, columns: Columns
    ) -> Score:
        reference = references[0] if self._reference and references else None
        described = {**columns, "prompt": _builtin(row.prompt)}
        try:
            return float(self._function([answer], [reference], [described]))
        except Exception as error:  # anyone's code
            raise TerminalError(
                f"the metric {self._metric.type!r} failed at row {row.index}:"
                f" {type(error).__name__}: {error}"
            ) from error

    def _references(self, row: OutputRow, columns: Columns) -> Sequence[str]:
        """Returns the right answers of a row; an empty one where the metric needs none."""
        if not self._reference:
            return [""]
        value: object = columns
        for step in self._reference:
            inside = _fields(value)
            if value is columns:
                step = column_called(step, inside)
            if step not in inside:
                raise DataError(
                    f"evaluation.reference: row {row.index} has no column"
                    f" {'.'.join(self._reference)!r}{nearest_hint(step, inside)}"
                )
            value = inside[step]
        several = cast("list[object]", value) if isinstance(value, list) else [value]
        return [str(each) for each in several if each is not None]


def _compare(metric: RowMetric) -> _Compare:
    match metric.type:
        case "exact_match":
            return scores.same_text
        case "contains":
            return scores.holds_text
        case "f1":
            return scores.f1
        case "numeric":
            return lambda answer, wanted: scores.same_number(answer, wanted, metric.tolerance)
        case "regex":
            found = re.compile(metric.pattern or "").search
            return lambda answer, _: float(found(answer) is not None)
        case "number":
            return lambda answer, _: _scaled(scores.last_number(answer), metric.scale)
        case _:
            valid = scores.json_score(metric.json_schema)
            return lambda answer, _: valid(answer)


def _fields(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _scaled(number: float | None, scale: float) -> float | None:
    return None if number is None else number / scale


def _builtin(prompt: Prompt) -> object:
    if isinstance(prompt, str):
        return prompt
    return [{"role": each.role, "content": each.content} for each in prompt]
