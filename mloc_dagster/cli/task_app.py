"""The commands about tasks on the fleet, their arguments and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from mloc_dagster.cli.arguments import Json, TaskOrRun, Wait

_PANEL = "Tasks on the fleet"

tasks = typer.Typer()


@tasks.command("launch", rich_help_panel=_PANEL)
def _launch(
    template: Annotated[str, typer.Argument(help="The name of a library template.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a value. Repeatable."),
    ] = None,
    wait: Wait = False,
) -> None:
    """Queue a library template on the fleet; prints the ids of its run and its tasks.

    Exit code: 0, 1 (with --wait: a task failed), 2 (bad input).
    """
    from mloc_dagster.cli.launch_command import launch

    raise typer.Exit(launch(template, sets=tuple(sets or ()), wait=wait))


@tasks.command("list", rich_help_panel=_PANEL)
def _list(
    state: Annotated[
        str | None,
        typer.Option("--status", metavar="S", help="Only these, such as RUNNING or DEAD."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List the latest tasks."""
    from mloc_dagster.cli.task_commands import list_tasks

    raise typer.Exit(list_tasks(state=state, limit=limit, as_json=as_json))


@tasks.command("show", rich_help_panel=_PANEL)
def _show(task_or_run: TaskOrRun, as_json: Json = False) -> None:
    """Show how a task is: its shards, rows, workers, what it waits for, why it failed."""
    from mloc_dagster.cli.task_commands import show

    raise typer.Exit(show(task_or_run, as_json=as_json))


@tasks.command("cancel", rich_help_panel=_PANEL)
def _cancel(task_or_run: TaskOrRun, wait: Wait = False) -> None:
    """Stop the run of a task; its finished rows are kept."""
    from mloc_dagster.cli.launch_command import cancel

    raise typer.Exit(cancel(task_or_run, wait=wait))


@tasks.command("dead-letters", rich_help_panel=_PANEL)
def _dead_letters(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Whole reasons, and the shards' last log lines.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the tasks that failed for good."""
    from mloc_dagster.cli.task_commands import list_dead_letters

    raise typer.Exit(list_dead_letters(verbose=verbose, as_json=as_json))


@tasks.command("retry", rich_help_panel=_PANEL)
def _retry(
    task_or_run: TaskOrRun,
    failed_rows: Annotated[
        bool, typer.Option("--failed-rows", help="Also rows that ended with an error.")
    ] = False,
    wait: Wait = False,
) -> None:
    """Go on with a task that failed or was cancelled: only missing rows are computed.

    Exit code: 0, 1 (with --wait: it failed again), 2 (there is nothing to retry).
    """
    from mloc_dagster.cli.launch_command import retry

    raise typer.Exit(retry(task_or_run, failed_rows=failed_rows, wait=wait))
