"""`mloc launch`, `mloc retry` and `mloc cancel`: what changes the fleet's work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.api_choice import ask
from mloc_dagster.cli.exit_codes import FAILED, OK
from mloc_dagster.cli.fleet_context import Fleet, open_fleet
from mloc_dagster.cli.waiting import wait_for
from mloc_dagster.errors import InputError

if TYPE_CHECKING:
    from mloc_dagster.client.client import Client
    from mloc_dagster.tasks.workflows import Workflow


def launch(template: str, *, sets: Sequence[str], wait: bool) -> int:
    """Queues a library template; returns the exit code.

    Raises:
        InputError: If it is no library template, or `sets` changes what its job is made of.
    """
    with open_fleet() as fleet:
        path = _library_path(template)
        from mloc_dagster.cli.run_command import compile_with_sets
        from mloc_dagster.compile.compiler import compile_file
        from mloc_dagster.tasks.launch import check_launchable, launch

        changed = compile_with_sets(path, sets)
        for before, after in zip(compile_file(path), changed, strict=True):
            check_launchable(before, after)
        launched = [launch(fleet.instance, each) for each in changed]
        for each in launched:
            typer.echo(f"run  {each.run_id}")
            for task_id in each.task_ids:
                typer.echo(f"task {task_id}")
        return _wait(fleet, [each.run_id for each in launched]) if wait else OK


def _library_path(template: str) -> Path:
    from mloc_dagster.cli.run_command import template_path
    from mloc_dagster.library import library_files

    path = template_path(template)
    if path.resolve() not in {each.resolve() for each in library_files().values()}:
        raise InputError(
            f"{template} is not in the template library: `mloc submit {template}` queues any"
            f" template over the HTTP API, `mloc run {template}` runs it here"
        )
    return path


def retry(task_or_run_id: str, *, failed_rows: bool, wait: bool) -> int:
    """Queues what a task or a run left undone; returns the exit code.

    Raises:
        InputError: If there is no such task, or nothing to retry.
    """

    def over_api(client: Client) -> int:
        from mloc_dagster.cli.api_tasks import api_retry

        return api_retry(client, task_or_run_id, failed_rows=failed_rows, wait=wait)

    return ask(over_api, lambda: _retry(task_or_run_id, failed_rows=failed_rows, wait=wait))


def _retry(task_or_run_id: str, *, failed_rows: bool, wait: bool) -> int:
    with open_fleet() as fleet:
        from mloc_dagster.tasks.retry import retry
        from mloc_dagster.tasks.workflows import find

        run_id = retry(fleet.instance, task_or_run_id, failed_rows=failed_rows)
        typer.echo(f"run  {run_id}")
        _say_tasks(find(fleet.instance, run_id).workflow)
        return _wait(fleet, [run_id]) if wait else OK


def _say_tasks(workflow: Workflow) -> None:
    from mloc_dagster.sensors.run_views import tasks_of

    for task in tasks_of(workflow.latest):
        typer.echo(f"task {task.task_id}")


def cancel(task_or_run_id: str, *, wait: bool) -> int:
    """Stops the run of a task; returns the exit code.

    Raises:
        InputError: If there is no such task, or it has ended.
    """

    def over_api(client: Client) -> int:
        from mloc_dagster.cli.api_tasks import api_cancel

        return api_cancel(client, task_or_run_id, wait=wait)

    return ask(over_api, lambda: _cancel(task_or_run_id, wait=wait))


def _cancel(task_or_run_id: str, *, wait: bool) -> int:
    with open_fleet() as fleet:
        from mloc_dagster.tasks.cancel import cancel

        run_id = cancel(fleet.instance, task_or_run_id)
        if wait:
            status = wait_for(fleet.instance, run_id).value
            if status != "CANCELED":
                typer.echo(f"run {run_id} had ended before: {status.lower()}", err=True)
                return FAILED
        typer.echo(f"{'cancelled' if wait else 'cancelling'} {run_id}; finished rows are kept")
    return OK


def _wait(fleet: Fleet, run_ids: Sequence[str]) -> int:
    from mloc_dagster.cli.task_commands import print_tasks
    from mloc_dagster.tasks.workflows import find

    ended = [wait_for(fleet.instance, each).value for each in run_ids]
    for each in run_ids:
        print_tasks(fleet, find(fleet.instance, each))
    return OK if all(each == "SUCCESS" for each in ended) else FAILED
