"""`mloc show`, `mloc list` and `mloc dead-letters`: what the fleet's tasks are doing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.api_choice import ask
from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.cli.fleet_context import Fleet, open_fleet
from mloc_dagster.cli.list_options import ListOptions
from mloc_dagster.cli.task_lines import (
    ListedTask,
    print_letters,
    print_task_lines,
    print_task_table,
)
from mloc_dagster.wire import TaskState

if TYPE_CHECKING:
    from mloc_dagster.client.client import Client
    from mloc_dagster.tasks.dead_letters import DeadLetter
    from mloc_dagster.tasks.task_status import TaskStatus
    from mloc_dagster.tasks.training_status import LastWord, TrainingStatus
    from mloc_dagster.tasks.workflows import Found

_PAGE = 100


def show(task_or_run_id: str, *, as_json: bool) -> int:
    """Prints how tasks are; returns the exit code.

    Raises:
        InputError: If there is no such task or run.
    """

    def over_api(client: Client) -> int:
        from mloc_dagster.cli.api_tasks import api_show

        return api_show(client, task_or_run_id, as_json=as_json)

    return ask(over_api, lambda: _show(task_or_run_id, as_json=as_json))


def _show(task_or_run_id: str, *, as_json: bool) -> int:
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
    print_task_lines([(each, each.state, training) for each, training in _statuses(fleet, found)])


def _statuses(fleet: Fleet, found: Found) -> list[tuple[TaskStatus, TrainingStatus | None]]:
    from mloc_dagster.events.recall import last_training_news
    from mloc_dagster.events.stream import open_redis
    from mloc_dagster.fleet.redis_client import redis_url
    from mloc_dagster.tasks.task_status import status_of

    with open_redis(redis_url()) as client:
        last_word = partial(last_training_news, client)
        statuses = [
            status_of(fleet.instance, fleet.engine, found.workflow, each) for each in found.tasks
        ]
        return [(each, _training(each, last_word)) for each in statuses]


def _training(status: TaskStatus, last_word: LastWord) -> TrainingStatus | None:
    from mloc_dagster.tasks.training_status import training_status

    runs = status.state is TaskState.RUNNING
    return training_status(status.task_id, status.created_at, last_word, runs=runs)


def _shown(status: TaskStatus, training: TrainingStatus | None) -> dict[str, object]:
    """Returns the task for `--json`; a training finishes steps and not rows."""
    if training is None:
        return {**status.model_dump(mode="json"), "training": None}
    status = status.model_copy(update={"rows_finished": None})
    return {**status.model_dump(mode="json"), "training": training.model_dump(mode="json")}


def list_tasks(options: ListOptions) -> int:
    """Prints the latest tasks; returns the exit code.

    Raises:
        InputError: If there is no such state, or only an API can find what is asked for.
    """

    def over_api(client: Client) -> int:
        from mloc_dagster.cli.api_tasks import api_list

        return api_list(client, options)

    wanted = options.states
    return ask(over_api, lambda: _list(options, wanted))


def _list(options: ListOptions, wanted: Collection[TaskState]) -> int:
    options.check_direct()
    with open_fleet() as fleet:
        latest = zip(_latest(fleet, wanted), range(options.limit), strict=False)
        found = [each for each, _ in latest]
    if options.as_json:
        fields = {"task_id", "node", "template", "state", "run_id", "created_at", "ended_at"}
        entries = [each.model_dump(mode="json", include=fields) for each in found]
        typer.echo(json.dumps(entries, ensure_ascii=False))
    elif not found:
        typer.echo(options.nothing_found, err=True)
    else:
        print_task_table(
            [
                ListedTask(each.task_id, each.template, each.state, each.created_at, each.ended_at)
                for each in found
            ]
        )
    return OK


def _latest(fleet: Fleet, wanted: Collection[TaskState]) -> Iterator[TaskStatus]:
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
                if not wanted or status.state in wanted:
                    yield status
        if cursor is None:
            return


def list_dead_letters(*, verbose: bool, as_json: bool) -> int:
    """Prints the tasks that failed for good; returns the exit code."""

    def over_api(client: Client) -> int:
        from mloc_dagster.cli.api_tasks import api_dead_letters

        return api_dead_letters(client, verbose=verbose, as_json=as_json)

    return ask(over_api, lambda: _list_dead_letters(verbose=verbose, as_json=as_json))


def _list_dead_letters(*, verbose: bool, as_json: bool) -> int:
    with open_fleet() as fleet:
        from mloc_dagster.tasks.dead_letters import dead_letters

        letters = dead_letters(fleet.instance)
    if as_json:
        typer.echo(json.dumps([_document(each) for each in letters], ensure_ascii=False))
    elif not letters:
        typer.echo("no task has failed for good", err=True)
    else:
        print_letters(letters, verbose=verbose)
    return OK


def _document(letter: DeadLetter) -> dict[str, object]:
    return {**letter.model_dump(mode="json"), "rows_missing": letter.rows_missing}
