"""Commands about tasks over the API; each prints, and returns the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.exit_codes import FAILED, OK
from mloc_dagster.cli.list_options import ListOptions
from mloc_dagster.cli.task_lines import (
    ListedTask,
    print_letters,
    print_task_lines,
    print_task_table,
)
from mloc_dagster.client.errors import NotFoundError
from mloc_dagster.wire import TaskDetail, TaskState, TaskView

if TYPE_CHECKING:
    from mloc_dagster.client.client import Client


def document(task: TaskView) -> dict[str, object]:
    """Returns a task for machines; what it has been called without an API is there as well."""
    shown = task.model_dump(mode="json", exclude={"ok"})
    return {**shown, "state": shown["status"], "created_at": shown["submitted_at"]}


def details(client: Client, task_or_workflow_id: str) -> Sequence[TaskDetail]:
    """Returns all that is known of a task, or of the tasks of a workflow."""
    try:
        return [client.show(task_or_workflow_id)]
    except NotFoundError as error:
        try:
            found = client.workflow(task_or_workflow_id)
        except NotFoundError:
            raise error from None
    return [client.show(each.task_id) for each in found.tasks]


def print_details(tasks: Sequence[TaskDetail]) -> None:
    """Prints all that is known of tasks."""
    print_task_lines([(each, each.status, each.training) for each in tasks])


def api_show(client: Client, task_or_workflow_id: str, *, as_json: bool) -> int:
    """Prints how tasks are."""
    tasks = details(client, task_or_workflow_id)
    if as_json:
        first = tasks[0]
        shown = {
            "workflow_id": first.workflow_id,
            "run_id": first.run_id,
            "tasks": [document(each) for each in tasks],
        }
        typer.echo(json.dumps(shown, ensure_ascii=False))
    else:
        print_details(tasks)
    return OK


def api_list(client: Client, options: ListOptions) -> int:
    """Prints the latest tasks."""
    from mloc_dagster.cli.events_command import since_time

    since = None if options.since is None else since_time(options.since, datetime.now(UTC))
    found = list(
        client.list(
            limit=options.limit,
            status=options.states,
            owner=options.owner,
            name=options.name,
            task_type=options.task_type,
            labels=options.label_map,
            worker=options.worker,
            since=since,
        )
    )
    if options.as_json:
        typer.echo(json.dumps([document(each) for each in found], ensure_ascii=False))
    elif not found:
        typer.echo(options.nothing_found, err=True)
    else:
        print_task_table(
            [
                ListedTask(
                    each.task_id, each.template, each.status, each.submitted_at, each.ended_at
                )
                for each in found
            ]
        )
    return OK


def api_dead_letters(client: Client, *, verbose: bool, as_json: bool) -> int:
    """Prints the tasks that failed for good."""
    letters = list(client.dead_letters())
    if as_json:
        shown = [each.model_dump(mode="json") for each in letters]
        typer.echo(json.dumps(shown, ensure_ascii=False))
    elif not letters:
        typer.echo("no task has failed for good", err=True)
    else:
        print_letters(letters, verbose=verbose)
    return OK


def api_cancel(client: Client, task_or_workflow_id: str, *, wait: bool) -> int:
    """Stops a task, or all of a workflow."""
    changed = client.cancel(task_or_workflow_id).tasks
    if not wait:
        typer.echo(f"cancelling {task_or_workflow_id}; finished rows are kept")
        return OK
    ended = wait_for(client, [each.task_id for each in changed])
    before = [each for each in ended if each.status is not TaskState.CANCELLED]
    for each in before:
        typer.echo(f"{each.task_id} had ended before: {each.status.value.lower()}", err=True)
    if len(before) == len(ended):
        return FAILED
    typer.echo(f"cancelled {task_or_workflow_id}; finished rows are kept")
    return OK


def api_retry(client: Client, task_or_workflow_id: str, *, failed_rows: bool, wait: bool) -> int:
    """Goes on with a task, or with all of a workflow that failed or was stopped."""
    changed = client.retry(task_or_workflow_id, "failed_rows" if failed_rows else "failed_shards")
    ids = [each.task_id for each in changed.tasks]
    for each in ids:
        typer.echo(f"task {each}")
    if not wait:
        return OK
    ended = wait_for(client, ids)
    print_details([client.show(each.task_id) for each in ended])
    return exit_code(ended)


def wait_for(client: Client, ids: Sequence[str]) -> Sequence[TaskView]:
    """Returns tasks when they have ended; Ctrl-C ends the waiting and not the tasks."""
    try:
        return client.wait(ids)
    except KeyboardInterrupt:
        what = ids[0] if len(ids) == 1 else f"{len(ids)} tasks"
        typer.echo(f"{what} go{'es' * (len(ids) == 1)} on; `mloc cancel ID` stops one", err=True)
        raise


def exit_code(ended: Sequence[TaskView]) -> int:
    """Returns 0 if all tasks are done, else 1."""
    return OK if all(each.status is TaskState.DONE for each in ended) else FAILED
