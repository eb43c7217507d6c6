"""Every operation of the API, once, for both clients.

A function returns the request (`Call`), the requests that follow from each other (`Walk`) or the
long answer (`Flow`); a client carries it out.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import JsonValue

from mloc_dagster.client.errors import renamed
from mloc_dagster.client.paging import Pages, Waiting, is_workflow_id
from mloc_dagster.client.streams import ChatFlow, Download, LogFlow, RowFlow
from mloc_dagster.client.template_body import TemplateBody, body_of
from mloc_dagster.client.transport import Ask, Call, FilePart, reading
from mloc_dagster.wire import (
    BODY_NAME,
    ChangeReply,
    CleanupReport,
    CleanupRequest,
    DeadLetterPage,
    DeadLetterView,
    FilePage,
    FilesStored,
    Health,
    IndexPage,
    IndexReply,
    IndexSearchReply,
    IndexSearchRequest,
    LogLevel,
    LogLine,
    LogPage,
    ProgressReply,
    Readiness,
    ResultIn,
    ResultStored,
    RetryRequest,
    SubmitReply,
    TaskPage,
    TaskReply,
    TaskState,
    TaskView,
    TrajectoryView,
    WorkerPage,
    WorkerReply,
    WorkflowReply,
)

TASKS = "/api/v1/tasks"
MAX_PAGE = 1_000
"""On a page; the API allows no more."""
JSON_BODY = {"Content-Type": "application/json"}

Query = Sequence[tuple[str, str]]


def below(*parts: str) -> str:
    """Returns the path of something below another; what users named is quoted."""
    return "/".join([parts[0], *(quote(each, safe="") for each in parts[1:])])


def submit(
    template: Path | str | Mapping[str, JsonValue] | TemplateBody,
    *,
    files: Mapping[str, Path | bytes] | None = None,
    idempotency_key: str | None = None,
) -> Call[SubmitReply]:
    """Submits templates; when it returns they are durable, and each is going to run once.

    Args:
        template: A file (`Path`), YAML (`str`) or a template as a mapping. Data files and images
            that a file names relative to its folder are uploaded with it.
        files: More data files, by the names that the template calls them.
        idempotency_key: The same key gives the same answer, and nothing runs twice; by default a
            new one, so that attempts at this call cannot submit twice.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
    """
    body = body_of(template, files or {})
    key = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}

    def read(answer: bytes) -> SubmitReply:
        reply = SubmitReply.model_validate_json(answer)
        return reply.model_copy(update={"warnings": renamed(reply.warnings, body.shown)})

    if not body.files:
        headers = {"Content-Type": "application/yaml", **key}
        return Call(
            method="POST", path=TASKS, headers=headers, content=body.text, read=read,
            shown_file=body.shown,
        )  # fmt: skip
    parts = [FilePart(field="template", name=BODY_NAME, content=body.text)]
    parts += [FilePart(field="file", name=n, content=each) for n, each in body.files.items()]
    return Call(
        method="POST", path=TASKS, headers=key, parts=parts, read=read, shown_file=body.shown
    )


def chat(model: str, messages: Sequence[Mapping[str, str]], **options: JsonValue) -> ChatFlow:
    """Yields the text of a chat's next message as it is generated.

    Args:
        model: A model that ships, a task's id, a library template, or an id of the hub.
        messages: The chat so far, each with `role` and `content`.
        options: More fields of `POST /v1/chat/completions`, such as `temperature`.

    Raises:
        ApiError: If it cannot be answered, or broke off.
    """
    said: list[JsonValue] = [dict(each) for each in messages]
    return ChatFlow({"model": model, "messages": said, **options})


def show(task_id: str) -> Call[TaskReply]:
    """Returns all that is known of a task."""
    return Call(method="GET", path=below(TASKS, task_id), read=reading(TaskReply))


def workflow(workflow_id: str) -> Call[WorkflowReply]:
    """Returns the tasks of one submitted document, in its order."""
    path = below("/api/v1/workflows", workflow_id)
    return Call(method="GET", path=path, read=reading(WorkflowReply))


def look(task_or_workflow_id: str) -> Call[Sequence[TaskView]]:
    """Returns the tasks that an id stands for: all of a workflow, or one."""
    if is_workflow_id(task_or_workflow_id):
        path = below("/api/v1/workflows", task_or_workflow_id)
        read_all = reading(WorkflowReply)
        return Call(method="GET", path=path, read=lambda body: read_all(body).tasks)
    read_one = reading(TaskReply)
    path = below(TASKS, task_or_workflow_id)
    return Call(method="GET", path=path, read=lambda body: (read_one(body),))


def task_filter(
    *,
    status: Iterable[TaskState | str] = (),
    owner: str | None = None,
    origin: str | None = None,
    name: str | None = None,
    task_type: str | None = None,
    workflow_id: str | None = None,
    worker: str | None = None,
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Query:
    """Returns the parameters that say which tasks a list shows."""
    exact = (
        ("owner", owner),
        ("origin", origin),
        ("name", name),
        ("type", task_type),
        ("workflow_id", workflow_id),
        ("worker", worker),
        ("since", _moment(since)),
        ("until", _moment(until)),
    )
    return (
        *(("status", str(each)) for each in status),
        *((key, text) for key, text in exact if text is not None),
        *(("label", f"{key}={text}") for key, text in (labels or {}).items()),
    )


def task_page(chosen: Query, limit: int, cursor: str | None = None) -> Call[TaskPage]:
    """Returns a page of tasks, the newest first."""
    return Call(
        method="GET", path=TASKS, query=page_query(chosen, limit, cursor), read=reading(TaskPage)
    )


def log_page(
    task_id: str,
    cursor: str | None = None,
    limit: int = MAX_PAGE,
    level: LogLevel = "INFO",
) -> Call[LogPage]:
    """Returns a page of a task's logs."""
    path = below(TASKS, task_id, "logs")
    query = page_query((("level", level),), limit, cursor)
    return Call(method="GET", path=path, query=query, read=reading(LogPage))


