"""`mloc show`, `list`, `dead-letters`, `cancel`, `retry` and `launch`.

Each asks the API where one answers, else `fleet_tasks`; both speak the models of `wire`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli import fleet_tasks
from mloc_dagster.cli.api_choice import ask
from mloc_dagster.cli.exit_codes import FAILED, OK
from mloc_dagster.cli.list_options import ListOptions
from mloc_dagster.cli.task_lines import print_letters, print_task_lines, print_task_table
from mloc_dagster.wire import DeadLetterView, TaskDetail, TaskState, TaskView

if TYPE_CHECKING:
    from mloc_dagster.client import Client


def show(task_or_run_id: str, *, as_json: bool) -> int:
    """Prints how tasks are; returns the exit code.

    Raises:
        InputError: If there is no such task or run.
    """
    tasks = ask(
        lambda client: details(client, task_or_run_id),
        lambda: fleet_tasks.details(task_or_run_id),
    )
    if not as_json:
        print_task_lines(tasks)
        return OK
    shown = {
        "workflow_id": tasks[0].workflow_id,
        "run_id": tasks[0].run_id,
        "tasks": [document(each) for each in tasks],
    }
    typer.echo(json.dumps(shown, ensure_ascii=False))
    return OK


def details(client: Client, task_or_workflow_id: str) -> Sequence[TaskDetail]:
    """Returns all that is known of a task, or of the tasks of a workflow."""
    from mloc_dagster.client import NotFoundError

    try:
        return [client.show(task_or_workflow_id)]
    except NotFoundError as error:
        try:
            found = client.workflow(task_or_workflow_id)
        except NotFoundError:
            raise error from None
    return [client.show(each.task_id) for each in found.tasks]


def document(task: TaskView) -> dict[str, object]:
    """Returns a task for machines, also by its older names `state` and `created_at`."""
    shown = task.model_dump(mode="json", exclude={"ok"})
    return {**shown, "state": shown["status"], "created_at": shown["submitted_at"]}


def list_tasks(options: ListOptions) -> int:
    """Prints the latest tasks; returns the exit code.

    Raises:
        InputError: If there is no such state, or only an API can find what is asked for.
    """
    wanted = options.states
    found = ask(
        lambda client: _listed(client, options), lambda: fleet_tasks.latest(options, wanted)
    )
    if options.as_json:
        typer.echo(json.dumps([document(each) for each in found], ensure_ascii=False))
    elif not found:
        typer.echo(options.nothing_found, err=True)
    else:
        print_task_table(found)
    return OK


def _listed(client: Client, options: ListOptions) -> Sequence[TaskView]:
    from mloc_dagster.cli.events_command import since_time

    since = None if options.since is None else since_time(options.since, datetime.now(UTC))
    return list(
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


def list_dead_letters(*, verbose: bool, as_json: bool) -> int:
    """Prints the tasks that failed for good; returns the exit code."""

    def over_api(client: Client) -> Sequence[DeadLetterView]:
        return list(client.dead_letters())

    letters = ask(over_api, fleet_tasks.dead_letters)
    if as_json:
        shown = [each.model_dump(mode="json") for each in letters]
        typer.echo(json.dumps(shown, ensure_ascii=False))
    elif not letters:
        typer.echo("no task has failed for good", err=True)
    else:
        print_letters(letters, verbose=verbose)
    return OK


def cancel(task_or_run_id: str, *, wait: bool) -> int:
    """Stops a task, or all of a workflow or run; returns the exit code.

    Raises:
        InputError: If there is no such task, or it has ended.
    """

    def over_api(client: Client) -> Sequence[TaskView]:
        changed = client.cancel(task_or_run_id).tasks
        return wait_for(client, [each.task_id for each in changed]) if wait else ()

    ended = ask(over_api, lambda: fleet_tasks.cancel(task_or_run_id, wait=wait))
    before = [each for each in ended if each.status is not TaskState.CANCELLED]
    for each in before:
        typer.echo(f"{each.task_id} had ended before: {each.status.value.lower()}", err=True)
    if ended and len(before) == len(ended):
        return FAILED
    typer.echo(f"{'cancelled' if wait else 'cancelling'} {task_or_run_id}; finished rows are kept")
    return OK


def retry(task_or_run_id: str, *, failed_rows: bool, wait: bool) -> int:
    """Queues what a task, a workflow or a run left undone; returns the exit code.

    Raises:
        InputError: If there is no such task, or nothing to retry.
    """

    def over_api(client: Client) -> Sequence[TaskDetail]:
        scope = "failed_rows" if failed_rows else "failed_shards"
        ids = [each.task_id for each in client.retry(task_or_run_id, scope).tasks]
        for each in ids:
            typer.echo(f"task {each}")
        return [client.show(each.task_id) for each in wait_for(client, ids)] if wait else ()

    def directly() -> Sequence[TaskDetail]:
        return fleet_tasks.retry(task_or_run_id, failed_rows=failed_rows, wait=wait)

    return _ended(ask(over_api, directly))


def launch(template: str, *, sets: Sequence[str], wait: bool) -> int:
    """Queues a library template; returns the exit code.

    Raises:
        InputError: If it is no library template, or `sets` changes what its job is made of.
    """
    return _ended(fleet_tasks.launch(template, sets=sets, wait=wait))


def _ended(tasks: Sequence[TaskDetail]) -> int:
    print_task_lines(tasks)
    return exit_code(tasks)


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
