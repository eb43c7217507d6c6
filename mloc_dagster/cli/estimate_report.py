"""Estimates as people read them: a table for tasks of rows, one for trainings, and reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer

from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import duration
from mloc_dagster.executors.estimate import Estimate, Figure, add_up
from mloc_dagster.executors.training_estimate import TrainingEstimate

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