def progress(task_id: str) -> Call[ProgressReply]:
    """Returns how far a task is, and when it is going to be done."""
    path = below(TASKS, task_id, "progress")
    return Call(method="GET", path=path, read=reading(ProgressReply))


def cancel(task_or_workflow_id: str) -> Call[ChangeReply]:
    """Stops a task, or all of a workflow; finished rows are kept."""
    path = below(TASKS, task_or_workflow_id, "cancel")
    return Call(method="POST", path=path, read=reading(ChangeReply))


def retry(
    task_or_workflow_id: str,
    scope: Literal["failed_shards", "failed_rows", "all"] = "failed_shards",
) -> Call[ChangeReply]:
    """Goes on with what failed or was cancelled: only what is missing is computed.

    Args:
        task_or_workflow_id: What.
        scope: `failed_rows` also computes rows that ended with an error; `all` does that for every
            task of the workflow.
    """
    path = below(TASKS, task_or_workflow_id, "retry")
    body = RetryRequest(scope=scope).model_dump_json().encode()
    # A second one would find the first one's work, and say that there is nothing to retry.
    return Call(
        method="POST", path=path, headers=JSON_BODY, content=body, read=reading(ChangeReply),
        repeatable=False,
    )  # fmt: skip


def page_query(chosen: Query, limit: int, cursor: str | None) -> Query:
    """Returns the parameters of one page of a list."""
    following = (("cursor", cursor),) if cursor is not None else ()
    return (*chosen, ("limit", str(limit)), *following)


def _moment(when: datetime | None) -> str | None:
    # Without a zone it is the user's own time.
    return None if when is None else when.astimezone().isoformat()


RESULTS = "/api/v1/results"
MAX_DEAD_LETTERS = 200
"""On a page; the API allows no more."""


def result(task_id: str) -> Call[ResultIn]:
    """Returns a task's result document."""
    return Call(method="GET", path=below(RESULTS, task_id), read=reading(ResultIn))


def put_result(document: ResultIn) -> Call[ResultStored]:
    """Leaves the result of a task that ran elsewhere; the same again changes nothing."""
    body = document.model_dump_json(exclude_none=True).encode()
    return Call(
        method="POST", path=RESULTS, headers=JSON_BODY, content=body, read=reading(ResultStored)
    )


def files(task_id: str) -> Call[FilePage]:
    """Returns which files a task left."""
    return Call(method="GET", path=below(RESULTS, task_id, "files"), read=reading(FilePage))


