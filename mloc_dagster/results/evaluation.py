"""Scoring a task's rows: a column for each metric, and its mean over the rows that have a score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from mloc_dagster.errors import DataError, TerminalError, nearest_hint
from mloc_dagster.plugins import METRICS_GROUP, registered_function
from mloc_dagster.results import scores
from mloc_dagster.results.citations import without_citations
from mloc_dagster.results.columns import SCORES_NAME, ColumnWriter, arrow
from mloc_dagster.results.export_row import column_called
from mloc_dagster.results.passage_scores import (
    citation_precision,
    ids_of,
    passage_scores,
    ranked_ids,
)
from mloc_dagster.results.ranking import RankingCounter
from mloc_dagster.results.rows import OutputRow, Prompt
from mloc_dagster.results.store import Folder
from mloc_dagster.results.summary import Scores, WorstRow
from mloc_dagster.results.tally import short_prompt, short_text
from mloc_dagster.results.worst_rows import WorstRows
from mloc_dagster.schema import (
    COMPARING_METRICS,
    JUDGED_METRICS,
    ROW_METRICS,
    RowEvaluation,
    RowMetric,
    needs_relevant,
    parse_gate,
    passage_metric,
)

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
        self._ranking, self._worst = RankingCounter(), WorstRows()

    def score(
        self, rows: Sequence[OutputRow], columns: Sequence[Columns]
    ) -> list[dict[str, Score]]:
        """Returns the scores of rows by metric; takes rows in order of index.

        Args:
            rows: The next rows.
            columns: Those of each.

        Raises:
            DataError: If a row lacks the column with the right answer, or with what is relevant.
            TerminalError: If a registered metric fails.
        """
        relevant = self._relevant(rows, columns)
        of_passages = self._found(rows, relevant)
        scored: list[dict[str, Score]] = []
        for row, brought, ids, found in zip(rows, columns, relevant, of_passages, strict=True):
            scores = {each.label: each.score(row, brought, found) for each in self._metrics}
            self._writer.add(scores)
            self._ranking.add(row.retrieved or (), ids)
            self._worst.add(row.index, scores, partial(self._described, row, brought, ids, scores))
            scored.append(scores)
        return scored

    def _relevant(
        self, rows: Sequence[OutputRow], columns: Sequence[Columns]
    ) -> Sequence[frozenset[str]]:
        """Returns the ids of what should be found for rows; none for one that failed."""
        column = self._evaluation.relevant_column
        if column is None:
            return [frozenset[str]()] * len(rows)
        place = column.split(".")
        return [
            frozenset[str]()
            if row.error is not None
            else ids_of(_value(row, brought, place, "relevant_column"))
            for row, brought in zip(rows, columns, strict=True)
        ]

    def _described(
        self, row: OutputRow, columns: Columns, relevant: frozenset[str], scores: dict[str, Score]
    ) -> WorstRow:
        expected, found = self._metrics[0].compared(row, columns, relevant)
        return WorstRow(
            index=row.index,
            scores=scores,
            prompt=short_prompt(row.prompt),
            expected=short_text(expected),
            found=short_text(found),
        )

    def _found(
        self, rows: Sequence[OutputRow], relevant: Sequence[frozenset[str]]
    ) -> Sequence[Mapping[str, Score]]:
        """Returns the scores of what was found for rows, those of many rows at once."""
        if self._evaluation.relevant_column is None:
            return [dict[str, Score]()] * len(rows)
        cited = [citation_precision(*each) for each in zip(rows, relevant, strict=True)]
        names = [each.type for each in self._metrics if passage_metric(each.type) is not None]
        if not names:
            return [{"citation_precision": each} for each in cited]
        pairs = [(row.retrieved or (), ids) for row, ids in zip(rows, relevant, strict=True)]
        return [
            {**found, "citation_precision": share}
            for found, share in zip(passage_scores(names, pairs), cited, strict=True)
        ]

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
            ranking=self._ranking.result(),
            worst=self._worst.result(),
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
        self.label, self.type = metric.label, metric.type
        self._of_passages = needs_relevant(metric.type)
        self.scored = 0
        self._metric = metric
        compares = metric.type in COMPARING_METRICS or (
            metric.type not in ROW_METRICS and not self._of_passages
        )
        place = (metric.reference or reference) if compares else None
        self._reference = () if place is None else tuple(place.split("."))
        ours = metric.type in ROW_METRICS or self._of_passages
        self._compare = _compare(metric) if ours else None
        self._function: Any = (
            None if ours else registered_function(METRICS_GROUP, "metric", metric.type)
        )
        self._extract = None if metric.extract is None else re.compile(metric.extract)
        self._sum = 0.0
        self._passes = dict.fromkeys(metric.pass_at, 0.0)

    def score(self, row: OutputRow, columns: Columns, found: Mapping[str, Score]) -> Score:
        """Returns a row's score.

        Args:
            row: The row.
            columns: What it brought along.
            found: Scores of what was found for it.
        """
        if row.error is not None:
            return None
        if self._of_passages:
            return self._counted(found[self.type])
        if self.type in JUDGED_METRICS:
            return self._counted(None if row.judgement is None else row.judgement.score)
        answers = row.outputs or [row.output]
        if row.citations is not None:
            answers = list(map(without_citations, answers))
        references = self._references(row, columns)
        if row.abstained is not None and self._metric.type in COMPARING_METRICS:
            # No answer is the right one where there is none, and nowhere else.
            unanswerable = not any(each.strip() for each in references)
            if row.abstained or unanswerable:
                return self._counted(float(row.abstained and unanswerable))
        scores_of_each = [self._best(answer, references, row, columns) for answer in answers]
        known = [each for each in scores_of_each if each is not None and math.isfinite(each)]
        if not known:
            return None
        score = self._counted(math.fsum(known) / len(known))
        right = sum(each >= 1 for each in known)
        for k in self._passes:
            self._passes[k] += scores.pass_at(right, len(answers), min(k, len(answers)))
        return score

    def compared(
        self, row: OutputRow, columns: Columns, relevant: frozenset[str]
    ) -> tuple[str, str]:
        """Returns what the metric looks at, as texts: what is expected, and what is there."""
        if self._of_passages:
            found = ranked_ids(row.retrieved or (), relevant)
            return ", ".join(sorted(relevant)), ", ".join(found)
        return " / ".join(self._references(row, columns)), row.output

    def _counted(self, score: Score) -> Score:
        if score is not None:
            self.scored += 1
            self._sum += score
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
        value = _value(row, columns, self._reference, "reference")
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


def _value(row: OutputRow, columns: Columns, place: Sequence[str], key: str) -> object:
    """Returns what a row has at a place of its columns, such as `answers.text`."""
    value: object = columns
    for step in place:
        inside = _fields(value)
        if value is columns:
            step = column_called(step, inside)
        if step not in inside:
            raise DataError(
                f"evaluation.{key}: row {row.index} has no column"
                f" {'.'.join(place)!r}{nearest_hint(step, inside)}"
            )
        value = inside[step]
    return value


def _fields(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _scaled(number: float | None, scale: float) -> float | None:
    return None if number is None else number / scale


def _builtin(prompt: Prompt) -> object:
    if isinstance(prompt, str):
        return prompt
    return [{"role": each.role, "content": each.content} for each in prompt]
