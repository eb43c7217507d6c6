"""`mloc estimate`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import typer

from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.cli.run_command import compile_with_sets, template_path
from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import duration
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.executors.estimate import (
    Estimate,
    Figure,
    add_up,
    estimate_rows,
    unknown_estimate,
)
from mloc_dagster.executors.input_planning import kind_of
from mloc_dagster.results.history import read_history
from mloc_dagster.results.store import ResultStore, open_store
from mloc_dagster.schema.data import GraphTemplateData, UpstreamData
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.settings import settings

_FIGURES = tuple(each.name for each in fields(Estimate))
_SHOWN = ("rows", "prompt_tokens", "output_tokens", "seconds", "cost")


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
    estimate: Estimate
    slo_seconds: float | None
    ends_after: float | None

    @property
    def fits_slo(self) -> bool | None:
        """Whether the SLO will be kept; None without one, and where no time is known."""
        if self.slo_seconds is None or self.ends_after is None:
            return None
        return self.ends_after <= self.slo_seconds


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
    store = open_store()
    tasks = [each for compiled in templates for each in _estimate_template(compiled, store)]
    total = {name: add_up([getattr(each.estimate, name) for each in tasks]) for name in _FIGURES}
    if as_json:
        document = {
            "tasks": [_task_json(each) for each in tasks],
            "total": {name: asdict(figure) for name, figure in total.items()},
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        _print(tasks, total)
    return OK


def _estimate_template(compiled: CompiledTemplate, store: ResultStore) -> list[TaskEstimate]:
    done: dict[str, TaskEstimate] = {}
    for each in compiled.tasks:
        task = each.task
        before = [done[node].ends_after for node in task.depends_on]
        found = _estimate_task(each, store)
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


def _estimate_task(compiled: CompiledTask, store: ResultStore) -> Estimate:
    spec = compiled.task.spec
    if not isinstance(spec, RowSpec):
        return unknown_estimate(f"no estimate for tasks of type {spec.task_type}")
    if spec.data is None:
        return unknown_estimate("no estimate for a task without data")
    if isinstance(spec.data, UpstreamData | GraphTemplateData) or _refers(compiled):
        names = ", ".join(compiled.task.depends_on)
        return unknown_estimate(f"its rows are known when {names} is done")
    return estimate_rows(spec, read_history(store, kind_of(spec)))


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


def _print(tasks: Sequence[TaskEstimate], total: Mapping[str, Figure]) -> None:
    rows = [
        (each.task, *(_cell(name, getattr(each.estimate, name)) for name in _SHOWN))
        for each in tasks
    ]
    if len(tasks) > 1:
        rows.append(("total", *(_cell(name, total[name]) for name in _SHOWN)))
    headings = ("task", "rows", "prompt tokens", "output tokens", "time", "cost")
    print_table(headings, rows, numbers=range(1, 6))
    for each in tasks:
        typer.echo()
        for text in _reasons(each):
            typer.echo(text)
    unknown = [figure.source for figure in total.values() if "of" in figure.source.split()]
    if len(tasks) > 1 and unknown:
        typer.echo(f"\ntotal: what is known, of {unknown[-1]}")


def _reasons(each: TaskEstimate) -> list[str]:
    """Returns where a task's figures come from, equal reasons on one line."""
    by_source: dict[str, list[str]] = {}
    for name in _SHOWN:
        words = "time" if name == "seconds" else name.replace("_", " ")
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
    else:
        text = f"{round(figure.value):,}"
    return f"≤ {text}" if figure.at_most else text