def trajectory(task_id: str, index: int) -> Call[TrajectoryView]:
    """Returns how an agent came to its answer to a row, as far as it has come."""
    path = below(RESULTS, task_id, "trajectories", str(index))
    return Call(method="GET", path=path, read=reading(TrajectoryView))


def upload(task_id: str, files: Mapping[str, Path | bytes]) -> Call[FilesStored]:
    """Leaves files with a task, by name; the same again changes nothing."""
    parts = [FilePart(field="file", name=name, content=each) for name, each in files.items()]
    path = below(RESULTS, task_id, "files")
    return Call(method="POST", path=path, parts=parts, read=reading(FilesStored))


def dead_letter_page(limit: int, cursor: str | None = None) -> Call[DeadLetterPage]:
    """Returns a page of the tasks that failed for good, the newest first."""
    query = page_query((), limit, cursor)
    return Call(
        method="GET", path="/api/v1/dead_letters", query=query, read=reading(DeadLetterPage)
    )


INDEXES = "/api/v1/indexes"


def indexes() -> Call[IndexPage]:
    """Returns the indexes where mloc's engines keep them by default."""
    return Call(method="GET", path=INDEXES, read=reading(IndexPage))


def index(name: str, *, engine: str | None = None) -> Call[IndexReply]:
    """Returns an index.

    Args:
        name: Its name.
        engine: Whose; needed where two engines have one of this name.
    """
    path = below(INDEXES, name)
    return Call(method="GET", path=path, query=_of_engine(engine), read=reading(IndexReply))


def search_index(name: str, wanted: IndexSearchRequest) -> Call[IndexSearchReply]:
    """Returns the passages of an index that fit a query best, the best first."""
    return Call(
        method="POST", path=below(INDEXES, name, "search"), headers=JSON_BODY,
        content=wanted.model_dump_json(exclude_none=True).encode(),
        read=reading(IndexSearchReply),
    )  # fmt: skip


def drop_index(name: str, *, engine: str | None = None) -> Call[IndexReply]:
    """Removes an index with all its versions; returns what it was."""
    # A second one would find none.
    return Call(
        method="DELETE", path=below(INDEXES, name), query=_of_engine(engine),
        read=reading(IndexReply), repeatable=False,
    )  # fmt: skip


def _of_engine(engine: str | None) -> Query:
    return () if engine is None else (("engine", engine),)


def workers() -> Call[WorkerPage]:
    """Returns the live workers."""
    return Call(method="GET", path="/workers", read=reading(WorkerPage))


def worker(worker_id: str) -> Call[WorkerReply]:
    """Returns a worker, also one that was lost of late."""
    return Call(method="GET", path=below("/workers", worker_id), read=reading(WorkerReply))


def cleanup(wanted: CleanupRequest | None = None) -> Call[CleanupReport]:
    """Removes what nobody needs any more, or says what that would be; by default only says it."""
    wanted = wanted or CleanupRequest()
    # What is removed twice is reported once, and that report may be lost.
    return Call(
        method="POST", path="/admin/cleanup", headers=JSON_BODY,
        content=wanted.model_dump_json(exclude_none=True).encode(),
        read=reading(CleanupReport), repeatable=wanted.dry_run,
    )  # fmt: skip


def health() -> Call[Health]:
    """Returns whether the API lives."""
    return Call(method="GET", path="/healthz", read=reading(Health))


def readiness() -> Call[Readiness]:
    """Returns whether the API can accept, and what it misses."""
    return Call(
        method="GET", path="/healthz/ready", read=reading(Readiness), accepts=frozenset({503})
    )


def metrics() -> Call[str]:
    """Returns the API's figures, in Prometheus' format."""
    return Call(method="GET", path="/metrics", read=bytes.decode)


_PAGE = 100


