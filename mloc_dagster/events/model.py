"""Events of tasks and of workers. Frozen; their `event_id` is derived from what happened."""

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

from mloc_dagster.events.payloads import Payload, WorkerPayload, WorkerState
from mloc_dagster.redaction import redact


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


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


def _now() -> datetime:
    return datetime.now(UTC)


def _is_none(value: object) -> bool:
    return value is None


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
