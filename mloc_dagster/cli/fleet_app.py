"""The commands of the fleet: starting it, working for it, watching it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mloc_dagster.cli.api_choice import Json

_FLEET = "Fleet"

fleet = typer.Typer()


@fleet.command("up", rich_help_panel=_FLEET)
def _up(
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Workers for shards; by default one per GPU, and one without."
        ),
    ] = None,
    run_workers: Annotated[
        int, typer.Option(metavar="M", min=0, help="Workers for runs; each carries 32 at a time.")
    ] = 1,
    port: Annotated[
        int | None,
        typer.Option(metavar="P", min=1, max=65535, help="Port of Dagster's UI, else 3000."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave when everything answers.")
    ] = False,
    api: Annotated[
        bool, typer.Option("--api/--no-api", help="With the HTTP API, on MLOC_API_PORT.")
    ] = True,
) -> None:
    """Start the whole system on this machine, and stop it at Ctrl-C.

    Exit code: 0, 1 (a component does not come up), 2 (it is up already, or a port is taken).
    """
    from mloc_dagster.cli.up_command import UpOptions, up

    raise typer.Exit(up(UpOptions(workers, run_workers, port, detach, api)))


@fleet.command("down", rich_help_panel=_FLEET)
def _down() -> None:
    """Stop what `mloc up` started, also when it is half dead."""
    from mloc_dagster.cli.up_command import down

    down()


@fleet.command("status", rich_help_panel=_FLEET)
def _status(as_json: Json = False) -> None:
    """Show components, queues and workers.

    Exit code: 0, or 1 when nothing is up.
    """
    from mloc_dagster.cli.status_command import status

    raise typer.Exit(status(as_json=as_json))


@fleet.command("worker", rich_help_panel=_FLEET)
def _worker(
    queues: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Take work from these queues; `runs` makes a run worker. By default what the"
            " hardware names.",
        ),
    ] = "",
    gpus: Annotated[
        str | None,
        typer.Option(metavar="all|N|0,1", help="One worker for each of these GPUs."),
    ] = None,
    gpus_per_worker: Annotated[
        int, typer.Option(metavar="N", help="GPUs that each worker owns.", min=1)
    ] = 1,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="KEY=VALUE", help="A label of the worker. Repeatable."),
    ] = None,
) -> None:
    """Work for the fleet of MLOC_REDIS_URL until SIGTERM, which lets a shard end or hands it back.

    Exit code: 0, or 2 (bad input).
    """
    from mloc_dagster.cli.service_commands import WorkerOptions, work

    names = tuple(name.strip() for name in queues.split(",") if name.strip())
    raise typer.Exit(work(WorkerOptions(names, gpus, gpus_per_worker, tuple(tags or ()))))


@fleet.command("dispatcher", rich_help_panel=_FLEET)
def _dispatcher() -> None:
    """Give what the API accepted to the fleet, until SIGTERM; of several one leads.

    `mloc up` starts one. Exit code: 0, or 2 (bad input).
    """
    from mloc_dagster.cli.service_commands import dispatch

    raise typer.Exit(dispatch())


@fleet.command("api", rich_help_panel=_FLEET)
def _api(
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Listen there, else on MLOC_API_HOST (127.0.0.1)."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="P", min=1, max=65535, help="Port, else MLOC_API_PORT (8000)."),
    ] = None,
) -> None:
    """Serve the HTTP API of the fleet until SIGTERM or Ctrl-C; `mloc up` does it, too.

    Exit code: 0, 1 (the port is taken), 2 (bad input).
    """
    from mloc_dagster.cli.service_commands import serve

    raise typer.Exit(serve(host, port))


@fleet.command("webserver", hidden=True)
def _webserver(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Listen there.")],
    port: Annotated[int, typer.Option(metavar="P", min=1, max=65535, help="Port.")],
    workspace: Annotated[Path, typer.Option(metavar="FILE", help="What the UI shows.")],
) -> None:
    """Serve Dagster's UI behind the API's guard against other sites' pages; `mloc up` does it."""
    from mloc_dagster.cli.service_commands import serve_webserver

    raise typer.Exit(serve_webserver(host, port, workspace))


@fleet.command("workers", rich_help_panel=_FLEET)
def _workers(as_json: Json = False) -> None:
    """List the live workers: what they own, what they have warm, what they run."""
    from mloc_dagster.cli.status_command import list_workers

    list_workers(as_json=as_json)


@fleet.command("events", rich_help_panel=_FLEET)
def _events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="From when: 30s, 10m, 2h, 1d ago or a time; an hour ago, with -f from now.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="Only tasks whose id starts so.")
    ] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Events of workers, too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document a line, as it was published.")
    ] = False,
) -> None:
    """Print what happened to tasks, one event a line.

    Exit code: 0, 2 (there is no Redis to ask), 130 (interrupted).
    """
    from mloc_dagster.cli.events_command import EventsOptions, show_events

    raise typer.Exit(show_events(EventsOptions(follow, since, as_json, task, workers)))
