"""Dead letters, workers, cleanup."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query
from fastapi.responses import Response

from mloc_dagster.api.cleanup import clean_up
from mloc_dagster.api.dead_letters import dead_letters
from mloc_dagster.api.openapi import problems
from mloc_dagster.api.parameters import Cursor
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import State, reply
from mloc_dagster.errors import nearest_hint
from mloc_dagster.wire import (
    CleanupReport,
    CleanupRequest,
    DeadLetterPage,
    WorkerPage,
    WorkerReply,
)

router = APIRouter(tags=["operation"])


@router.get(
    "/api/v1/dead_letters",
    response_model=DeadLetterPage,
    responses=problems(422),
    summary="Tasks that failed for good",
)
def list_dead_letters(
    api: State,
    limit: Annotated[int, Query(ge=1, le=200, description="Entries on a page.")] = 50,
    cursor: Cursor = None,
) -> Response:
    """Returns the tasks that wait for somebody to decide; `retry` takes one out."""
    return reply(dead_letters(api, limit, cursor))


@router.get(
    "/workers", response_model=WorkerPage, responses=problems(409, 422), summary="Live workers"
)
def list_workers(api: State) -> Response:
    """Returns what workers own, what they have warm, what they run."""
    workers = tuple(api.fleet.workers())
    return reply(WorkerPage(count=len(workers), workers=workers))


@router.get(
    "/workers/{worker_id}",
    response_model=WorkerReply,
    responses=problems(404, 409, 422),
    summary="One worker",
)
def show_worker(
    api: State,
    worker_id: Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^\x00/]+$")],
) -> Response:
    """Returns a worker as it was last heard of, alive or lost within a day."""
    worker, alive = api.fleet.worker(worker_id)
    if worker is None:
        hint = nearest_hint(worker_id, [each.worker_id for each in api.fleet.workers()])
        raise Refusal(404, "unknown-worker", f"there is no worker {worker_id!a}{hint}")
    return reply(WorkerReply(worker=worker, alive=alive))


@router.post(
    "/admin/cleanup",
    response_model=CleanupReport,
    responses=problems(400, 408, 409, 413, 422),
    summary="Remove what nobody needs",
)
def cleanup(api: State, wanted: Annotated[CleanupRequest | None, Body()] = None) -> Response:
    """Says what could go, and with `dry_run: false` removes it; `more` asks for another call."""
    return reply(clean_up(api, wanted or CleanupRequest()))
