"""`mloc launch`: library templates as runs of their Dagster jobs, on the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.terminal import OK
from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from mloc_dagster.tasks import Launched


def launch(template: str, *, sets: Sequence[str], partition: str | None, wait: bool) -> int:
    """Queues a library template; returns the exit code.

    Raises:
        InputError: If it is no library template, or `sets` changes what its job is made of.
    """
    from mloc_dagster.cli.api_choice import open_api
    from mloc_dagster.cli.tasks import print_ended

    launched = _launched(template, sets, partition)
    for each in launched:
        typer.echo(f"run  {each.run_id}")
        for task_id in each.task_ids:
            typer.echo(f"task {task_id}")
    if not wait:
        return OK
    with open_api() as client:
        return print_ended(client, [task_id for each in launched for task_id in each.task_ids])


def _launched(template: str, sets: Sequence[str], partition: str | None) -> Sequence[Launched]:
    from mloc_dagster.cli.local_api import use_stack

    if settings().redis_url is None:
        use_stack()
    from mloc_dagster.compile import compile_file
    from mloc_dagster.fleet import require_fleet
    from mloc_dagster.local_run import check_partitions, compile_with_sets
    from mloc_dagster.services import open_instance
    from mloc_dagster.tasks import check_launchable, launch_template

    require_fleet()
    path = _library_path(template)
    changed = compile_with_sets(path, sets, partition)
    check_partitions(changed)
    for before, after in zip(compile_file(path), changed, strict=True):
        check_launchable(before, after)
    with open_instance() as instance:
        return [launch_template(instance, each) for each in changed]


def _library_path(template: str) -> Path:
    from mloc_dagster.library import library_files
    from mloc_dagster.local_run import template_path

    path = template_path(template)
    if path.resolve() not in {each.resolve() for each in library_files().values()}:
        raise InputError(
            f"{template} is not in the template library: `mloc submit {template}` queues any"
            f" template over the HTTP API, `mloc run {template}` runs it here"
        )
    return path
