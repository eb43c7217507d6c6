"""`mloc run`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import typer

from mloc_dagster.cli.display.report import print_folders, report_json
from mloc_dagster.cli.session import Session
from mloc_dagster.cli.terminal import OK
from mloc_dagster.compile import (
    errors_of,
)
from mloc_dagster.data import look_at_data
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.local_run import (
    check_partitions,
    compile_with_sets,
    resumable,
    start_over,
    template_path,
)
from mloc_dagster.settings import settings


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of `mloc run`; see its help."""

    template: str | None
    sets: tuple[str, ...]
    partition: str | None
    results: str | None
    resume: str | None
    retry_errors: bool
    fresh: bool
    accept_changed_model: bool
    quiet: bool
    as_json: bool
    progress: bool
    look: bool = True


def run(options: RunOptions) -> int:
    """Runs the templates of a file, or goes on with a task; returns the exit code."""
    try:
        _check(options)
        if options.results is not None:
            os.environ["MLOC_RESULTS_URL"] = options.results
            settings.cache_clear()
        session = _session(options)
        code = session.run()
    except InputError as error:
        if options.as_json:
            typer.echo(json.dumps(report_json([], ok=False, error=str(error)), ensure_ascii=False))
        raise
    if options.as_json:
        document = report_json(session.runs, ok=code == OK, warnings=session.warnings)
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        print_folders(session.runs)
    return code


def _session(options: RunOptions) -> Session:
    if options.resume is None:
        path = template_path(options.template or "")
        templates, workflow_id = compile_with_sets(path, options.sets, options.partition), None
        check_partitions(templates)
        # A file that a late stage lacks must not be found when the early ones are computed.
        if options.look and (errors := errors_of(look_at_data(templates))):
            raise TemplateError(errors)
    else:
        compiled, workflow_id = resumable(options.resume)
        templates = [compiled]
        if options.fresh:
            start_over(compiled, workflow_id)
    return Session(
        templates,
        workflow_id=workflow_id,
        retry_errors=options.retry_errors,
        accept_changed_model=options.accept_changed_model,
        results=options.results,
        progress=options.progress,
        talkative=not (options.quiet or options.as_json),
        complain=not options.as_json,
    )


def _check(options: RunOptions) -> None:
    if (options.template is None) == (options.resume is None):
        raise InputError("give either a template or --resume TASK_ID; see mloc run --help")
    if options.resume is not None and options.sets:
        raise InputError("--set changes the task; a task that is resumed stays what it was")
    if options.resume is not None and options.partition is not None:
        raise InputError("a task that is resumed stays of its partition; leave --partition out")
    beside_resume = {
        "--retry-errors": options.retry_errors,
        "--fresh": options.fresh,
        "--accept-changed-model": options.accept_changed_model,
    }
    given = [name for name, wanted in beside_resume.items() if wanted]
    if given and options.resume is None:
        raise InputError(f"{given[0]} goes with --resume TASK_ID")
    if options.fresh and len(given) > 1:
        other = next(name for name in given if name != "--fresh")
        raise InputError(f"give either --fresh, which starts over, or {other}")
    if options.quiet and options.as_json:
        raise InputError("give either --quiet or --json")
