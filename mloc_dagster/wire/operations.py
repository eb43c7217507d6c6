"""Workers, dead letters, cleanup and health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field, StrictBool

from mloc_dagster.fleet import WorkerInfo
from mloc_dagster.wire.base import Reply, Wire


class DeadLetterView(Wire):
    """A task that failed for good and waits for somebody to decide."""

    task_id: str
    workflow_id: str
    run_id: str | None = None
    template: str
    node: str
    owner: str = ""
    failed_at: AwareDatetime | None = None
    reason: str
    failed_shards: tuple[int, ...] = ()
    attempts: int = 0
    """Attempts at the step that failed, in its last run."""
    rows: int | None = None
    rows_finished: int | None = None
    rows_missing: int | None = None
    errors: int | None = None
    """Rows that are there and ended with an error; null before they were counted."""
    logs: Mapping[int, tuple[str, ...]] = {}
    """The last lines of each failed shard's log."""


class DeadLetterPage(Reply):
    """`GET /api/v1/dead_letters`: the newest first."""

    count: int
    dead_letters: tuple[DeadLetterView, ...]
    next_cursor: str | None = None


class WorkerPage(Reply):
    """`GET /workers`."""

    count: int
    workers: tuple[WorkerInfo, ...]


class WorkerReply(Reply):
    """`GET /workers/{id}`."""

    worker: WorkerInfo
    alive: bool
    """False for one that was lost within the last day."""


class CleanupRequest(Wire):
    """Body of `POST /admin/cleanup`: what to look for. By default nothing is removed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dry_run: StrictBool = True
    """Whether to say only what would be removed."""
    stale_workers: StrictBool = True
    """Workers whose heartbeat has lapsed."""
    orphaned_shards: StrictBool = True
    """Shard files of tasks that are done, whose rows are in the result as well."""
    results_older_than_days: float | None = Field(default=None, ge=0, le=36500, strict=True)
    """Whole results of tasks that ended longer ago; the tasks are forgotten with them."""
    results_max_bytes: int | None = Field(default=None, ge=0, le=2**63 - 1, strict=True)
    """Whole results of ended tasks, the oldest first, until the store holds at most these."""


class CleanupItem(Wire):
    """One thing that cleanup removes."""

    kind: Literal["worker", "shards", "result"]
    name: str
    """The worker's or the task's id."""
    bytes: int = 0
    reason: str


class CleanupReport(Reply):
    """What was removed, or would be."""

    dry_run: bool
    count: int
    bytes: int
    items: tuple[CleanupItem, ...]
    more: bool = False
    """Whether there is more than one call removes: call again."""


class Health(Reply):
    """`GET /healthz`: the process answers."""

    status: Literal["live"] = "live"
    version: str


class Check(Wire):
    """Whether one thing that the API needs is at hand."""

    ok: bool
    detail: str = ""


class Readiness(Wire):
    """`GET /healthz/ready`: 200, or 503 when something that accepting needs is away."""

    ok: bool
    checks: Mapping[str, Check]