def tasks(
    *,
    limit: int | None = None,
    status: Iterable[TaskState | str] = (),
    owner: str | None = None,
    origin: str | None = None,
    name: str | None = None,
    task_type: str | None = None,
    workflow_id: str | None = None,
    worker: str | None = None,
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Pages[TaskPage, TaskView]:
    """Yields tasks, the newest first; pages are fetched as they are needed.

    Args:
        limit: How many; None for all.
        status: Only tasks in any of these states.
        owner: Only this owner's.
        origin: Only what this made; see `TaskOrigin`.
        name: Only of the template of this name.
        task_type: Only of this type.
        workflow_id: Only of this workflow.
        worker: Only those whose last shard this worker computed.
        labels: Only with all of these labels.
        since: Only those submitted at this time or later.
        until: Only those submitted before.
    """
    chosen = task_filter(
        status=status,
        owner=owner,
        origin=origin,
        name=name,
        task_type=task_type,
        workflow_id=workflow_id,
        worker=worker,
        labels=labels,
        since=since,
        until=until,
    )
    size = _page_size(limit, MAX_PAGE)
    return Pages(
        lambda cursor: task_page(chosen, size, cursor),
        lambda page: (page.tasks, page.next_cursor),
        limit,
    )


def dead_letters(*, limit: int | None = None) -> Pages[DeadLetterPage, DeadLetterView]:
    """Yields the tasks that failed for good, the newest first."""
    size = _page_size(limit, MAX_DEAD_LETTERS)
    return Pages(
        lambda cursor: dead_letter_page(size, cursor),
        lambda page: (page.dead_letters, page.next_cursor),
        limit,
    )


def logs(
    task_id: str, *, follow: bool = False, level: LogLevel = "INFO"
) -> Pages[LogPage, LogLine] | LogFlow:
    """Yields the lines of a task's logs, in order of time.

    Args:
        task_id: Whose.
        follow: Go on until the task has ended; a broken connection goes on where it broke.
        level: The lowest level to show; `DEBUG` has all of Dagster's events.
    """
    if follow:
        return LogFlow(below(TASKS, task_id, "logs"), level)
    return Pages(
        lambda cursor: log_page(task_id, cursor, level=level),
        # More may come as long as the task has not ended: a page with nothing on it is the last.
        lambda page: (page.lines, page.next_cursor if page.count else None),
    )


def wait(tasks: SubmitReply | Iterable[str], *, timeout_s: float | None = None) -> Waiting:
    """Returns tasks when all of them have ended, whatever became of them.

    Args:
        tasks: What `submit` answered, or ids of tasks or workflows.
        timeout_s: How long to wait; None is endless.

    Raises:
        NotEndedError: If that was too short.
    """
    if isinstance(tasks, SubmitReply):
        tasks = [each.workflow_id for each in tasks.tasks]
    ids = [tasks] if isinstance(tasks, str) else tasks
    return Waiting(ids, look, timeout_s)


def rows(task_id: str) -> RowFlow:
    """Yields the rows of a task's result, in the order of its input."""
    return RowFlow(_result(task_id, "jsonl"))


def save_result(
    task_id: str,
    target: Path,
    format: Literal["json", "jsonl", "parquet", "csv"] = "parquet",
) -> Download:
    """Saves a task's result, and returns where; the file appears whole.

    Args:
        task_id: Whose.
        target: A file, or a folder for `<task_id>.<format>`.
        format: Which one.
    """
    return Download(_result(task_id, format), target, f"{task_id}.{format}")


def save_file(task_id: str, name: str, target: Path) -> Download:
    """Saves a file that a task left, and returns where; it appears whole.

    Args:
        task_id: Whose.
        name: The file's name below the task's folder.
        target: A file, or a folder for a file of that name.
    """
    folder = below(RESULTS, task_id, "files")
    ask = Ask(method="GET", path=f"{folder}/{quote(name)}")
    return Download(ask, target, name.rsplit("/", 1)[-1])


def save_bundle(task_id: str, target: Path) -> Download:
    """Saves all files of a task as one tar archive, and returns where; it appears whole.

    Args:
        task_id: Whose.
        target: A file, or a folder for `<task_id>.tar`.
    """
    ask = Ask(method="GET", path=below(RESULTS, task_id), query=(("bundle", "tar"),))
    return Download(ask, target, f"{task_id}.tar")


def _result(task_id: str, format: str) -> Ask:
    return Ask(method="GET", path=below(RESULTS, task_id), query=(("format", format),))


def _page_size(limit: int | None, most: int) -> int:
    return _PAGE if limit is None else max(1, min(limit, most))
