"""Checks of `evaluation` blocks, of rows and of trainings, that look beyond the block."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue

from mloc_dagster.compile.checks import nearest
from mloc_dagster.compile.diagnostics import Findings, at_key, at_value, find
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.errors import nearest_hint
from mloc_dagster.plugins import METRICS_GROUP, entry_points
from mloc_dagster.schema import (
    BUILTIN_METRICS,
    COMPARING_METRICS,
    JUDGED_METRICS,
    PASSAGE_METRICS,
    ROW_METRICS,
    AnswerSpec,
    DatasetData,
    Gate,
    GateError,
    InferenceSpec,
    RowMetric,
    RowSpec,
    TaskSpec,
    TrainingSpec,
    UpstreamData,
    needs_relevant,
    parse_gate,
)

_PLACE: Path = ("evaluation",)


def check_evaluation(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds what would keep an evaluation from measuring what it asks for.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes the errors.
    """
    if isinstance(typed, TrainingSpec):
        _check_training(spec, typed, findings)
    elif isinstance(typed, RowSpec) and typed.evaluation is not None:
        _check_rows(spec, typed, findings)


def _check_training(spec: Tree, typed: TrainingSpec, findings: Findings) -> None:
    metrics = find(spec, (*_PLACE, "metrics"))
    for each in metrics.items if metrics is not None else ():
        _check_name(each, BUILTIN_METRICS, findings)
    harness = find(spec, (*_PLACE, "harness"))
    if harness is not None and typed.method.classifies:
        findings.add(at_key(harness, "benchmarks are not for a reward model, which writes no text"))
    evaluation = typed.evaluation
    gate = None if evaluation is None else _gate(spec, evaluation.gate, findings)
    if evaluation is not None and gate is not None:
        lacking = [each for each in gate.metrics if not evaluation.may_measure(each)]
        _refuse(spec, lacking, evaluation.metrics, findings)


def _check_rows(spec: Tree, typed: RowSpec, findings: Findings) -> None:
    evaluation = typed.evaluation
    if evaluation is None:
        return
    answers = typed.inference.n if isinstance(typed, InferenceSpec) else 1
    for place, metric in enumerate(evaluation.row_metrics):
        block = nearest(spec, (*_PLACE, "metrics", place))
        name = block if block.text is not None else nearest(block, ("type",))
        if needs_relevant(metric.type):
            _check_passages(spec, name, typed, findings)
            continue
        _check_name(name, {*ROW_METRICS, *PASSAGE_METRICS}, findings)
        _check_judged(name, metric, typed, findings)
        for each in metric.pass_at:
            if each > answers:
                message = f"pass@{each} needs {each} answers to a row: inference.n is {answers}"
                findings.add(at_value(nearest(block, ("pass_at",)), message))
        if metric.json_schema is not None:
            _check_schema(nearest(block, ("json_schema",)), metric.json_schema, findings)
        if metric.type in COMPARING_METRICS:
            at = nearest(block, ("reference",)) if metric.reference else _block_reference(spec)
            _check_reference(at, typed, metric.reference or evaluation.reference or "", findings)
    gate = _gate(spec, evaluation.gate, findings)
    if gate is not None:
        if gate.needs_before:
            message = "'before' stands in the gate of a training only; expected a number"
            findings.add(at_value(nearest(spec, (*_PLACE, "gate")), message))
        lacking = [each for each in gate.metrics if each not in evaluation.figures]
        _refuse(spec, lacking, evaluation.figures, findings)


def _block_reference(spec: Tree) -> Tree:
    column = find(spec, (*_PLACE, "answer_column"))
    return nearest(spec, (*_PLACE, "reference")) if column is None else column


def _check_passages(spec: Tree, name: Tree, typed: RowSpec, findings: Findings) -> None:
    """Checks that rows have passages to measure, and a column that says which are relevant."""
    metric, evaluation = name.text, typed.evaluation
    if metric == "citation_precision":
        uncited = isinstance(typed, AnswerSpec) and typed.answer.citations == "none"
        if uncited or "citations" not in typed.leaves:
            findings.add(at_value(name, f"{metric!r} needs answers with citations"))
    elif "retrieved" not in typed.leaves:
        message = f"{metric!r} measures what a task finds, and {typed.task_type!r} finds nothing"
        findings.add(at_value(name, message))
    if evaluation is not None and evaluation.relevant_column is not None:
        place = nearest(spec, (*_PLACE, "relevant_column"))
        _check_reference(place, typed, evaluation.relevant_column, findings)


def _check_judged(name: Tree, metric: RowMetric, typed: RowSpec, findings: Findings) -> None:
    if metric.type in JUDGED_METRICS and "judgement" not in typed.leaves:
        message = (
            f"{metric.type!r} needs a judge: give evaluation.judge, beside generate, in a template "
            "of type rag, or judge the rows in a task of type judge"
        )
        findings.add(at_value(name, message))


def _check_name(place: Tree, ours: Collection[str], findings: Findings) -> None:
    known = {*ours, *entry_points(group=METRICS_GROUP).names}
    if place.text not in known:
        name = str(place.content)
        findings.add(at_value(place, f"unknown metric {name!r}{nearest_hint(name, known)}"))


def _check_schema(place: Tree, schema: Mapping[str, JsonValue], findings: Findings) -> None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(dict(schema))
    except SchemaError as error:
        findings.add(at_value(place, f"this is no JSON Schema: {error.json_path}: {error.message}"))


def _check_reference(place: Tree, typed: RowSpec, reference: str, findings: Findings) -> None:
    """Checks that rows can have the column with the right answer, as far as the template says."""
    match typed.data:
        case DatasetData(keep=tuple() as kept):
            known = (*kept, *(["id"] if typed.data.id_column else []))
            if reference.split(".")[0] in known:
                return
            message = f"data.keep leaves {reference!r} out{nearest_hint(reference, known)}"
        case DatasetData(keep=False):
            message = f"data.keep is false, so that no row has {reference!r}"
        case DatasetData() | UpstreamData():
            return
        case data:
            message = f"rows of data.type {data.type!r} have no columns, and so no {reference!r}"
    findings.add(at_value(place, message))


def _gate(spec: Tree, text: str | None, findings: Findings) -> Gate | None:
    if text is None:
        return None
    try:
        return parse_gate(text)
    except GateError as error:
        findings.add(at_value(nearest(spec, (*_PLACE, "gate")), str(error)))
        return None


def _refuse(spec: Tree, lacking: Sequence[str], known: Sequence[str], findings: Findings) -> None:
    for name in sorted(lacking):
        message = f"the gate's metric {name!r} is not measured{nearest_hint(name, known)}"
        findings.add(at_value(nearest(spec, (*_PLACE, "gate")), message))
