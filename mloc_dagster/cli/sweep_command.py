"""`mloc sweep`: one template with many values, compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
import yaml

from mloc_dagster.cli.display.report import print_folders, report_json
from mloc_dagster.cli.session import Session
from mloc_dagster.cli.terminal import OK
from mloc_dagster.compile import (
    Sweep,
    apply_sets,
    compile_document,
    compile_mapping,
    errors_of,
    load_documents,
    parse_axis,
    sweep as swept,
    with_partition,
)
from mloc_dagster.data import look_at_data
from mloc_dagster.display import duration, print_table
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.local_run import check_partitions, template_path
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from rich.console import Console

    from mloc_dagster.cli.display.report import TemplateRun
    from mloc_dagster.local_run import TaskOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """The command line of `mloc sweep`; see its help."""

    template: str
    grid: tuple[str, ...]
    sets: tuple[str, ...]
    partition: str | None
    results: str | None
    print_only: bool
    as_json: bool
    progress: bool


def sweep(options: SweepOptions) -> int:
    """Runs a template with every combination of values, or prints it; returns the exit code.

    Raises:
        TemplateError: If it is wrong with one of the values.
        InputError: If an axis is none, or the file has several templates.
    """
    made = _made(options)
    if options.print_only:
        typer.echo(yaml.safe_dump(made.document, sort_keys=False, allow_unicode=True), nl=False)
        return OK
    if options.results is not None:
        os.environ["MLOC_RESULTS_URL"] = options.results
        settings.cache_clear()
    compiled = compile_mapping(made.document)
    if errors := errors_of(look_at_data([compiled])):
        raise TemplateError(errors)
    session = Session(
        [compiled],
        results=options.results,
        progress=options.progress,
        talkative=not options.as_json,
        complain=not options.as_json,
        report=lambda run, out: _print_comparison(made, run.outcome.tasks, out),
    )
    code = session.run()
    if options.as_json:
        shown = report_json(session.runs, ok=code == OK, warnings=session.warnings)
        shown["sweep"] = _comparison(made, session.runs)
        typer.echo(json.dumps(shown, ensure_ascii=False))
    else:
        print_folders(session.runs)
    return code


def _made(options: SweepOptions) -> Sweep:
    documents = load_documents(template_path(options.template))
    if len(documents) != 1:
        raise InputError(f"{options.template} has {len(documents)} templates: sweep one")
    axes = [parse_axis(each) for each in options.grid]
    if not axes:
        raise InputError("--grid PATH=VALUE,VALUE… says what is varied; give at least one")
    document = apply_sets(documents[0], options.sets)
    if options.partition is not None:
        document = with_partition(document, options.partition)
    check_partitions([compile_document(document)])
    return swept(document, axes)


def _comparison(made: Sweep, runs: Sequence[TemplateRun]) -> list[dict[str, object]]:
    outcomes = {each.node: each for run in runs for each in run.outcome.tasks}
    return [
        {
            "node": each.node,
            "origin": each.origin,
            "values": {path: json.loads(value) for path, value in each.values.items()},
            "task_id": outcomes[each.node].task_id,
            "metrics": dict(_metrics(outcomes[each.node])),
        }
        for each in made.tasks
        if each.node in outcomes
    ]


def _metrics(task: TaskOutcome) -> Mapping[str, float]:
    if task.training is not None:
        loss = {} if task.training.loss is None else {"loss": task.training.loss}
        return {**loss, **(task.training.after or {})}
    if task.summary is None or task.summary.scores is None:
        return {}
    return task.summary.scores.metrics


def _print_comparison(made: Sweep, outcomes: Sequence[TaskOutcome], out: Console) -> None:
    """Prints a line for each task, with the values that it was given and what it was worth."""
    by_node = {each.node: each for each in outcomes}
    tasks = [each for each in made.tasks if each.node in by_node]
    if not tasks:
        return
    paths = list(tasks[0].values)
    metrics = dict.fromkeys(name for each in tasks for name in _metrics(by_node[each.node]))
    several = len({each.origin for each in tasks}) > 1
    rows = [
        (
            *([each.origin] if several else []),
            *each.values.values(),
            *(_figure(_metrics(by_node[each.node]).get(name)) for name in metrics),
            *_rows_and_time(by_node[each.node]),
        )
        for each in tasks
    ]
    headings = (
        *(["task"] if several else []),
        *(_short(path, paths) for path in paths),
        *metrics,
        "rows",
        "errors",
        "time",
    )
    first_number = len(headings) - 3 - len(metrics)
    out.print()
    print_table(headings, rows, numbers=range(first_number, len(headings)), console=out)


def _short(path: str, paths: Sequence[str]) -> str:
    """Returns the end of a path that no other has: mostly its last key."""
    keys = path.split(".")
    ends = (".".join(keys[-length:]) for length in range(1, len(keys)))
    alone = (end for end in ends if sum(f".{each}".endswith(f".{end}") for each in paths) == 1)
    return next(alone, path)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _rows_and_time(task: TaskOutcome) -> tuple[str, str, str]:
    if task.training is not None:
        return f"{task.training.dataset_size:,}", "", duration(task.training.seconds)
    if task.summary is None:
        return "", "", ""
    usage = task.summary.usage
    return f"{task.summary.rows:,}", f"{task.summary.errors:,}", duration(usage.latency_sec)
