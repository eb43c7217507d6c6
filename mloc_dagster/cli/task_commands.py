"""`mloc show`, `mloc list` and `mloc dead-letters`: what the fleet's tasks are doing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.cli.fleet_context import Fleet, open_fleet
from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.training_lines import training_lines
from mloc_dagster.cli.wording import count, duration, shorten
from mloc_dagster.errors import UnknownNameError

if TYPE_CHECKING:
    from mloc_dagster.tasks.dead_letters import DeadLetter
    from mloc_dagster.tasks.task_status import TaskStatus
    from mloc_dagster.tasks.training_status import TrainingStatus
    from mloc_dagster.tasks.workflows import Found

_PAGE = 100
_REASON_WIDTH = 200


def show(task_or_run_id: str, *, as_json: bool) -> int:
    """Prints how tasks are; returns the exit code.

    Raises:
        UnknownNameError: If there is no such task or run.
    """
    with open_fleet() as fleet:
        from mloc_dagster.tasks.workflows import find

        found = find(fleet.instance, task_or_run_id)
        if as_json:
            document = {
                "workflow_id": found.workflow.workflow_id,
                "run_id": found.workflow.latest.run_id,
                "tasks": [_shown(*each) for each in _statuses(fleet, found)],
            }
            typer.echo(json.dumps(document, ensure_ascii=False))
        else:
            print_tasks(fleet, found)
    return OK


def print_tasks(fleet: Fleet, found: Found) -> None:
    """Prints what is known of tasks."""
    for place, (status, training) in enumerate(_statuses(fleet, found)):
        if place:
            typer.echo("")
        for name, text in status_lines(status, training):
            typer.echo(f"{name:<9} {text}")


def _statuses(fleet: Fleet, found: Found) -> list[tuple[TaskStatus, TrainingStatus | None]]:
    from mloc_dagster.events.recall import last_training_news
    from mloc_dagster.events.stream import open_redis
    from mloc_dagster.fleet.redis_client import redis_url
    from mloc_dagster.tasks.task_status import status_of
    from mloc_dagster.tasks.training_status import training_status

    with open_redis(redis_url()) as client:
        last_word = partial(last_training_news, client)
        statuses = [
            status_of(fleet.instance, fleet.engine, found.workflow, each) for each in found.tasks
        ]
        return [(each, training_status(each, last_word)) for each in statuses]


def _shown(status: TaskStatus, training: TrainingStatus | None) -> dict[str, object]:
    """Returns the task for `--json`; a training finishes steps and not rows."""
    if training is None:
        return {**status.model_dump(mode="json"), "training": None}
    status = status.model_copy(update={"rows_finished": None})
    return {**status.model_dump(mode="json"), "training": training.model_dump(mode="json")}


def status_lines(
    status: TaskStatus, training: TrainingStatus | None = None
) -> Iterator[tuple[str, str]]:
    """Yields what is said of a task, line by line.

    Args:
        status: How it is.
        training: How far it is, if it is a training.
    """
    yield "task", status.task_id
    yield "status", status.state.value
    yield "template", status.template + (f", {status.node}" * (status.node != status.template))
    yield "run", status.run_id + (f" (number {status.runs})" if status.runs > 1 else "")
    if status.waiting_for:
        yield "waiting", status.waiting_for
    if training is not None:
        yield from training_lines(training)
        if status.rows is not None:
            yield "rows", f"{status.rows:,}"
    elif status.rows is not None:
        errors = f", {count(status.errors, 'error')}" if status.errors else ""
        yield "rows", f"{status.rows_finished or 0:,} of {status.rows:,}{errors}"
    shards = {name: number for name, number in status.shards.model_dump().items() if number}
    if status.state.ended and "queued" in shards:
        shards["not done"] = shards.pop("queued")
    if shards:
        yield "shards", ", ".join(f"{number:,} {name}" for name, number in shards.items())
    if status.retries:
        yield "retries", str(status.retries)
    for shard, worker in sorted(status.workers.items()):
        yield "worker", f"{worker}: shard {shard}"
    if status.error:
        yield "error", status.error
    yield "results", status.folder


def list_tasks(*, state: str | None, limit: int, as_json: bool) -> int:
    """Prints the latest tasks; returns the exit code.

    Raises:
        UnknownNameError: If there is no such state.
    """
    with open_fleet() as fleet:
        from mloc_dagster.tasks.task_state import TaskState

        if state is not None and state.upper() not in TaskState.__members__:
            raise UnknownNameError("status", state, TaskState.__members__)
        wanted = None if state is None else TaskState[state.upper()]
        found = [each for each, _ in zip(_latest(fleet, wanted), range(limit), strict=False)]
    if as_json:
        fields = {"task_id", "node", "template", "state", "run_id", "created_at", "ended_at"}
        entries = [each.model_dump(mode="json", include=fields) for each in found]
        typer.echo(json.dumps(entries, ensure_ascii=False))
    elif not found:
        typer.echo("no such task" if wanted else "no task yet: `mloc launch echo`", err=True)
    else:
        print_table(
            ("task", "template", "status", "age", "took"),
            [
                (
                    each.task_id,
                    each.template,
                    each.state.value,
                    _age(each.created_at),
                    _took(each),
                )
                for each in found
            ],
            numbers=(3, 4),
        )
    return OK


def _latest(fleet: Fleet, wanted: str | None) -> Iterator[TaskStatus]:
    from mloc_dagster.tasks.task_status import status_of
    from mloc_dagster.tasks.workflows import latest_workflows

    seen: set[str] = set()
    cursor: str | None = None
    while True:
        page, cursor = latest_workflows(fleet.instance, _PAGE, cursor)
        for workflow in page:
            if workflow.workflow_id in seen:
                continue
            seen.add(workflow.workflow_id)
            for task in workflow.tasks():
                status = status_of(fleet.instance, fleet.engine, workflow, task, count_rows=False)
                if wanted in (None, status.state):
                    yield status
        if cursor is None:
            return


def _took(status: TaskStatus) -> str:
    end = status.ended_at or datetime.now(UTC)
    return duration((end - status.created_at).total_seconds())


def _age(moment: datetime) -> str:
    return duration(max(0.0, (datetime.now(UTC) - moment).total_seconds()))


def list_dead_letters(*, verbose: bool, as_json: bool) -> int:
    """Prints the tasks that failed for good; returns the exit code."""
    with open_fleet() as fleet:
        from mloc_dagster.tasks.dead_letters import dead_letters

        letters = dead_letters(fleet.instance)
    if as_json:
        typer.echo(json.dumps([_document(each) for each in letters], ensure_ascii=False))
    elif not letters:
        typer.echo("no task has failed for good", err=True)
    else:
        print_table(
            ("task", "template", "age", "missing"),
            [_row(each) for each in letters],
            numbers=(2, 3),
        )
        for each in letters:
            _print_reason(each, verbose=verbose)
        typer.echo("")
        typer.echo("`mloc retry TASK` computes what is missing; `mloc show TASK` says more")
    return OK


def _document(letter: DeadLetter) -> dict[str, object]:
    return {**letter.model_dump(mode="json"), "rows_missing": letter.rows_missing}


def _row(letter: DeadLetter) -> tuple[str, ...]:
    missing = "?" if letter.rows_missing is None else f"{letter.rows_missing:,}"
    return (letter.task_id, letter.template, _age(letter.failed_at), missing)


def _print_reason(letter: DeadLetter, *, verbose: bool) -> None:
    reason = letter.reason if verbose else shorten(letter.reason, _REASON_WIDTH)
    typer.echo(f"\n{letter.task_id}:\n  {reason}")
    if not verbose:
        return
    for shard, lines in letter.logs.items():
        typer.echo(f"\n{letter.task_id}, shard {shard}:")
        for line in lines:
            typer.echo(f"  {line}")
