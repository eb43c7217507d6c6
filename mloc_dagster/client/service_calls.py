"""Every endpoint about results, workers and the service itself, once; see `client.calls`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mloc_dagster.client.call import Call, FilePart, reading
from mloc_dagster.client.calls import JSON_BODY, below, page_query
from mloc_dagster.wire import (
    CleanupReport,
    CleanupRequest,
    DeadLetterPage,
    FilePage,
    FilesStored,
    Health,
    Readiness,
    ResultIn,
    ResultStored,
    WorkerPage,
    WorkerReply,
)

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
