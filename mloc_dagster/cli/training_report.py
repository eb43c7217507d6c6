"""What `mloc run` says of trainings at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import duration
from mloc_dagster.results.training_summary import TrainingSummary, compared

if TYPE_CHECKING:
    from mloc_dagster.local_run import TaskOutcome


def _bad_rows(summary: TrainingSummary) -> str:
    return f"{summary.bad_rows:,}" if summary.bad_rows else ""


def _loss(summary: TrainingSummary) -> str:
    return "" if summary.loss is None else f"{summary.loss:.4g}"


_COLUMNS: dict[str, Callable[[TrainingSummary], str]] = {
    "method": lambda summary: summary.task_type,
    "rows": lambda summary: f"{summary.dataset_size:,}",
    "bad rows": _bad_rows,
    "steps": lambda summary: f"{summary.steps:,}",
    "loss": _loss,
    "time": lambda summary: duration(summary.seconds),
}
"""Columns of the table; one in which no training has anything is left out."""


def print_trainings(tasks: Sequence[TaskOutcome], out: Console) -> None:
    """Prints a table of the trainings, and one of what their models were worth."""
    trained = [(task.node, task.training) for task in tasks if task.training is not None]
    if not trained:
        return
    columns = {
        heading: cells
        for heading, show in _COLUMNS.items()
        if any(cells := [show(summary) for _, summary in trained])
    }
    out.print()
    print_table(
        ("training", *columns),
        list(zip((node for node, _ in trained), *columns.values(), strict=True)),
        numbers=range(2, len(columns) + 1),
        console=out,
    )
    _print_evaluations(trained, out)


def _print_evaluations(trained: Sequence[tuple[str, TrainingSummary]], out: Console) -> None:
    rows = [
        (node, name, "" if before is None else f"{before:.4g}", f"{after:.4g}")
        for node, summary in trained
        for name, (before, after) in compared(summary.before, summary.after).items()
    ]
    if rows:
        out.print()
        headings = ("evaluation", "metric", "before", "after")
        print_table(headings, rows, numbers=(2, 3), console=out)
    for node, summary in trained:
        if summary.gate:
            style = "green" if summary.passed else "red"
            out.print(Text(f"{node}: {summary.gate}", style=style), soft_wrap=True)


def training_json(summary: TrainingSummary) -> dict[str, object]:
    """Returns what `--json` says of a training."""
    return summary.model_dump(mode="json", exclude={"task_id", "history"})
