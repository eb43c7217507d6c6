"""The commands about tasks on the fleet, their arguments and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mloc_dagster.cli.api_choice import Json, Partition, TaskId, TaskOrRun, Wait

_PANEL = "Tasks"

tasks = typer.Typer()


@tasks.command("submit", rich_help_panel=_PANEL)
def _submit(
    templates: Annotated[
        list[str], typer.Argument(metavar="T.yaml…", help="YAML files, or library templates.")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a value. Repeatable."),
    ] = None,
    wait: Wait = False,
    as_json: Json = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The same key again gives the same tasks, and runs nothing twice."
        ),
    ] = None,
) -> None:
    """Submit any template to the API, with the data files that it names; prints the tasks' ids.

    Exit code: 0, 1 (the API fails; with --wait: a task failed), 2 (bad input), 130 (interrupted).
    """
    from mloc_dagster.cli.submit_command import SubmitOptions, submit

    options = SubmitOptions(tuple(templates), tuple(sets or ()), wait, as_json, idempotency_key)
    raise typer.Exit(submit(options))


@tasks.command("launch", rich_help_panel=_PANEL)
def _launch(
    template: Annotated[str, typer.Argument(help="The name of a library template.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a value. Repeatable."),
    ] = None,
    partition: Partition = None,
    wait: Wait = False,
) -> None:
    """Queue a library template on the fleet; prints the ids of its run and its tasks.

    Exit code: 0, 1 (with --wait: a task failed), 2 (bad input).
    """
    from mloc_dagster.cli.launch_command import launch

    code = launch(template, sets=tuple(sets or ()), partition=partition, wait=wait)
    raise typer.Exit(code)


@tasks.command("list", rich_help_panel=_PANEL)
def _list(
    statuses: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="S", help="Such as RUNNING or DEAD. Repeatable."),
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    origin: Annotated[
        str | None, typer.Option(help="Only what api, run, launch, schedule or dagster made.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only of this template.")] = None,
    task_type: Annotated[str | None, typer.Option("--type", help="Such as inference.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Only with this label. Repeatable."),
    ] = None,
    worker: Annotated[str | None, typer.Option(help="Only what this worker computed.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Submitted 30s, 10m, 2h, 1d ago, or later.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List the latest tasks."""
    from mloc_dagster.cli.tasks import ListOptions, list_tasks

    options = ListOptions(
        statuses=tuple(statuses or ()),
        owner=owner,
        origin=origin,
        name=name,
        task_type=task_type,
        labels=tuple(labels or ()),
        worker=worker,
        since=since,
        limit=limit,
        as_json=as_json,
    )
    raise typer.Exit(list_tasks(options))


@tasks.command("show", rich_help_panel=_PANEL)
def _show(task_or_run: TaskOrRun, as_json: Json = False) -> None:
    """Show how a task is: its shards, rows, workers, what it waits for, why it failed."""
    from mloc_dagster.cli.tasks import show

    raise typer.Exit(show(task_or_run, as_json=as_json))


@tasks.command("logs", rich_help_panel=_PANEL)
def _logs(
    task: TaskOrRun,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    level: Annotated[
        str,
        typer.Option(metavar="L", help="The lowest level; debug has all of Dagster's events."),
    ] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """Print the logs of a task, its run's and its shards', in order of time.

    Exit code: 0, 1 (the API fails), 2 (there is no such task), 130 (interrupted).
    """
    from mloc_dagster.cli.tasks import show_logs

    raise typer.Exit(show_logs(task, follow=follow, level=level, as_json=as_json))


@tasks.command("result", rich_help_panel=_PANEL)
def _result(
    task: TaskId,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Save it here; a folder will do."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="json, jsonl, parquet, csv; else what FILE's name ends with."),
    ] = None,
    file: Annotated[
        str | None, typer.Option(metavar="NAME", help="Save this file of the task instead.")
    ] = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Save all files of the task, as a tar archive.")
    ] = False,
    list_files: Annotated[bool, typer.Option("--files", help="List the task's files.")] = False,
    as_json: Json = False,
) -> None:
    """Print a task's result, or save it; the saved file's path is printed last.

    Exit code: 0, 1 (the API fails), 2 (there is no such task, or no result yet).
    """
    from mloc_dagster.cli.result_command import ResultOptions, result

    options = ResultOptions(
        task_id=task,
        output=output,
        format=format,
        file=file,
        bundle=bundle,
        list_files=list_files,
        as_json=as_json,
    )
    raise typer.Exit(result(options))


@tasks.command("trace", rich_help_panel=_PANEL)
def _trace(
    task_id: TaskId,
    index: Annotated[int, typer.Argument(min=0, help="The row, from 0.")] = 0,
    as_json: Json = False,
) -> None:
    """How an agent came to its answer to a row: turns, calls, tokens, seconds.

    Exit code: 0, 1 (the API fails), 2 (no such task or row).
    """
    from mloc_dagster.cli.trace_command import trace

    raise typer.Exit(trace(task_id, index, as_json=as_json))


@tasks.command("cancel", rich_help_panel=_PANEL)
def _cancel(task_or_run: TaskOrRun, wait: Wait = False) -> None:
    """Stop the run of a task; its finished rows are kept."""
    from mloc_dagster.cli.tasks import cancel

    raise typer.Exit(cancel(task_or_run, wait=wait))


@tasks.command("dead-letters", rich_help_panel=_PANEL)
def _dead_letters(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Whole reasons, and the shards' last log lines.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the tasks that failed for good."""
    from mloc_dagster.cli.tasks import list_dead_letters

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
    from mloc_dagster.cli.tasks import retry

    raise typer.Exit(retry(task_or_run, failed_rows=failed_rows, wait=wait))


@tasks.command("cleanup", rich_help_panel=_PANEL)
def _cleanup(
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove; without it nothing is removed.")
    ] = False,
    stale_workers: Annotated[bool, typer.Option(help="Workers that are silent.")] = True,
    orphaned_shards: Annotated[
        bool, typer.Option(help="Shard files of tasks that are done.")
    ] = True,
    older_than_days: Annotated[
        float | None,
        typer.Option(metavar="D", min=0, help="Results of tasks that ended longer ago."),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="The oldest results, until so much is left."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what nobody needs any more, or remove it. Needs the API.

    Exit code: 0, 1 (the API fails), 2 (bad input).
    """
    from mloc_dagster.cli.result_command import cleanup
    from mloc_dagster.wire import CleanupRequest

    wanted = CleanupRequest(
        dry_run=not apply,
        stale_workers=stale_workers,
        orphaned_shards=orphaned_shards,
        results_older_than_days=older_than_days,
        results_max_bytes=max_bytes,
    )
    raise typer.Exit(cleanup(wanted, as_json=as_json))
