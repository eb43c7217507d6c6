"""`mloc logs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import get_args

import typer

from mloc_dagster.cli.api_choice import api_client
from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.client import Client, is_workflow_id
from mloc_dagster.errors import UnknownNameError
from mloc_dagster.wire import LogLevel, LogLine


def show_logs(task_or_workflow_id: str, *, follow: bool, level: str, as_json: bool) -> int:
    """Prints the logs of a task, or of a workflow's tasks one after the other.

    Returns:
        The exit code.

    Raises:
        InputError: If there is no such task, or no such level.
    """
    lowest = next((each for each in get_args(LogLevel) if each == level.upper()), None)
    if lowest is None:
        raise UnknownNameError("level", level, get_args(LogLevel))
    with api_client() as client:
        for task_id, line in _lines(client, task_or_workflow_id, lowest, follow=follow):
            if as_json:
                typer.echo(line.model_dump_json())
            else:
                typer.echo(_text(task_id, line))
            if follow:
                sys.stdout.flush()
    return OK


def _lines(
    client: Client, wanted: str, level: LogLevel, *, follow: bool
) -> Iterator[tuple[str, LogLine]]:
    ids = [wanted]
    if is_workflow_id(wanted):
        ids = [each.task_id for each in client.look(wanted)]
    for task_id in ids:
        name = task_id.removeprefix(f"{wanted}-") if len(ids) > 1 else ""
        for line in client.logs(task_id, follow=follow, level=level):
            yield name, line


def _text(name: str, line: LogLine) -> str:
    at = "" if line.at is None else line.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    level = "" if line.level == "INFO" else line.level
    return "  ".join(each for each in (at, name, line.source, level, line.text) if each)
