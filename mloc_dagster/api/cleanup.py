"""What may go: workers that fell silent, shards of nobody, results that are old or too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from mloc_dagster.api.state import ApiState
from mloc_dagster.ledger.model import TaskEntry, TaskFilter
from mloc_dagster.results import literal_secrets
from mloc_dagster.results.record import RECORD_NAME
from mloc_dagster.results.store import Folder, ResultStore
from mloc_dagster.wire import CleanupItem, CleanupReport, CleanupRequest, TaskState

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
        for path in sorted(Path(known).iterdir()):
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
        partial(literal_secrets.forget, api.store),
    )


def _empty(folder: Folder) -> None:
    literal_secrets.forget(folder.store, folder.name)
    for name in folder.list():
        folder.delete(name)
    if "://" not in folder.url:
        with suppress(OSError):
            Path(folder.url).rmdir()
