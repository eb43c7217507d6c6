"""`mloc batch`: a batch that was prepared for a hosted API, answered here and now."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from mloc_dagster.cli.batch_files import (
    BatchOutcome,
    answering_alone,
    batch_json,
    batch_task_id,
    check_files,
    named_model,
    print_batch,
    replacing,
)
from mloc_dagster.cli.display.report import report_json
from mloc_dagster.cli.session import Session
from mloc_dagster.cli.terminal import FAILED, OK
from mloc_dagster.compile import (
    CompiledTemplate,
    Document,
    Position,
    apply_sets,
    compile_document,
    tree_of,
)
from mloc_dagster.data import check_endpoints, scan_batch
from mloc_dagster.errors import DamagedFileError, InputError
from mloc_dagster.local_run import check_not_running, resumable
from mloc_dagster.planning import PLAN_NAME
from mloc_dagster.results import (
    RECORD_NAME,
    BatchFiles,
    Folder,
    Tally,
    open_store,
    read_record,
    read_rows,
)
from mloc_dagster.schema import OpenaiBatchData, RowSpec
from mloc_dagster.settings import settings
from mloc_dagster.tasks import asked_spec, batch_template


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The command line of `mloc batch`; see its help."""

    source: str | None
    model: str | None
    output: Path
    errors: Path | None
    engine: str | None
    shards: int
    error_budget: float
    resume: str | None
    fresh: bool
    retry_errors: bool
    accept_changed_model: bool
    sets: tuple[str, ...]
    results: str | None
    as_json: bool
    progress: bool

    @property
    def errors_file(self) -> Path:
        """Where requests go that failed."""
        return self.errors or self.output.with_suffix(f".errors{self.output.suffix}")


def batch(options: BatchOptions) -> int:
    """Answers a batch; returns the exit code."""
    try:
        return _batch(options)
    except InputError as error:
        if options.as_json:
            typer.echo(json.dumps(report_json([], ok=False, error=str(error)), ensure_ascii=False))
        raise


def _batch(options: BatchOptions) -> int:
    _check(options)
    check_files(options.source, options.output, options.errors_file)
    if options.results is not None:
        os.environ["MLOC_RESULTS_URL"] = options.results
        settings.cache_clear()
    if options.resume is not None:
        compiled, task_id = resumable(options.resume)
        _check_resumed(compiled, task_id, options)
    else:
        compiled, task_id = _compile(options)
    with answering_alone(task_id):
        return _answer(options, compiled, task_id)


def _answer(options: BatchOptions, compiled: CompiledTemplate, task_id: str) -> int:
    folder = open_store().task(task_id)
    if options.fresh:
        _forget(folder)
    if options.resume is None:
        _say_where_it_goes_on(folder, options)
    session = Session(
        [compiled],
        workflow_id=task_id,
        retry_errors=options.retry_errors,
        accept_changed_model=options.accept_changed_model,
        results=options.results,
        progress=options.progress,
        talkative=not options.as_json,
        complain=not options.as_json,
        again=None if options.resume is not None else _again(),
        report=None,
    )
    code = session.run()
    outcome = _write(options, folder, session)
    if code == OK and outcome is not None and not outcome.answered:
        code = FAILED
    if options.as_json:
        report = report_json(session.runs, ok=code == OK)
        typer.echo(json.dumps({**report, "batch": batch_json(outcome)}, ensure_ascii=False))
    elif outcome is not None:
        print_batch(outcome)
    return code


def _check(options: BatchOptions) -> None:
    if options.resume is None and (options.source is None or options.model is None):
        raise InputError("give the batch and its model: mloc batch input.jsonl -m MODEL -o out")
    if options.resume is not None and (options.source or options.model or options.sets):
        raise InputError("--resume goes on with what the task is: give only -o beside it")
    if options.resume is not None and options.fresh:
        raise InputError("give either --resume or --fresh")


def _check_resumed(compiled: CompiledTemplate, task_id: str, options: BatchOptions) -> None:
    """Refuses what has no answers, or several tasks with answers, before anything of it runs."""
    only, *others = compiled.tasks
    if others:
        raise InputError(
            f"{task_id} is a workflow of {len(compiled.tasks)} tasks, and no batch: go on with "
            f"mloc run --resume {task_id}"
        )
    spec = only.task.spec
    if not isinstance(spec, RowSpec):
        raise InputError(f"{task_id} is a task of type {spec.task_type}, and no batch")
    if isinstance(spec.data, OpenaiBatchData):
        check_files(spec.data.url, options.output, options.errors_file)


def _compile(options: BatchOptions) -> tuple[CompiledTemplate, str]:
    """Returns the template that a command line stands for, and the id of its task.

    The same requests, model and options have the same id: the same command goes on where it was.
    """
    source = options.source or ""
    url = source if "://" in source else str(Path(source).expanduser().resolve())
    found = scan_batch(url)
    found.check()
    task_type = check_endpoints(source, found)
    asked = asked_spec(named_model(options.model or ""), vectors=task_type == "embedding")
    model = asked.get("model")
    if options.engine is not None and isinstance(model, dict):
        asked["model"] = {**model, "engine": options.engine}
    mapping = batch_template(
        url,
        asked,
        error_budget=options.error_budget,
        shards=options.shards,
    )
    document = Document("mloc batch", tree_of(mapping, Position("mloc batch")))
    compiled = compile_document(apply_sets(document, options.sets))
    return compiled, batch_task_id(compiled, found)


def _forget(folder: Folder) -> None:
    if folder.exists(RECORD_NAME):
        check_not_running(folder.name)
        _empty(folder)


def _empty(folder: Folder) -> None:
    for name in sorted(folder.list(), key=lambda name: name == RECORD_NAME):  # the record last
        folder.delete(name)


def _say_where_it_goes_on(folder: Folder, options: BatchOptions) -> None:
    if not folder.exists(RECORD_NAME):
        return
    check_not_running(folder.name)
    if not folder.exists(PLAN_NAME):
        _empty(folder)  # stopped before its input was there: it may lie elsewhere by now
        return
    if not options.as_json:
        sys.stderr.write(
            f"going on with task {folder.name}: {_rows_there(folder)} (--fresh starts over)\n"
        )


def _rows_there(folder: Folder) -> str:
    try:
        return f"{sum(1 for _ in read_rows(folder)):,} rows are there"
    except DamagedFileError as error:
        return str(error)


def _again() -> list[str]:
    return ["mloc", *sys.argv[1:]]


def _write(options: BatchOptions, folder: Folder, session: Session) -> BatchOutcome | None:
    """Writes the answers, once every row is there, whatever became of the task otherwise."""
    tasks = [task for run in session.runs for task in run.outcome.tasks]
    summary = tasks[0].summary if tasks else None
    if summary is None or any(run.interrupted for run in session.runs):
        return None
    from mloc_dagster.executors import open_task

    plan, submitted_at = open_task(folder.name).plan(), read_record(folder).submitted_at
    with replacing(options.output) as answers, replacing(options.errors_file) as failures:
        files = BatchFiles(answers, failures, plan, summary.model, submitted_at)
        for _ in files.watch(Tally(plan).watch(read_rows(folder))):
            pass
    return BatchOutcome(
        summary=summary,
        folder=folder.url,
        output=str(options.output),
        errors=str(options.errors_file),
        answered=files.answered,
        failed=files.failed,
    )
