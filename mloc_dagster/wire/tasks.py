"""Tasks over HTTP: submitted, listed, watched, changed; their results and files."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field, JsonValue

from mloc_dagster.wire.base import Finding, Moment, Reply, Wire


class TaskState(StrEnum):
    """How a task is."""

    WAITING = "WAITING"
    """For tasks that it depends on."""

    PENDING = "PENDING"
    """For somebody who works on it."""

    DISPATCHED = "DISPATCHED"
    """A run worker has it; no shard has begun."""

    RUNNING = "RUNNING"
    """Shards are computed, or the result is written."""

    DONE = "DONE"
    """The result is complete."""

    FAILED = "FAILED"
    """It failed, and nobody has decided yet whether for good."""

    CANCELLED = "CANCELLED"
    """Somebody stopped it; finished rows are kept."""

    DEAD = "DEAD"
    """It failed for good: a dead letter."""

    @property
    def ended(self) -> bool:
        """Whether nothing happens any more unless somebody asks for it."""
        return self in (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.DEAD)


ENDED = tuple(each for each in TaskState if each.ended)
"""The states of tasks with which nothing happens any more by itself."""


TaskOrigin = Literal["api", "run", "launch", "schedule", "dagster"]
"""What made a task: the HTTP API, `mloc run`, `mloc launch`, a schedule or sensor, or anything else
of Dagster, such as its UI and `dagster job execute`."""


class SubmittedTask(Wire):
    """A task that was accepted."""

    task_id: str
    workflow_id: str
    status: TaskState
    """`PENDING`, or `WAITING` for the tasks that it depends on."""
    template: str
    node: str
    task_type: str
    depends_on: tuple[str, ...] = ()


class SubmitReply(Reply):
    """202: on disk, and it will run. The same again for the same `Idempotency-Key`."""

    count: int
    """How many tasks."""
    tasks: tuple[SubmittedTask, ...]
    """In the order of the documents and of their nodes."""
    warnings: tuple[Finding, ...] = ()


class Shards(Wire):
    """A task's shards by what they do."""

    queued: int = 0
    """Waiting for a worker, for another attempt, or for their run."""
    running: int = 0
    done: int = 0
    failed: int = 0
    """Given up."""

    @property
    def total(self) -> int:
        """All of them; 0 before they are cut."""
        return self.queued + self.running + self.done + self.failed


class TaskView(Wire):
    """A task, as lists show it."""

    task_id: str
    workflow_id: str
    node: str
    task_type: str
    template: str
    owner: str = ""
    origin: TaskOrigin = "api"
    """What made it."""
    labels: Mapping[str, str] = {}
    depends_on: tuple[str, ...] = ()
    """Nodes of the same workflow."""
    status: TaskState
    waiting_for: str = ""
    """Why it is not running; empty when it is."""
    run_id: str | None = None
    """The newest Dagster run that works on it."""
    runs: int = 0
    due: AwareDatetime | None = None
    submitted_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    worker_id: str | None = None
    """Who computed its last shard."""
    rows: int | None = None
    """Rows of its input; null before it is known."""
    rows_finished: int | None = None
    errors: int | None = None
    """Rows that ended with an error."""
    error: str = ""
    cancelling: bool = False
    """Whether it was asked to stop and has not ended since."""


class TrainingView(Wire):
    """How far a training is."""

    step: int
    """Steps done; after a restart those of the newest checkpoint."""
    steps: int | None = None
    """How many there will be; null while nobody said."""
    metrics: Mapping[str, float] = {}
    """What was logged last, as the trainer names it; closing figures once it is done."""
    steps_per_s: float | None = None
    eta_s: float | None = None
    """Seconds until the last step."""
    seconds: float | None = None
    """Wall seconds of the attempt that finished it."""
    checkpoint: int | None = None
    """The step of the newest checkpoint."""
    gate: str = ""
    """Whether and why the model is handed on."""
    told_at: AwareDatetime | None = None
    """When that was so."""


class TaskDetail(TaskView):
    """A task with what only its run and its folder know."""

    shards: Shards = Shards()
    retries: int = 0
    """Attempts at shards that failed and were followed by another, in the newest run."""
    losses: int = 0
    """Workers that were lost with a shard, in the newest run; they cost no retry."""
    workers: Mapping[int, str] = {}
    """Who computes which shard now."""
    folder: str = ""
    """Where its results are."""
    counts: Mapping[str, int] = {}
    """What has happened so far of what its task type counts: an agent's `turns`, `tool_calls` and
    `failed_calls`."""
    training: TrainingView | None = None
    """Of a task that trains."""
    metrics: Mapping[str, float] = {}
    """Means of the scores of a task that is done, by metric."""
    budget: str = ""
    """Which budget the task reached, and how far it came; empty if it reached none."""


class TaskReply(TaskDetail, Reply):
    """`GET /api/v1/tasks/{id}`."""


