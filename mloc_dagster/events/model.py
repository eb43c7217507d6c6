"""Events of tasks and workers. They are frozen; an `event_id` is derived from what happened."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    computed_field,
)

from mloc_dagster.redaction import redact


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return not value


def _is_zero(value: object) -> bool:
    return value == 0


Reason = Annotated[str | None, PlainSerializer(_redacted)]


class SloMiss(BaseModel):
    """A promise that was not kept."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    seconds: float
    """Seconds that the template allows from submission to the last result."""

    elapsed_s: float
    """Seconds since submission when the miss was noticed."""

    late_s: float
    """How many of them were too many."""


class TrainingFigures(BaseModel):
    """How far a training is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    step: int
    """Optimiser steps done, those before a resume included."""

    steps: int
    """How many there will be; 0 while that is unknown."""

    steps_per_s: float
    """Steps in a second, in this attempt."""

    metrics: dict[str, float]
    """What was logged last: `loss`, `learning_rate`, …, as the trainer names it."""


class Payload(BaseModel):
    """Numbers and reasons that go with a task's event; what does not apply is 0 or absent."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: int = 0
    """Rows: of the whole task when it starts or succeeds, finished since the last event of the
    shard in TASK_PROGRESS, found from earlier attempts in SHARD_SUCCEEDED."""

    resumed: int = Field(default=0, exclude_if=_is_zero)
    """Rows of the shard that earlier attempts had finished, in its first TASK_PROGRESS."""

    tokens: int = 0
    """Tokens written by the model since the last event of the shard."""

    prompt_tokens: int = Field(default=0, exclude_if=_is_zero)
    """Tokens read by the model since the last event of the shard."""

    cached_tokens: int = Field(default=0, exclude_if=_is_zero)
    """How many of these it found in its prefix cache."""

    reused: int = Field(default=0, exclude_if=_is_zero)
    """Rows since the last event of the shard that took an answer which was there already."""

    errors: int = 0
    """Rows that ended with an error since the last event of the shard."""

    counts: dict[str, int] = Field(default_factory=dict, exclude_if=_is_empty)
    """What has happened in the shard by now of what its task type counts, all its attempts
    included, in TASK_PROGRESS: an agent's `turns`, `tool_calls` and `failed_calls`."""

    eta_s: float | None = Field(default=None, exclude_if=_is_none)
    """Seconds until the shard's last row, at its speed of late, in TASK_PROGRESS; absent while no
    speed is known."""

    training: TrainingFigures | None = Field(default=None, exclude_if=_is_none)
    """How far a training is, in its TASK_PROGRESS."""

    losses: int = Field(default=0, exclude_if=_is_zero)
    """How many workers this attempt at the shard has lost, in TASK_REQUEUED."""

    reason: Reason = Field(default=None, exclude_if=_is_none)
    """Why, in a sentence; credentials in it are masked."""

    slo: SloMiss | None = Field(default=None, exclude_if=_is_none)
    """The numbers of TASK_SLO_MISSED."""

    slo_s: float | None = Field(default=None, exclude_if=_is_none)
    """Seconds that the template allows from submission to the last result, in TASK_STARTED."""

    due: AwareDatetime | None = Field(default=None, exclude_if=_is_none)
    """When these seconds are over, in TASK_STARTED."""


class WorkerState(StrEnum):
    """What a worker does, as the registry has it."""

    STARTING = "STARTING"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    LOST = "LOST"


class WorkerPayload(BaseModel):
    """Where a worker runs and what it holds; what does not apply is absent or empty."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    host: str = ""
    """The machine's name."""

    pid: int = 0
    """The process that holds its devices."""

    queues: tuple[str, ...] = ()
    """Where it takes work from."""

    warm_models: tuple[str, ...] = ()
    """Keys of the models it has loaded."""

    running: tuple[str, ...] = ()
    """Tickets it has claimed."""

    since: AwareDatetime | None = Field(default=None, exclude_if=_is_none)
    """When the process began, or for LOST its last heartbeat: what tells two such facts apart."""

    reason: Reason = Field(default=None, exclude_if=_is_none)
    """Why, in a sentence; credentials in it are masked."""


class TaskEventType(StrEnum):
    """What can happen to a task or one of its shards."""

    TASK_SUBMITTED = "TASK_SUBMITTED"
    TASK_STARTED = "TASK_STARTED"
    TASK_PROGRESS = "TASK_PROGRESS"
    SHARD_STARTED = "SHARD_STARTED"
    SHARD_SUCCEEDED = "SHARD_SUCCEEDED"
    SHARD_FAILED = "SHARD_FAILED"
    TASK_REQUEUED = "TASK_REQUEUED"
    TASK_SUCCEEDED = "TASK_SUCCEEDED"
    TASK_FAILED = "TASK_FAILED"
    TASK_CANCELLED = "TASK_CANCELLED"
    TASK_DEAD_LETTERED = "TASK_DEAD_LETTERED"
    TASK_SLO_MISSED = "TASK_SLO_MISSED"


