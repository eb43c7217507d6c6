"""`mloc submit`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from mloc_dagster.cli.api_choice import api_client
from mloc_dagster.cli.display.task_lines import print_task_lines
from mloc_dagster.cli.tasks import document, exit_code, wait_for
from mloc_dagster.cli.terminal import OK
from mloc_dagster.client import Client, TemplateBody, body_of_file
from mloc_dagster.errors import InputError, MlocError, TemplateError
from mloc_dagster.local_run import template_path
from mloc_dagster.wire import SubmitReply


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """The command line of `mloc submit`; see its help."""

    templates: tuple[str, ...]
    sets: tuple[str, ...]
    wait: bool
    as_json: bool
    idempotency_key: str | None


def submit(options: SubmitOptions) -> int:
    """Submits templates; returns the exit code.

    Raises:
        InputError: If one is wrong, after the ones before it were accepted.
    """
    replies: list[SubmitReply] = []
    try:
        bodies = _bodies(options)
        with api_client() as client:
            for body, key in zip(bodies, _keys(options), strict=True):
                replies.append(client.submit(body, idempotency_key=key))
                if not options.as_json:
                    _say(replies[-1])
            return _end(client, replies, options)
    except MlocError as error:
        if options.as_json:
            _print_json(replies, [_document(each) for each in replies], error=str(error))
        raise


def _bodies(options: SubmitOptions) -> list[TemplateBody]:
    """Reads every file before any is sent, so that all that is wrong appears at once."""
    bodies: list[TemplateBody] = []
    errors: list[TemplateError] = []
    for each in options.templates:
        try:
            bodies.append(body_of_file(template_path(each), options.sets))
        except TemplateError as error:
            errors.append(error)
    if errors:
        raise TemplateError([finding for error in errors for finding in error.diagnostics])
    return bodies


def _keys(options: SubmitOptions) -> list[str | None]:
    key, count = options.idempotency_key, len(options.templates)
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise InputError("--idempotency-key takes printable ASCII characters")
    # Each file is a request of its own, and a key belongs to one.
    return [f"{key}/{place}" if key and count > 1 else key for place in range(count)]


def _say(reply: SubmitReply) -> None:
    for finding in reply.warnings:
        typer.echo(str(finding), err=True)
    for task in reply.tasks:
        node = f"  {task.node}" if task.node != task.template else ""
        typer.echo(f"task {task.task_id}  {task.template}{node}")


def _end(client: Client, replies: Sequence[SubmitReply], options: SubmitOptions) -> int:
    tasks = [_document(each) for each in replies]
    code = OK
    if options.wait:
        ended = wait_for(client, [task.workflow_id for reply in replies for task in reply.tasks])
        details = [client.show(each.task_id) for each in ended]
        tasks = [[document(each) for each in details]]
        code = exit_code(ended)
        if not options.as_json:
            typer.echo("")
            print_task_lines(details)
    if options.as_json:
        _print_json(replies, tasks, error="" if code == OK else "a task failed")
    return code


def _document(reply: SubmitReply) -> list[dict[str, object]]:
    return [each.model_dump(mode="json") for each in reply.tasks]


def _print_json(
    replies: Sequence[SubmitReply], tasks: Sequence[Sequence[dict[str, object]]], *, error: str
) -> None:
    warnings = [each.model_dump(mode="json") for reply in replies for each in reply.warnings]
    flat = [each for one in tasks for each in one]
    shown = {
        "ok": not error,
        "count": len(flat),
        "tasks": flat,
        "warnings": warnings,
        **({"error": error} if error else {}),
    }
    typer.echo(json.dumps(shown, ensure_ascii=False))
