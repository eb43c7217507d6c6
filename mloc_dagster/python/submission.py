"""Tasks that run elsewhere: submitted to the API, waited for, their results read."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from mloc_dagster.client import (
    Client,
    NotFoundError,
    TemplateBody,
    body_of_documents,
    body_of_file,
    documents_of_file,
)
from mloc_dagster.compile import with_rows
from mloc_dagster.data import Rows, RowsFile, write_rows
from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.local_run import resumable, template_path
from mloc_dagster.python.errors import TaskFailedError
from mloc_dagster.python.task_result import Result, results_of
from mloc_dagster.python.templates import Changes, Template, documents, plain
from mloc_dagster.results import Folder, open_store, results_at
from mloc_dagster.settings import settings
from mloc_dagster.wire import SubmitReply, TaskState, TaskView


@dataclass(frozen=True, slots=True)
class Submission:
    """Tasks that were accepted; each runs once, whatever happens to this process.

    Attributes:
        reply: What the API answered.
        client: The API that was given; None for the one that `mloc` finds.
    """

    reply: SubmitReply
    client: Client | None = None

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(each.task_id for each in self.reply.tasks)

    @property
    def workflow_id(self) -> str:
        """What all tasks of the last template share."""
        return self.reply.tasks[-1].workflow_id

    def wait(self, timeout_s: float | None = None) -> Result:
        """Returns the result of the last task when all have ended.

        Args:
            timeout_s: How long to wait; None is endless.

        Raises:
            TaskFailedError: If one failed, or was cancelled.
            NotEndedError: If the time was too short.
        """
        with _opened(self.client) as client:
            return _ended_result(client.wait(self.reply, timeout_s=timeout_s), client)

    def cancel(self) -> None:
        """Stops the tasks; finished rows are kept."""
        with _opened(self.client) as client:
            for each in dict.fromkeys(task.workflow_id for task in self.reply.tasks):
                client.cancel(each)


@contextmanager
def _opened(client: Client | None) -> Generator[Client]:
    """Yields the API that was given, or the one that `mloc` finds, whose connections it closes."""
    if client is not None:
        yield client
        return
    with Client() as found:
        yield found


@overload
def submit(
    template: Template, *, set: Changes | None = ..., data: Rows | None = ...,
    wait: Literal[False] = ..., idempotency_key: str | None = ..., client: Client | None = ...,
) -> Submission: ...  # fmt: skip
@overload
def submit(
    template: Template, *, set: Changes | None = ..., data: Rows | None = ...,
    wait: Literal[True], idempotency_key: str | None = ..., client: Client | None = ...,
) -> Result: ...  # fmt: skip
def submit(
    template: Template,
    *,
    set: Changes | None = None,
    data: Rows | None = None,
    wait: bool = False,
    idempotency_key: str | None = None,
    client: Client | None = None,
) -> Submission | Result:
    """Submits templates to the API of a stack, as `mloc submit` does.

    Args:
        template: A file, the name of a library template, YAML, a mapping, or what builds one. Data
            files that it names are sent along.
        set: Values to replace, by path.
        data: Rows instead of the template's, as for `run`; they are sent along.
        wait: Whether to wait for the tasks, and return the result of the last.
        idempotency_key: The same key gives the same tasks, and nothing runs twice.
        client: The API; by default the one that `mloc` finds.

    Returns:
        What was accepted; with `wait` the result.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
        ApiError: If the API does not take it.
        TaskFailedError: With `wait`: if a task failed.
    """
    rows = write_rows(data)
    try:
        body = _body(template, set, rows)
        files = {} if rows is None else {rows.name: rows.path}
        with _opened(client) as api:
            reply = api.submit(body, files=files, idempotency_key=idempotency_key)
    finally:
        if rows is not None:
            rows.delete()
    submission = Submission(reply, client)
    return submission.wait() if wait else submission


def _body(given: Template, changes: Changes | None, rows: RowsFile | None) -> TemplateBody:
    values = {path: plain(each, f"set {path}") for path, each in (changes or {}).items()}
    if isinstance(given, str | os.PathLike) and "\n" not in str(given):
        path = template_path(os.fspath(given))
        if rows is None:
            return body_of_file(path, values)
        found, folder, shown = documents_of_file(path), path.parent, str(path)
    else:
        found, folder, shown = documents(given), Path.cwd(), "template"
    if rows is not None:
        found = [with_rows(each, rows.name) for each in found]
    return body_of_documents(found, folder, shown, values)


def result(
    task_id: str,
    *,
    results: str | os.PathLike[str] | None = None,
    client: Client | None = None,
) -> Result:
    """Returns the result of a task that has ended, here or elsewhere.

    Args:
        task_id: The task; of a template of several also what they share, which means the last.
        results: Where the result is; by default `MLOC_RESULTS_URL`, else `results`.
        client: Fetches it from this API. Without one the store is read, and the API that `mloc`
            finds is asked if it is not there.

    Raises:
        UnknownNameError: If there is no such task.
        TaskFailedError: If the API says that it failed.
    """
    if client is not None:
        return _ended_result(client.look(task_id), client)
    store = open_store(None if results is None else os.fspath(results))
    try:
        with results_at(store.url):
            return _stored(task_id)
    except UnknownNameError:
        if results is not None:
            raise
        found = _elsewhere(task_id)
        if found is None:
            raise
        return found


def _stored(name: str) -> Result:
    from mloc_dagster.executors import task_id_for

    compiled, workflow_id = resumable(name)
    store = open_store()
    ids = [task_id_for(workflow_id, compiled, each.task.name) for each in compiled.tasks]
    there = results_of([store.task(each) for each in ids if store.task(each).exists("task.json")])
    return next((each for each in there if each.task_id == name), there[-1])


def _elsewhere(task_id: str) -> Result | None:
    from mloc_dagster.client import ApiAwayError, configured_url, stack_api

    if configured_url() is None and stack_api() is None:
        return None
    with Client() as client:
        try:
            return _ended_result(client.look(task_id), client)
        except (NotFoundError, ApiAwayError):
            return None


def _ended_result(tasks: Sequence[TaskView], client: Client) -> Result:
    going = [each for each in tasks if not each.status.ended]
    if going:
        raise InputError(f"task {going[0].task_id} has not ended: {going[0].status.value}")
    failed = [each for each in tasks if each.status is not TaskState.DONE]
    if failed:
        first = failed[0]
        raise TaskFailedError(
            f"{first.template}: {first.error or first.status.value.lower()}",
            task_id=first.task_id,
            workflow_id=first.workflow_id,
            failures=[each.error or each.status.value.lower() for each in failed],
        )
    return results_of([_folder(each.task_id, client) for each in tasks])[-1]


_WANTED = ("task.json", "plan.json", "summary.json", "training.json", "responses.parquet")


def _folder(task_id: str, client: Client) -> Folder:
    """Returns a task's folder: its own if that can be read here, else a copy of what is read."""
    own = open_store().task(task_id)
    if own.exists("task.json"):
        return own
    copy = open_store(str(settings().home.resolve() / "fetched"))
    folder = copy.task(task_id)
    there = {each.name for each in client.files(task_id).files}
    if "summary.json" in there and "responses.parquet" not in there:
        raise InputError(
            f"task {task_id} left no responses.parquet, which is what is read from here: name "
            "parquet among its output.formats"
        )
    for name in _WANTED:
        if name in there and not folder.exists(name):
            target = Path(copy.url) / task_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            client.save_file(task_id, name, target)
    return folder
