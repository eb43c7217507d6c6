"""`mloc.run`: a template, here and now."""

from __future__ import annotations

import os
from collections.abc import Callable

from mloc_dagster.data import Rows, write_rows
from mloc_dagster.errors import InputError
from mloc_dagster.events import TaskEvent
from mloc_dagster.local_run import resumable
from mloc_dagster.python.execution import Execution, refuse_nested
from mloc_dagster.python.progress import OnProgress, Watch
from mloc_dagster.python.session import Session
from mloc_dagster.python.task_result import Result
from mloc_dagster.python.templates import Changes, Template, one_template
from mloc_dagster.results import open_store, results_at


def run(
    template: Template | None = None,
    *,
    set: Changes | None = None,
    data: Rows | None = None,
    partition: str | None = None,
    results: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    retry_errors: bool = False,
    accept_changed_model: bool = False,
    progress: bool | OnProgress = True,
    session: Session | None = None,
) -> Result:
    """Runs a template in this process, waits for it, and returns its result.

    It works with an event loop running, and in any thread. Ctrl-C stops it and keeps the rows that
    are finished; a second one does not wait for the row that is being computed.

    Args:
        template: A file, the name of a library template, YAML, a mapping, or what builds one.
        set: Values to replace, by path: `{"spec.inference.temperature": 0}`.
        data: Rows instead of the template's: a table of pyarrow, pandas or polars, or an iterable
            of texts, mappings or chats. Their columns go with them into the result.
        partition: The partition that is computed, of a template that has any.
        results: Where the result goes; by default `MLOC_RESULTS_URL`, else `results`.
        resume: The id of a task that goes on, instead of a template.
        retry_errors: With `resume`: rows that ended with an error are computed again.
        accept_changed_model: With `resume`: another model may go on than the one that began.
        progress: Whether to show it; or a function that is called with each `Progress`.
        session: What it shares with other calls; by default that of the `with` block, if any.

    Returns:
        The result of the template's last task, which knows those of the others.

    Raises:
        TemplateError: If the template or its data are wrong; carries every finding.
        InputError: If anything else that was given is wrong.
        TaskFailedError: If a task failed; carries its id, and the rows that are there.
        RunInterrupted: If Ctrl-C came.
    """
    watch = Watch(progress)
    try:
        execution = prepared(
            template,
            set=set,
            data=data,
            partition=partition,
            results=results,
            resume=resume,
            retry_errors=retry_errors,
            accept_changed_model=accept_changed_model,
            hear=watch.hear,
            session=session,
        )
        execution.start()
        execution.wait(
            lambda: watch.say("stopping: finished rows are kept (again stops the waiting)")
        )
    finally:
        watch.close()
    return execution.result()


def prepared(
    template: Template | None,
    *,
    set: Changes | None,
    data: Rows | None,
    partition: str | None,
    results: str | os.PathLike[str] | None,
    resume: str | None,
    retry_errors: bool,
    accept_changed_model: bool,
    hear: Callable[[TaskEvent], None],
    session: Session | None,
) -> Execution:
    """Returns the run of what is given, checked and not begun; see `run`.

    Raises:
        InputError: If anything of it is wrong.
    """
    refuse_nested()
    _check(template, set, data, partition, resume, changed=retry_errors or accept_changed_model)
    store = open_store(None if results is None else os.fspath(results))
    rows = write_rows(data)
    try:
        if template is not None:
            compiled, workflow_id = one_template(template, set, rows, partition), None
        else:
            with results_at(store.url):
                compiled, workflow_id = resumable(resume or "")
        return Execution(
            compiled,
            session=session,
            results=store.url,
            shown_results=None if results is None else os.fspath(results),
            workflow_id=workflow_id,
            retry_errors=retry_errors,
            accept_changed_model=accept_changed_model,
            hear=hear,
            rows_file=rows,
        )
    except BaseException:
        if rows is not None:
            rows.delete()
        raise


def _check(
    template: Template | None,
    changes: Changes | None,
    data: Rows | None,
    partition: str | None,
    resume: str | None,
    *,
    changed: bool,
) -> None:
    if (template is None) == (resume is None):
        raise InputError("give either a template or resume=TASK_ID")
    if resume is not None and (changes or data is not None or partition is not None):
        raise InputError(
            "set, data and partition change the task; a task that is resumed stays what it was"
        )
    if resume is None and changed:
        raise InputError("retry_errors and accept_changed_model go with resume=TASK_ID")
