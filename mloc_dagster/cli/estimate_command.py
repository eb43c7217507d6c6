"""`mloc estimate`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import typer

from mloc_dagster.cli.display.tables import duration, print_table
from mloc_dagster.cli.run_command import compile_with_sets, template_path
from mloc_dagster.cli.terminal import OK
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
from mloc_dagster.results import ResultStore, open_store, read_history
from mloc_dagster.schema import GraphTemplateData, Model, RowSpec, TrainingSpec, UpstreamData
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


_GIB, _MIB = 1 << 30, 1 << 20

_OF_ROWS = {
    "rows": "rows",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "seconds": "time",
    "cost": "cost",
}
_OF_TRAININGS = {
    "rows": "rows",
    "steps": "steps",
    "memory_bytes": "memory",
    "seconds": "time",
    "cost": "cost",
}
"""Figures that are shown, with their headings."""

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


def print_estimates(tasks: Sequence[TaskEstimate]) -> None:
    """Prints the tables, and where each figure comes from."""
    of_rows = [each for each in tasks if not each.trains]
    trainings = [each for each in tasks if each.trains]
    _print_table(of_rows, _OF_ROWS)
    if of_rows and trainings:
        typer.echo()
    _print_table(trainings, _OF_TRAININGS)
    for each in tasks:
        typer.echo()
        for text in _reasons(each):
            typer.echo(text)
    total = total_of(tasks)
    known = [each for each in total.values() if each.value is not None]
    partial = [each.source for each in known if "of" in each.source.split()]
    if of_rows and trainings:
        time, cost = _cell("seconds", total["seconds"]), _cell("cost", total["cost"])
        typer.echo(f"\nall tasks: time {time}, cost {cost}")
    if len(tasks) > 1 and partial:
        typer.echo(f"\ntotal: what is known, of {partial[-1]}")


def _print_table(tasks: Sequence[TaskEstimate], shown: Mapping[str, str]) -> None:
    if not tasks:
        return
    rows = [_row(each, shown) for each in tasks]
    if len(tasks) > 1:
        total = total_of(tasks)
        sums = (_cell(name, total[name]) if name in total else "" for name in shown)
        rows.append(("total", *sums))
    first = "training" if tasks[0].trains else "task"
    print_table((first, *shown.values()), rows, numbers=range(1, 1 + len(shown)))


def _row(each: TaskEstimate, shown: Mapping[str, str]) -> tuple[str, ...]:
    return (each.task, *(_cell(name, getattr(each.estimate, name)) for name in shown))


def _reasons(each: TaskEstimate) -> list[str]:
    """Returns where a task's figures come from, equal reasons on one line."""
    by_source: dict[str, list[str]] = {}
    for name, words in (_OF_TRAININGS if each.trains else _OF_ROWS).items():
        by_source.setdefault(getattr(each.estimate, name).source, []).append(words)
    texts = [f"{each.task}: {', '.join(names)}: {why}" for why, names in by_source.items()]
    if each.slo_seconds is not None:
        texts.append(f"{each.task}: {_slo(each, each.slo_seconds)}")
    return texts


def _slo(each: TaskEstimate, seconds: float) -> str:
    limit = f"SLO of {duration(seconds)}"
    if each.ends_after is None:
        return f"{limit}: not known"
    late = each.ends_after - seconds
    return f"{limit}: {'fits' if each.fits_slo else f'about {duration(late)} late'}"


def _cell(name: str, figure: Figure) -> str:
    if figure.value is None:
        return "?"
    if name == "seconds":
        text = duration(figure.value)
    elif name == "cost":
        text = f"{figure.value:.3g}"
    elif name == "memory_bytes":
        text = _memory(figure.value)
    else:
        text = f"{round(figure.value):,}"
    return f"≤ {text}" if figure.at_most else text


def _memory(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.1f} MiB"
