"""Endpoints of dead letters, workers and cleanup, and what they do."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query
from fastapi.responses import Response

from mloc_dagster.api.openai.batch_state import settle_all
from mloc_dagster.api.openapi import problems
from mloc_dagster.api.parameters import Cursor
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.errors import nearest_hint
from mloc_dagster.ledger import TaskEntry, TaskFilter
from mloc_dagster.results import RECORD_NAME, Folder, ResultStore, forget as forget_secrets
from mloc_dagster.wire import (
    CleanupItem,
    CleanupReport,
    CleanupRequest,
    DeadLetterPage,
    DeadLetterView,
    TaskState,
    WorkerPage,
    WorkerReply,
)


def dead_letters(api: ApiState, limit: int, cursor: str | None) -> DeadLetterPage:
    """Returns the latest tasks that failed for good."""
    chosen = TaskFilter(states=(TaskState.DEAD,))
    entries, following = api.ledger.list(chosen, limit=limit, cursor=cursor)
    letters = tuple(_letter(api, each) for each in entries)
    return DeadLetterPage(count=len(letters), dead_letters=letters, next_cursor=following)


def _letter(api: ApiState, entry: TaskEntry) -> DeadLetterView:
    missing = None if entry.rows is None else max(0, entry.rows - (entry.rows_finished or 0))
    fields: dict[str, object] = {
        "task_id": entry.task_id,
        "workflow_id": entry.workflow_id,
        "run_id": entry.run_id,
        "template": entry.template,
        "node": entry.node,
        "owner": entry.owner,
        "failed_at": entry.ended_at,
        "reason": entry.error or "its run failed",
        "rows": entry.rows,
        "rows_finished": entry.rows_finished,
        "rows_missing": missing,
        "errors": entry.errors,
    }
    if entry.run_id is not None and entry.batch_key is None:
        fields |= _of_run(api, entry, entry.run_id)
    return DeadLetterView.model_validate(fields)


def _of_run(api: ApiState, entry: TaskEntry, run_id: str) -> dict[str, object]:
    """Returns which shards of a run failed, how often, and what they said last."""
    from mloc_dagster.tasks import (
        failed_steps,
        failures_of,
        find_workflows,
        steps_of,
        why_not_begun,
    )

    instance = api.fleet.instance()
    workflow = find_workflows(instance, [entry.workflow_id]).get(entry.workflow_id)
    if workflow is None:
        return {}
    task = next((each for each in workflow.tasks() if each.task_id == entry.task_id), None)
    if task is None:
        return {}
    failures = failures_of(instance, run_id, task)
    steps = steps_of(instance, [workflow.latest])
    reason = {} if entry.error else {"reason": why_not_begun(instance, run_id)}
    return {**failed_steps(failures, steps, api.store.task(entry.task_id)), **reason}


_ENDED = tuple(each for each in TaskState if each.ended)
_PAGE = 500
MOST_ITEMS = 1_000
"""What one call removes: its caller waits for the answer."""

_BATCHES = ".batches"
_BATCH_OUTCOME = "outcome.json"


@dataclass(frozen=True, slots=True)
class _Found:
    item: CleanupItem
    remove: Callable[[], object]


def clean_up(api: ApiState, wanted: CleanupRequest) -> CleanupReport:
    """Removes what was asked for, or says what would be removed."""
    if not wanted.dry_run:
        settle_all(api)  # what batches came to outlives their results
    found: list[_Found] = []
    more = False
    for each in _all(api, wanted):
        if len(found) == MOST_ITEMS:
            more = True
            break
        found.append(each)
    if not wanted.dry_run:
        for each in found:
            each.remove()
    items = tuple(each.item for each in found)
    return CleanupReport(
        dry_run=wanted.dry_run,
        count=len(items),
        bytes=sum(each.bytes for each in items),
        items=items,
        more=more,
    )


def _all(api: ApiState, wanted: CleanupRequest) -> Iterator[_Found]:
    if wanted.stale_workers:
        yield from _stale_workers(api)
    if wanted.orphaned_shards:
        yield from _orphaned_shards(api)
    if wanted.results_older_than_days is not None or wanted.results_max_bytes is not None:
        yield from _results(api, wanted)


def _stale_workers(api: ApiState) -> Iterator[_Found]:
    for worker_id in api.fleet.silent_workers():
        item = CleanupItem(kind="worker", name=worker_id, reason="its heartbeat has lapsed")
        yield _Found(item, api.fleet.strike_off)  # all of them at the first call


def _orphaned_shards(api: ApiState) -> Iterator[_Found]:
    """Yields shards without a task, and what is left of batches that were handed out."""
    store = api.store
    root = _root(store)
    for name in root:
        folder = store.folder(name)
        # A result that was posted lies in a folder without a record, too; shards do not.
        left = folder.exists("shards") and not folder.exists(RECORD_NAME)
        if left and api.ledger.task(name) is None:
            yield _shards(folder, name, "no task has this id")
    batches = store.folder(_BATCHES)
    at_work = {each.run_id for each in api.ledger.open_runs()}
    for name in batches.list():
        if name not in at_work and batches.exists(f"{name}/{_BATCH_OUTCOME}"):
            size = sum(batches.sizes(name).values())
            reason = "a batch that was handed out: its tasks have results of their own"
            item = CleanupItem(kind="shards", name=f"{_BATCHES}/{name}", bytes=size, reason=reason)
            yield _Found(item, partial(batches.delete, name))


def _root(store: ResultStore) -> Iterator[str]:
    # `task_ids` names only folders with a record.
    known = store.folder(".uploads").url.rpartition("/")[0]
    if "://" in known:
        return
    with suppress(FileNotFoundError):
        for path in sorted(pathlib.Path(known).iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield path.name


def _shards(folder: Folder, name: str, reason: str) -> _Found:
    size = sum(folder.sizes("shards").values())
    item = CleanupItem(kind="shards", name=name, bytes=size, reason=reason)
    return _Found(item, partial(folder.delete, "shards"))


def _results(api: ApiState, wanted: CleanupRequest) -> Iterator[_Found]:
    """Yields whole results, the oldest first."""
    days, most = wanted.results_older_than_days, wanted.results_max_bytes
    cutoff = None if days is None else datetime.now(UTC) - timedelta(days=days)
    ended = sorted(_ended(api, None if most is not None else cutoff), key=_ended_at)
    total = 0 if most is None else sum(_size(api, each) for each in ended)
    for entry in ended:
        if cutoff is not None and _ended_at(entry) < cutoff:
            reason = f"ended {_ended_at(entry):%Y-%m-%d}"
        elif most is not None and total > most:
            reason = f"the oldest, with {total:,} bytes in all"
        else:
            return
        size = _size(api, entry)
        total -= size
        item = CleanupItem(kind="result", name=entry.task_id, bytes=size, reason=reason)
        yield _Found(item, partial(_forget, api, entry.task_id))


def _ended(api: ApiState, before: datetime | None) -> Iterator[TaskEntry]:
    chosen = TaskFilter(states=_ENDED, submitted_before=before)
    cursor: str | None = None
    while True:
        page, cursor = api.ledger.list(chosen, limit=_PAGE, cursor=cursor)
        # What has ended may be read by the stages after it.
        yield from (each for each in page if _workflow_has_ended(api, each))
        if cursor is None:
            return


def _workflow_has_ended(api: ApiState, entry: TaskEntry) -> bool:
    if entry.task_id == entry.workflow_id:  # the only task of its template
        return True
    return all(each.state.ended for each in api.ledger.workflow(entry.workflow_id))


def _ended_at(entry: TaskEntry) -> datetime:
    return entry.ended_at or entry.submitted_at


def _size(api: ApiState, entry: TaskEntry) -> int:
    return sum(api.store.task(entry.task_id).sizes().values())


def _forget(api: ApiState, task_id: str) -> None:
    # The ledger last: until then another call finds the rest. What was retried since stays.
    api.ledger.forget(
        [task_id],
        lambda ended: _empty(api.store.task(ended)),
        partial(forget_secrets, api.store),
    )


def _empty(folder: Folder) -> None:
    forget_secrets(folder.store, folder.name)
    for name in folder.list():
        folder.delete(name)
    if "://" not in folder.url:
        with suppress(OSError):
            pathlib.Path(folder.url).rmdir()


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
