"""The ledger's records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from mloc_dagster.wire import TaskOrigin, TaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task that is about to be accepted.

    Attributes:
        task_id: Its id; the workflow's own when the template is one task.
        node: Its stage or node.
        task_type: What it does.
        depends_on: Nodes of the same template.
        rows: How many rows it is known to have before it is planned; None if unknown.
        batch_key: What small tasks must have in common to share a run; None for a run of its own.
        due: When its SLO says that it must be done.
    """

    task_id: str
    node: str
    task_type: str
    depends_on: tuple[str, ...] = ()
    rows: int | None = None
    batch_key: str | None = None
    due: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The `Idempotency-Key` of a request, and which of its documents a submission is.

    Attributes:
        key: As given.
        place: The document's, from 0.
        content_hash: Of all documents of the request, in order.
    """

    key: str
    place: int
    content_hash: str

    @property
    def name(self) -> str:
        """What is unique in the ledger."""
        return f"{self.key}#{self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A template that is about to be accepted, compiled.

    Attributes:
        workflow_id: A new uuid; all its tasks share it.
        template_name: Its `metadata.name`.
        owner: Its `metadata.owner`; may be empty.
        labels: Its `metadata.labels`.
        content_hash: Hex sha256 of the document as canonical JSON.
        document: The document as written.
        tasks: In the template's order; at least one.
        request: What tells that a request comes again; None without an `Idempotency-Key`.
    """

    workflow_id: str
    template_name: str
    owner: str
    labels: Mapping[str, str]
    content_hash: str
    document: Mapping[str, JsonValue]
    tasks: tuple[NewTask, ...]
    request: Request | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWorkflow:
    """The tasks of runs that the API did not make.

    Attributes:
        workflow_id: What they share.
        runs: The runs that work on them, the newest last; at least one.
        origin: What made the first of them.
        template_name: The template's.
        owner: The template's; may be empty.
        labels: The template's.
        submitted_at: When the first run was made.
        tasks: In the template's order.
    """

    workflow_id: str
    runs: tuple[str, ...]
    origin: TaskOrigin
    template_name: str
    owner: str
    labels: Mapping[str, str]
    submitted_at: datetime
    tasks: tuple[NewTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A task as the ledger knows it.

    Attributes:
        task_id: The task.
        workflow_id: What the tasks of one submission share.
        node: Its stage or node.
        task_type: What it does.
        template: The template's name.
        owner: Whose it is; may be empty.
        origin: What made it.
        labels: The template's labels.
        depends_on: Nodes of the same workflow that it depends on.
        state: How it is, as of the dispatcher's last look.
        waiting_for: Why it is not running; empty when it is.
        run_id: The newest Dagster run that works on it; None before there is one.
        runs: How many runs worked on it.
        batch_key: As accepted.
        due: When its SLO says that it must be done.
        submitted_at: When it was accepted.
        started_at: When its first run began.
        ended_at: When it ended.
        worker_id: Who computed its last shard; None if nobody said.
        rows: Rows of its input; None before it is known.
        rows_finished: Rows of its result.
        errors: Rows that ended with an error.
        error: Why it failed; empty when it did not.
        cancelling: Whether somebody asked to stop it and it has not ended since.
        retry_rows: Whether its next run computes rows again that ended with an error.
        place: Grows with each accepted task; what cursors are made of.
    """

    task_id: str
    workflow_id: str
    node: str
    task_type: str
    template: str
    owner: str = ""
    origin: TaskOrigin = "api"
    labels: Mapping[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    state: TaskState = TaskState.PENDING
    waiting_for: str = ""
    run_id: str | None = None
    runs: int = 0
    batch_key: str | None = None
    due: datetime | None = None
    submitted_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    worker_id: str | None = None
    rows: int | None = None
    rows_finished: int | None = None
    errors: int | None = None
    error: str = ""
    cancelling: bool = False
    retry_rows: bool = False
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks a list shows; what is None shows all.

    Attributes:
        states: Any of these.
        owner: Exactly.
        origin: Exactly.
        template: Exactly.
        task_type: Exactly.
        workflow_id: Exactly.
        worker_id: Exactly.
        labels: All of these.
        submitted_after: Not before this.
        submitted_before: Before this.
    """

    states: tuple[TaskState, ...] | None = None
    owner: str | None = None
    origin: TaskOrigin | None = None
    template: str | None = None
    task_type: str | None = None
    workflow_id: str | None = None
    worker_id: str | None = None
    labels: Mapping[str, str] | None = None
    submitted_after: datetime | None = None
    submitted_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """What is new about a task; None leaves a field as it is.

    Attributes:
        task_id: Which task.
        run_id: Only while this is its newest run: what is known of an older one is no news.
        state: How it is now.
        waiting_for: Why it is not running.
        started_at: When its run began; the first one stays.
        ended_at: When it ended.
        worker_id: Who computed its last shard.
        rows: Rows of its input.
        rows_finished: Rows of its result.
        errors: Rows that ended with an error.
        error: Why it failed.
    """

    task_id: str
    run_id: str
    state: TaskState | None = None
    waiting_for: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    worker_id: str | None = None
    rows: int | None = None
    rows_finished: int | None = None
    errors: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A Dagster run that the ledger has decided on; it may not exist yet.

    Attributes:
        run_id: Its id, fixed before it is created.
        workflow_id: The workflow that it carries; None for a batch.
        task_ids: The tasks that it works on.
        handed_over: Whether the fleet has it.
        retry_rows: Whether rows that ended with an error are computed again.
    """

    run_id: str
    workflow_id: str | None
    task_ids: tuple[str, ...]
    handed_over: bool = False
    retry_rows: bool = False
