"""`mloc show`, `list`, `logs`, `dead-letters`, `cancel` and `retry`, over the API."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

import typer

from mloc_dagster.cli.api_choice import open_api
from mloc_dagster.cli.display.task_lines import print_letters, print_task_lines, print_task_table
from mloc_dagster.cli.terminal import FAILED, OK
from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.wire import LogLevel, LogLine, TaskDetail, TaskOrigin, TaskState, TaskView

if TYPE_CHECKING:
    from mloc_dagster.client import Client


def show(task_or_run_id: str, *, as_json: bool) -> int:
    """Prints how tasks are; returns the exit code.

    Raises:
        InputError: If there is no such task or run.
    """
    with open_api(task_or_run_id) as client:
        tasks = details(client, task_or_run_id)
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
        InputError: If there is no such state or origin, or a label or time is none.
    """
    options.check()
    with open_api() as client:
        found = _listed(client, options)
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
            origin=options.origin,
            name=options.name,
            task_type=options.task_type,
            labels=options.label_map,
            worker=options.worker,
            since=since,
        )
    )


def list_dead_letters(*, verbose: bool, as_json: bool) -> int:
    """Prints the tasks that failed for good; returns the exit code."""
    with open_api() as client:
        letters = list(client.dead_letters())
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
    with open_api() as client:
        changed = client.cancel(task_or_run_id).tasks
        ended = wait_for(client, [each.task_id for each in changed]) if wait else ()
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
    with open_api() as client:
        scope = "failed_rows" if failed_rows else "failed_shards"
        ids = [each.task_id for each in client.retry(task_or_run_id, scope).tasks]
        for each in ids:
            typer.echo(f"task {each}")
        return print_ended(client, ids) if wait else OK


def print_ended(client: Client, ids: Sequence[str]) -> int:
    """Prints tasks when they have ended; returns the exit code."""
    ended = [client.show(each.task_id) for each in wait_for(client, ids)]
    print_task_lines(ended)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """The command line of `mloc list`; see its help."""

    statuses: tuple[str, ...] = ()
    owner: str | None = None
    origin: str | None = None
    name: str | None = None
    task_type: str | None = None
    labels: tuple[str, ...] = ()
    worker: str | None = None
    since: str | None = None
    limit: int = 20
    as_json: bool = False

    @property
    def states(self) -> Sequence[TaskState]:
        """The states that are wanted; none means all.

        Raises:
            UnknownNameError: If one is none.
        """
        for each in self.statuses:
            if each.upper() not in TaskState.__members__:
                raise UnknownNameError("status", each, TaskState.__members__)
        return [TaskState[each.upper()] for each in self.statuses]

    @property
    def label_map(self) -> Mapping[str, str]:
        """The labels that are wanted.

        Raises:
            InputError: If one is not `key=value`.
        """
        for each in self.labels:
            if not each.partition("=")[1]:
                raise InputError(f"--label {each!r}: expected KEY=VALUE")
        return dict(each.split("=", 1) for each in self.labels)

    @property
    def nothing_found(self) -> str:
        """What is said where the list is empty."""
        filters = (self.owner, self.origin, self.name, self.task_type, self.worker, self.since)
        if any(filters) or self.statuses or self.labels:
            return "no task matches"
        return "no task yet"

    def check(self) -> None:
        """Makes sure that the API understands what is asked for.

        Raises:
            InputError: If it does not.
        """
        if self.origin is not None and self.origin not in get_args(TaskOrigin):
            raise UnknownNameError("origin", self.origin, get_args(TaskOrigin))
        _ = self.states, self.label_map


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
    with open_api(task_or_workflow_id) as client:
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
    from mloc_dagster.client import is_workflow_id

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