class TaskPage(Reply):
    """`GET /api/v1/tasks`: the newest first."""

    count: int
    """Tasks on this page."""
    tasks: tuple[TaskView, ...]
    next_cursor: str | None = None
    """For the next page; null on the last one."""


class WorkflowReply(Reply):
    """`GET /api/v1/workflows/{id}`: the tasks of one submitted document, in its order."""

    workflow_id: str
    template: str
    status: TaskState
    """Of the whole: the first that holds of any task among DEAD, FAILED, CANCELLED, RUNNING,
    DISPATCHED, PENDING, WAITING; else DONE."""
    count: int
    tasks: tuple[TaskView, ...]


LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class LogLine(Wire):
    """One line of a task's logs."""

    source: str
    """`run` for the Dagster run, else the log file without its ending: `shard-0000`."""
    at: AwareDatetime | None = None
    level: str = "INFO"
    text: str


class LogPage(Reply):
    """`GET /api/v1/tasks/{id}/logs`.

    With `?follow=true`, or `Accept: text/event-stream`, it is events: some named `log` whose data
    is a `LogLine`, then one named `end` whose data is a `LogEnd`. Their ids are cursors, and with
    `Last-Event-ID` they go on from there.
    """

    task_id: str
    count: int
    lines: tuple[LogLine, ...]
    next_cursor: str
    """For what comes after; always there, as more may come while the task has not ended."""
    ended: bool
    """Whether the task has ended and this page reaches the end of its logs."""


class LogEnd(Wire):
    """The last event of a live log."""

    task_id: str
    status: TaskState


class ProgressReply(Reply):
    """`GET /api/v1/tasks/{id}/progress`."""

    task_id: str
    status: TaskState
    rows: int | None = None
    rows_finished: int | None = None
    errors: int | None = None
    shards: Shards = Shards()
    counts: Mapping[str, int] = {}
    """As in `TaskDetail`."""
    fraction: float | None = None
    """0 to 1; null before the rows are known."""
    rows_per_s: float | None = None
    """Since it started; null before there is anything to divide."""
    eta_s: float | None = None
    waiting_for: str = ""


class ChangedTask(Wire):
    """What became of a task that was to be changed."""

    task_id: str
    status: TaskState
    cancelling: bool = False


class ChangeReply(Reply):
    """202 of `cancel` and `retry`."""

    count: int
    tasks: tuple[ChangedTask, ...]


class RetryRequest(Wire):
    """Body of `retry`; may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scope: Literal["failed_shards", "failed_rows", "all"] = "failed_shards"
    """`failed_shards` computes what is missing; `failed_rows` also the rows that ended with an
    error; `all` does that for every task of the workflow that has something to retry."""


class ResultIn(Wire):
    """Body of `POST /api/v1/results`: a `responses.json`."""

    task_id: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$")
    worker_id: str | None = Field(default=None, max_length=200)
    metadata: Mapping[str, JsonValue] = {}
    received_at: Moment | None = None
    """By default now."""
    result: Mapping[str, JsonValue]


class ResultStored(Reply):
    """201 when it is new, 200 when it was there."""

    task_id: str
    name: str
    """The file's name below the task's folder."""
    size: int
    sha256: str
    stored: bool
    """False when the same content was there."""


class FileView(Wire):
    """A file of a task."""

    name: str
    """Below the task's folder, with forward slashes."""
    size: int
    sha256: str | None = None
    """As the manifest says; null where it does not."""


class TrajectoryCall(Wire):
    """A call of a tool."""

    id: str
    tool: str
    arguments: str
    """A JSON object, as the model wrote it."""

    output: str | None = None
    """What the tool answered; None while it has not."""

    failed: bool = False
    """Whether `output` says what went wrong."""

    seconds: float | None = None
    turns: tuple[TrajectoryTurn, ...] = ()
    """The turns of the agent that answers it, where one does."""


class TrajectoryTurn(Wire):
    """What the model said in one turn, and what came of its calls."""

    turn: int
    text: str
    reasoning: str | None = None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    seconds: float
    calls: tuple[TrajectoryCall, ...] = ()


class TrajectoryView(Reply):
    """How an agent came to its answer to a row, as far as it has come."""

    task_id: str
    index: int
    prompt: str
    output: str | None = None
    """The answer; None while there is none."""

    error: str | None = None
    stop: str = ""
    """What ended it: `answer`, `max_steps`, `budget`, `timeout` or `error`."""

    turns: tuple[TrajectoryTurn, ...]


class FilePage(Reply):
    """`GET /api/v1/results/{id}/files`."""

    task_id: str
    count: int
    files: tuple[FileView, ...]


class FilesStored(Reply):
    """201 of `POST /api/v1/results/{id}/files`."""

    task_id: str
    count: int
    files: tuple[ResultStored, ...]