class WorkerEventType(StrEnum):
    """What can happen to a worker."""

    REGISTER = "REGISTER"
    HEARTBEAT = "HEARTBEAT"
    STATUS = "STATUS"
    UNREGISTER = "UNREGISTER"
    LOST = "LOST"


class TaskState(StrEnum):
    """What a task, or the shard that an event is about, is after the event."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"
    LATE = "late"


_STATE_AFTER = {
    TaskEventType.TASK_SUBMITTED: TaskState.QUEUED,
    TaskEventType.TASK_STARTED: TaskState.RUNNING,
    TaskEventType.TASK_PROGRESS: TaskState.RUNNING,
    TaskEventType.SHARD_STARTED: TaskState.RUNNING,
    TaskEventType.SHARD_SUCCEEDED: TaskState.SUCCEEDED,
    TaskEventType.SHARD_FAILED: TaskState.FAILED,
    TaskEventType.TASK_REQUEUED: TaskState.QUEUED,
    TaskEventType.TASK_SUCCEEDED: TaskState.SUCCEEDED,
    TaskEventType.TASK_FAILED: TaskState.FAILED,
    TaskEventType.TASK_CANCELLED: TaskState.CANCELLED,
    TaskEventType.TASK_DEAD_LETTERED: TaskState.DEAD_LETTER,
    TaskEventType.TASK_SLO_MISSED: TaskState.LATE,
}

_MOMENTARY = {WorkerEventType.HEARTBEAT, WorkerEventType.STATUS}

Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


def _now() -> datetime:
    return datetime.now(UTC)


class ShardPlace(BaseModel):
    """Which shard of how many."""

    model_config = ConfigDict(frozen=True)

    index: int = Field(ge=0)
    """Its number, from 0."""

    total: int = Field(ge=0)
    """Shards of the task; 0 where whoever publishes does not know."""


class TaskEvent(BaseModel):
    """One fact about a task.

    The status of an event about a shard is that of the shard.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: TaskEventType
    """What happened."""

    task_id: str
    """The task, which names its folder below the results root."""

    run_id: str
    """The Dagster run."""

    node: str = ""
    """The stage or node of the template; empty when the fact is about all of the run's tasks."""

    worker_id: str | None = None
    """Who was at it, where that is known."""

    attempt: int = Field(default=1, ge=1)
    """Which attempt at the shard, from 1."""

    shard: ShardPlace | None = Field(default=None, exclude_if=_is_none)
    """The shard, when the fact is about one."""

    error: Annotated[str | None, PlainSerializer(_redacted)] = Field(
        default=None, exclude_if=_is_none
    )
    """What went wrong; credentials in it are masked wherever the event is written."""

    payload: Payload = Payload()
    """Numbers and reasons."""

    ts: Moment = Field(default_factory=_now)
    """When it happened, in UTC."""

    @computed_field(description="The same for the same fact, however often it is published.")
    @property
    def event_id(self) -> str:
        """The same for the same fact, however often it is published.

        A submission is known by its task alone: it may be published before there is a run.
        """
        run = "" if self.type is TaskEventType.TASK_SUBMITTED else self.run_id
        place = "" if self.shard is None else str(self.shard.index)
        moment = self.ts.isoformat() if self.is_momentary else ""
        losses = str(self.payload.losses or "")
        return _digest(self.type, self.task_id, run, place, str(self.attempt), losses, moment)

    @computed_field(description="What the task, or the shard, is after it.")
    @property
    def status(self) -> TaskState:
        """What the task, or the shard, is after it."""
        return _STATE_AFTER[self.type]

    @property
    def is_momentary(self) -> bool:
        """Whether the next event of its kind makes up for its loss."""
        return self.type is TaskEventType.TASK_PROGRESS


class WorkerEvent(BaseModel):
    """One fact about a worker."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: WorkerEventType
    """What happened."""

    worker_id: str
    """The worker, as it registered."""

    status: WorkerState
    """What the worker does from then on."""

    payload: WorkerPayload = WorkerPayload()
    """Where it runs and what it holds."""

    ts: Moment = Field(default_factory=_now)
    """When it happened, in UTC."""

    @computed_field(description="The same for the same fact, however often it is published.")
    @property
    def event_id(self) -> str:
        """The same for the same fact, however often and by whomever it is published.

        A registration is known by when the process began, a loss by the last heartbeat.
        """
        moment = self.ts if self.is_momentary else self.payload.since or self.ts
        return _digest(self.type, self.worker_id, moment.astimezone(UTC).isoformat())

    @property
    def is_momentary(self) -> bool:
        """Whether the next event of its kind makes up for its loss."""
        return self.type in _MOMENTARY


Event = TaskEvent | WorkerEvent


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
