"""Tasks and dead letters as people read them, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from mloc_dagster.display import count, counts_in_words, duration, print_table, shorten
from mloc_dagster.planning import shard_key

if TYPE_CHECKING:
    from mloc_dagster.wire import DeadLetterView, Shards, TaskDetail, TaskView, TrainingView


_REASON_WIDTH = 600
"""Characters of a reason, beyond which it is cut: what to do often stands at its end."""


def print_task_lines(tasks: Sequence[TaskDetail]) -> None:
    """Prints all that is known of tasks, and of trainings how far they are."""
    for place, task in enumerate(tasks):
        if place:
            typer.echo("")
        for name, text in task_lines(task):
            typer.echo(f"{name:<9} {text}")


def task_lines(task: TaskDetail) -> Iterator[tuple[str, str]]:
    """Yields what is said of a task, line by line."""
    yield "task", task.task_id
    yield "status", task.status.value
    yield "template", task.template + (f", {task.node}" * (task.node != task.template))
    yield "origin", task.origin
    if task.run_id:
        yield "run", task.run_id + (f" (number {task.runs})" if task.runs > 1 else "")
    if task.waiting_for:
        yield "waiting", task.waiting_for
    yield from _progress(task)
    shards = _shards(task.shards, ended=task.status.ended)
    if shards:
        yield "shards", shards
    if task.metrics:
        figures = (f"{name} {value:.4g}" for name, value in task.metrics.items())
        yield "scores", ", ".join(figures)
    if task.budget:
        yield "budget", task.budget.removeprefix("budget ")
    yield from _setbacks(task)
    for shard, worker in sorted(task.workers.items()):
        yield "worker", f"{worker}: shard {shard_key(shard)}"
    if task.error:
        yield "error", task.error
    if task.folder:
        yield "results", task.folder


def _setbacks(task: TaskDetail) -> Iterator[tuple[str, str]]:
    if task.retries:
        yield "retries", str(task.retries)
    if task.losses:
        yield "lost", f"{count(task.losses, 'worker')}, which costs no retry"


def _progress(task: TaskDetail) -> Iterator[tuple[str, str]]:
    if task.training is not None:
        yield from training_lines(task.training)
    if task.rows is None:
        return
    if task.training is not None:
        yield "rows", f"{task.rows:,}"
    else:
        errors = f", {count(task.errors, 'error')}" if task.errors else ""
        yield "rows", f"{task.rows_finished or 0:,} of {task.rows:,}{errors}"
    counted = counts_in_words(task.counts)
    if counted:
        yield "counted", ", ".join(counted)


def _shards(counts: Shards, *, ended: bool) -> str:
    shards = {name: number for name, number in counts.model_dump().items() if number}
    if ended and "queued" in shards:
        shards["not done"] = shards.pop("queued")
    return ", ".join(f"{number:,} {name}" for name, number in shards.items())


def print_task_table(tasks: Sequence[TaskView]) -> None:
    """Prints tasks, a line each."""
    print_table(
        ("task", "template", "origin", "status", "age", "took"),
        [
            (
                each.task_id,
                each.template,
                each.origin,
                each.status.value,
                _age(each.submitted_at),
                _took(each),
            )
            for each in tasks
        ],
        numbers=(4, 5),
    )


def print_letters(letters: Sequence[DeadLetterView], *, verbose: bool) -> None:
    """Prints dead letters: a table, then why each failed."""
    print_table(
        ("task", "template", "age", "missing", "errors"),
        [_row(each) for each in letters],
        numbers=(2, 3, 4),
    )
    for each in letters:
        _print_reason(each, verbose=verbose)
    typer.echo("")
    typer.echo(
        "`mloc retry TASK` computes what is missing, with --failed-rows also what ended with an"
        " error; `mloc show TASK` says more"
    )


def _took(task: TaskView) -> str:
    end = task.ended_at or datetime.now(UTC)
    return duration(max(0.0, (end - task.submitted_at).total_seconds()))


def _age(moment: datetime | None) -> str:
    if moment is None:
        return "?"
    return duration(max(0.0, (datetime.now(UTC) - moment).total_seconds()))


def _row(letter: DeadLetterView) -> tuple[str, ...]:
    numbers = (
        "?" if each is None else f"{each:,}" for each in (letter.rows_missing, letter.errors)
    )
    return (letter.task_id, letter.template, _age(letter.failed_at), *numbers)


def _print_reason(letter: DeadLetterView, *, verbose: bool) -> None:
    reason = letter.reason if verbose else shorten(letter.reason, _REASON_WIDTH)
    typer.echo(f"\n{letter.task_id}:\n  {reason}")
    if not verbose:
        return
    for shard, lines in letter.logs.items():
        typer.echo(f"\n{letter.task_id}, shard {shard_key(shard)}:")
        for line in lines:
            typer.echo(f"  {line}")


_SHOWN = {
    "loss": "loss {:.4g}",
    "objective/score": "score {:.4g}",
    "objective/kl": "KL {:.4g}",
    "reward": "reward {:.4g}",
    "rewards/accuracies": "accuracy {:.4g}",
    "learning_rate": "learning rate {:.3g}",
    "tokens_per_s": "{:,.0f} tokens/s",
}
"""What is said of the figures that were logged last, where the trainer logs them."""


def training_lines(training: TrainingView) -> Iterator[tuple[str, str]]:
    """Yields the names and texts of the lines."""
    yield "steps", _steps(training)
    figures = [
        text.format(training.metrics[name])
        for name, text in _SHOWN.items()
        if name in training.metrics
    ]
    if training.steps_per_s is not None:
        figures.append(f"{training.steps_per_s:.3g} steps/s")
    if figures:
        yield "training", ", ".join(figures)
    if training.checkpoint is not None and training.seconds is None:
        yield "saved", f"checkpoint of step {training.checkpoint:,}"
    if training.gate:
        yield "gate", training.gate


def _steps(training: TrainingView) -> str:
    text = f"{training.step:,}"
    if training.steps is not None:
        text += f" of {training.steps:,}"
    if training.seconds is not None:
        return f"{text} in {duration(training.seconds)}"
    if training.eta_s is not None:
        text += f", about {duration(training.eta_s)} left"
    return text
