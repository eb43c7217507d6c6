"""`mloc run`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from mloc_dagster.cli.display.report import print_folders, report_json
from mloc_dagster.cli.resume import resumable, start_over
from mloc_dagster.cli.session import Session
from mloc_dagster.cli.terminal import OK
from mloc_dagster.compile import (
    CompiledTemplate,
    Diagnostic,
    apply_sets,
    compile_document,
    compile_file,
    errors_of,
    load_documents,
)
from mloc_dagster.data import look_at_data
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.library import library_file
from mloc_dagster.settings import settings


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of `mloc run`; see its help."""

    template: str | None
    sets: tuple[str, ...]
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
        templates, workflow_id = compile_with_sets(path, options.sets), None
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


def template_path(named: str) -> Path:
    """Returns the file that is meant: a path, or the name of a library template.

    Raises:
        UnknownNameError: If it is neither.
    """
    path = Path(named)
    if path.exists() or path.suffix in (".yaml", ".yml") or path.is_absolute():
        return path  # the loader says what is wrong with it
    return library_file(named)


def _check(options: RunOptions) -> None:
    if (options.template is None) == (options.resume is None):
        raise InputError("give either a template or --resume TASK_ID; see mloc run --help")
    if options.resume is not None and options.sets:
        raise InputError("--set changes the task; a task that is resumed stays what it was")
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


def compile_with_sets(path: Path, sets: Sequence[str]) -> list[CompiledTemplate]:
    """Compiles every document of a file, changed as `--set` asks.

    Raises:
        TemplateError: If any of it is wrong; carries every finding.
    """
    if not sets:
        return compile_file(path)
    templates: list[CompiledTemplate] = []
    findings: list[Diagnostic] = []
    for document in load_documents(path):
        try:
            templates.append(compile_document(apply_sets(document, sets)))
        except TemplateError as error:
            findings += [each for each in error.diagnostics if isinstance(each, Diagnostic)]
    if findings:
        raise TemplateError(list(dict.fromkeys(findings)))
    return templates
