"""`mloc estimate`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import typer

from mloc_dagster.cli.estimate_report import TaskEstimate, print_estimates, total_of
from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.cli.run_command import compile_with_sets, template_path
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.compile.expressions import whole_reference
from mloc_dagster.executors.estimate import Estimate, estimate_rows, unknown_estimate
from mloc_dagster.executors.input_planning import kind_of
from mloc_dagster.executors.training_estimate import (
    TrainingEstimate,
    Unknown,
    estimate_training,
)
from mloc_dagster.results.history import read_history
from mloc_dagster.results.store import ResultStore, open_store
from mloc_dagster.schema.data import GraphTemplateData, UpstreamData
from mloc_dagster.schema.model import Model
from mloc_dagster.schema.task import RowSpec, TrainingSpec
from mloc_dagster.settings import settings


def estimate(
    template: str, *, sets: Sequence[str] = (), results: str | None = None, as_json: bool = False
) -> int:
    """Prints what each task of a file is expected to take; returns the exit code.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
        DataError: If the input of a task is missing, unreadable or empty.
    """
    if results is not None:
        os.environ["MLOC_RESULTS_URL"] = results
        settings.cache_clear()
    templates = compile_with_sets(template_path(template), sets)
    for compiled in templates:
        compiled.check_built()
    store = open_store()
    tasks = [each for compiled in templates for each in estimate_template(compiled, store)]
    if as_json:
        document = {
            "tasks": [_task_json(each) for each in tasks],
            "total": {name: asdict(figure) for name, figure in total_of(tasks).items()},
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        print_estimates(tasks)
    return OK


def estimate_template(compiled: CompiledTemplate, store: ResultStore) -> list[TaskEstimate]:
    """Estimates the tasks of a template.

    Args:
        compiled: The template.
        store: Where earlier tasks are.

    Raises:
        DataError: If the input of a task is missing, unreadable or empty.
    """
    by_name = {each.task.name: each for each in compiled.tasks}
    done: dict[str, TaskEstimate] = {}
    for each in compiled.tasks:
        task = each.task
        before = [done[node].ends_after for node in task.depends_on]
        found = _estimate_task(each, by_name, store)
        known = [time for time in before if time is not None]
        own, complete = found.seconds.value, len(known) == len(before)
        done[task.name] = TaskEstimate(
            template=compiled.metadata.name,
            task=task.name,
            task_type=task.spec.task_type,
            estimate=found,
            slo_seconds=None if task.spec.slo is None else task.spec.slo.seconds,
            ends_after=own + max(known, default=0.0) if own is not None and complete else None,
        )
    return list(done.values())


def _estimate_task(
    compiled: CompiledTask, by_name: Mapping[str, CompiledTask], store: ResultStore
) -> Estimate | TrainingEstimate:
    spec = compiled.task.spec
    if isinstance(spec, TrainingSpec):
        return estimate_training(spec, store, _unknown_of(compiled, spec, by_name))
    if not isinstance(spec, RowSpec):
        return unknown_estimate(f"no estimate for tasks of type {spec.task_type}")
    if spec.data is None:
        return unknown_estimate("no estimate for a task without data")
    if isinstance(spec.data, UpstreamData | GraphTemplateData) or _refers(compiled):
        return unknown_estimate(_rows_known_later(compiled))
    return estimate_rows(spec, read_history(store, kind_of(spec)))


def _unknown_of(
    compiled: CompiledTask, spec: TrainingSpec, by_name: Mapping[str, CompiledTask]
) -> Unknown:
    rows = _rows_known_later(compiled) if _refers(compiled) else ""
    node = _trained_by(spec)
    if node is None:
        return Unknown(rows)
    return Unknown(rows, f"its model is the result of {node}", _model_from(node, by_name))


def _model_from(node: str, by_name: Mapping[str, CompiledTask]) -> Model | None:
    """Returns the model that a chain of trainings begins with; None if it is not one."""
    spec = by_name[node].task.spec if node in by_name else None
    if not isinstance(spec, TrainingSpec):
        return None
    before = _trained_by(spec)
    return spec.model if before is None else _model_from(before, by_name)


def _trained_by(spec: TrainingSpec) -> str | None:
    """Returns the task whose result a training's model is; None if it is no task's."""
    reference = whole_reference(spec.model.source.identifier)
    return None if reference is None else reference.node


def _rows_known_later(compiled: CompiledTask) -> str:
    return f"its rows are known when {', '.join(compiled.task.depends_on)} is done"


def _refers(compiled: CompiledTask) -> bool:
    return bool(compiled.references) and "${" in json.dumps(compiled.mapping.get("data"))


def _task_json(each: TaskEstimate) -> dict[str, object]:
    return {
        "template": each.template,
        "task": each.task,
        "task_type": each.task_type,
        **asdict(each.estimate),
        "slo_seconds": each.slo_seconds,
        "ends_after": each.ends_after,
        "fits_slo": each.fits_slo,
    }
