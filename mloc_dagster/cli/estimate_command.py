"""`mloc estimate`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import typer

from mloc_dagster.cli.terminal import OK
from mloc_dagster.display import duration, print_table
from mloc_dagster.executors import (
    Figure,
)
from mloc_dagster.local_run import (
    TaskEstimate,
    check_partitions,
    compile_with_sets,
    estimate_template,
    template_path,
    total_of,
)
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings


def estimate(
    template: str,
    *,
    sets: Sequence[str] = (),
    partition: str | None = None,
    results: str | None = None,
    as_json: bool = False,
) -> int:
    """Prints what each task of a file is expected to take; returns the exit code.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
        DataError: If the input of a task is missing, unreadable or empty.
    """
    if results is not None:
        os.environ["MLOC_RESULTS_URL"] = results
        settings.cache_clear()
    templates = compile_with_sets(template_path(template), sets, partition)
    check_partitions(templates)
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
