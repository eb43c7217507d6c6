"""What the tasks of a template are going to take, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mloc_dagster.compile import CompiledTask, CompiledTemplate, whole_reference
from mloc_dagster.executors import (
    Estimate,
    Figure,
    TrainingEstimate,
    Unknown,
    add_up,
    estimate_rows,
    estimate_training,
    kind_of,
    unknown_estimate,
)
from mloc_dagster.results import ResultStore, read_history
from mloc_dagster.schema import GraphTemplateData, Model, RowSpec, TrainingSpec, UpstreamData

_ADDED_UP = ("rows", "prompt_tokens", "output_tokens", "steps", "engine_seconds", "seconds", "cost")
"""Memory is not: tasks take turns, or are on machines of their own."""


@dataclass(frozen=True, slots=True)
class TaskEstimate:
    """What one task of a template is expected to take.

    Attributes:
        template: Its template's name.
        task: Its own.
        task_type: What it does.
        estimate: The figures.
        slo_seconds: Seconds it has, from submission; None without an SLO.
        ends_after: Seconds from submission to its end, after the tasks that it waits for; None
            when that is not known.
    """

    template: str
    task: str
    task_type: str
    estimate: Estimate | TrainingEstimate
    slo_seconds: float | None
    ends_after: float | None

    @property
    def fits_slo(self) -> bool | None:
        """Whether the SLO will be kept; None without one, and where no time is known."""
        if self.slo_seconds is None or self.ends_after is None:
            return None
        return self.ends_after <= self.slo_seconds

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return isinstance(self.estimate, TrainingEstimate)


def total_of(tasks: Sequence[TaskEstimate]) -> dict[str, Figure]:
    """Returns the sums of the figures, each over the tasks that have it at all."""
    having = {
        name: [getattr(each.estimate, name) for each in tasks if hasattr(each.estimate, name)]
        for name in _ADDED_UP
    }
    return {name: add_up(figures) for name, figures in having.items() if figures}


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
    later = spec.data.node is not None or _refers(compiled)
    rows = _rows_known_later(compiled) if later else ""
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
