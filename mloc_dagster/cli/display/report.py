"""What `mloc run` says at the end: for people, and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console
from rich.text import Text

from mloc_dagster.compile import Diagnostic
from mloc_dagster.display import count, counts_in_words, duration, print_table, rate, shorten
from mloc_dagster.results import ModelUsage, TrainingSummary, compared, usage_by_model

if TYPE_CHECKING:
    from mloc_dagster.local_run import RunOutcome, TaskOutcome
    from mloc_dagster.results import TaskSummary


PREVIEW_ROWS = 5

Status = Literal["succeeded", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class TemplateRun:
    """One template that was run.

    Attributes:
        name: The template's name.
        outcome: What became of it.
        succeeded_tasks: Ids of the tasks that finished entirely.
        interrupted: Whether a signal ended it.
        resume: The command that goes on with it; None when nothing is left to do.
    """

    name: str
    outcome: RunOutcome
    succeeded_tasks: frozenset[str]
    interrupted: bool
    resume: str | None

    def status(self, task: TaskOutcome) -> Status:
        """Returns what became of one of its tasks."""
        if task.task_id in self.succeeded_tasks or self.outcome.succeeded:
            return "succeeded"
        return "interrupted" if self.interrupted else "failed"


def report_json(
    runs: Sequence[TemplateRun],
    *,
    ok: bool,
    error: str | None = None,
    warnings: Sequence[Diagnostic] = (),
) -> dict[str, object]:
    """Returns the document that `--json` prints."""
    first = runs[0].outcome if runs else None
    return {
        "ok": ok,
        "workflow_id": first.workflow_id if first else None,
        "run_id": first.run_id if first else None,
        "interrupted": any(each.interrupted for each in runs),
        "runs": [_run_json(each) for each in runs],
        "tasks": [_task_json(run, task) for run in runs for task in run.outcome.tasks],
        "models": [asdict(each) for each in usage_by_model(_summaries(runs))],
        "failures": [
            *(f"{run.name}: {message}" for run in runs for message in run.outcome.failures),
            *([error] if error is not None else []),
        ],
        "warnings": [each.to_json() for each in warnings],
    }


def _run_json(run: TemplateRun) -> dict[str, object]:
    return {
        "template": run.name,
        "workflow_id": run.outcome.workflow_id,
        "run_id": run.outcome.run_id,
        "ok": run.outcome.succeeded,
        "failures": list(run.outcome.failures),
        "resume": run.resume,
    }


def _task_json(run: TemplateRun, task: TaskOutcome) -> dict[str, object]:
    found: dict[str, object] = {
        "task_id": task.task_id,
        "workflow_id": run.outcome.workflow_id,
        "template": run.name,
        "node": task.node,
        "status": run.status(task),
        "folder": task.folder,
    }
    if task.slo is not None:
        found["slo"] = {**asdict(task.slo), "met": task.slo.met}
    if task.training is not None:
        found["training"] = training_json(task.training)
    if task.summary is not None:
        usage = task.summary.usage
        found |= {
            "rows": task.summary.rows,
            "errors": task.summary.errors,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "tokens_per_s": task.summary.tokens_per_s,
            "seconds": usage.latency_sec,
            "usage": usage.model_dump(mode="json"),
        }
        if task.summary.counts:
            found["counts"] = task.summary.counts
        if task.summary.budget is not None:
            found["budget"] = task.summary.budget.model_dump(mode="json")
        if task.summary.scores is not None:
            found["metrics"] = task.summary.scores.metrics
    return found


def print_folders(runs: Sequence[TemplateRun]) -> None:
    """Prints where the results lie: the last thing that anyone prints."""
    for run in runs:
        for task in run.outcome.tasks:
            typer.echo(task.folder)


def print_report(run: TemplateRun, out: Console) -> None:
    """Prints a table of the tasks, and the first answers."""
    print_trainings(run.outcome.tasks, out)
    tasks = [task for task in run.outcome.tasks if task.summary is not None]
    if tasks:
        summaries = [task.summary for task in tasks if task.summary is not None]
        columns = {
            heading: cells
            for heading, show in _COLUMNS.items()
            if any(cells := [show(summary) for summary in summaries])
        }
        out.print()
        print_table(
            ("task", *columns),
            list(zip((task.node for task in tasks), *columns.values(), strict=True)),
            numbers=range(1, len(columns) + 1),
            console=out,
        )
        if len(summaries) > 1:
            _print_models(usage_by_model(summaries), out)
        _print_scores(tasks, out)
    for task in tasks:
        if task.summary is not None and (counted := counts_in_words(task.summary.counts)):
            out.print(f"{task.node}: {', '.join(counted)}", markup=False, soft_wrap=True)
    _print_slo(run.outcome.tasks, out)
    for task in tasks:
        if task.summary is not None and task.summary.budget is not None:
            out.print(Text(f"{task.node}: {task.summary.budget}", style="yellow"), soft_wrap=True)
    if tasks:
        _print_preview(tasks[-1], out)


def _print_slo(tasks: Sequence[TaskOutcome], out: Console) -> None:
    for task in tasks:
        if task.slo is not None:
            promised, took = duration(task.slo.seconds), duration(task.slo.took_s)
            verdict = "met" if task.slo.met else "missed"
            style = "green" if task.slo.met else "red"
            out.print(Text(f"{task.node}: SLO {promised} {verdict}, took {took}", style=style))


def _summaries(runs: Sequence[TemplateRun]) -> list[TaskSummary]:
    tasks = [task for run in runs for task in run.outcome.tasks]
    return [task.summary for task in tasks if task.summary is not None]


def _print_models(models: Sequence[ModelUsage], out: Console) -> None:
    columns = {
        heading: cells
        for heading, show in _MODEL_COLUMNS.items()
        if any(cells := [show(each) for each in models])
    }
    out.print()
    print_table(
        ("model", *columns),
        list(zip((each.model for each in models), *columns.values(), strict=True)),
        numbers=range(1, len(columns) + 1),
        console=out,
    )


def _print_scores(tasks: Sequence[TaskOutcome], out: Console) -> None:
    """Prints what evaluations measured."""
    measured = [
        (task.node, name, f"{value:.4g}", f"{scored:,}")
        for task in tasks
        if task.summary is not None and (scores := task.summary.scores) is not None
        for name, value in scores.metrics.items()
        for scored in [scores.scored[name.partition("/")[0]]]
    ]
    if measured:
        out.print()
        print_table(
            ("task", "metric", "mean", "rows with a score"),
            measured,
            numbers=range(2, 4),
            console=out,
        )


def print_problems(run: TemplateRun, err: Console) -> None:
    """Prints what went wrong, and what can be done about it."""
    if not run.interrupted:
        for message in run.outcome.problems(run.name):
            err.print(Text(message, style="red"), soft_wrap=True)
    if run.resume is not None:
        err.print(f"finished rows are kept; go on with: {run.resume}", markup=False, soft_wrap=True)


def _reused(summary: TaskSummary) -> str:
    rows = summary.usage.reused_rows.task + summary.usage.reused_rows.cache
    return f"{rows:,}" if rows else ""


def _hits(summary: TaskSummary) -> str:
    return f"{summary.usage.cache_hit_rate:.0%}" if summary.usage.cached_tokens else ""


def _cost(summary: TaskSummary) -> str:
    return "" if summary.usage.cost is None else f"{summary.usage.cost:.3g}"


_COLUMNS: dict[str, Callable[[TaskSummary], str]] = {
    "rows": lambda summary: f"{summary.rows:,}",
    "errors": lambda summary: f"{summary.errors:,}",
    "reused": _reused,
    "tokens": lambda summary: f"{summary.usage.completion_tokens:,}",
    "tokens/s": lambda summary: rate(summary.tokens_per_s),
    "cache hits": _hits,
    "time": lambda summary: duration(summary.usage.latency_sec),
    "cost": _cost,
}
"""Columns of the closing table; one in which no task has anything is left out."""


_MODEL_COLUMNS: dict[str, Callable[[ModelUsage], str]] = {
    "tasks": lambda used: f"{used.tasks:,}",
    "rows": lambda used: f"{used.rows:,}",
    "prompt tokens": lambda used: f"{used.prompt_tokens:,}",
    "tokens": lambda used: f"{used.completion_tokens:,}",
    "engine time": lambda used: duration(used.engine_seconds),
    "GPU time": lambda used: duration(used.gpu_seconds) if used.gpu_seconds else "",
    "energy": lambda used: "" if used.energy_joules is None else f"{used.energy_joules:,.0f} J",
    "cost": lambda used: "" if used.cost is None else f"{used.cost:.3g}",
}
"""Columns of the table of models, which comes with more than one task."""


def _print_preview(task: TaskOutcome, out: Console) -> None:
    summary = task.summary
    if summary is None or not summary.preview:
        return
    width = max(out.width - 3, 40)
    shown = summary.preview[:PREVIEW_ROWS]
    prompt_width = min(max(len(shorten(row.prompt, width)) for row in shown), width // 2)
    out.print()
    for row in shown:
        prompt = shorten(row.prompt, prompt_width)
        failed = row.error is not None
        answer = shorten(row.error or row.output, width - prompt_width)
        line = Text(f"{prompt:<{prompt_width}}", style="dim")
        line.append(" → ")
        line.append(answer, style="red" if failed else "bold")
        out.print(line, soft_wrap=True)
    hidden = summary.rows - len(shown)
    if hidden > 0:
        out.print(Text(f"… and {count(hidden, 'more row')}", style="dim"))
    out.print()


def _bad_rows(summary: TrainingSummary) -> str:
    return f"{summary.bad_rows:,}" if summary.bad_rows else ""


def _loss(summary: TrainingSummary) -> str:
    return "" if summary.loss is None else f"{summary.loss:.4g}"


_TRAINING_COLUMNS: dict[str, Callable[[TrainingSummary], str]] = {
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
        for heading, show in _TRAINING_COLUMNS.items()
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
