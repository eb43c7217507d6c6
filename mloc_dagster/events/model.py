"""Events of tasks. Frozen; their `event_id` is derived from what happened."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class TaskEventType(StrEnum):
    """What can happen to a task or one of its shards."""

    TASK_STARTED = "TASK_STARTED"
    TASK_PROGRESS = "TASK_PROGRESS"
    SHARD_STARTED = "SHARD_STARTED"
    SHARD_SUCCEEDED = "SHARD_SUCCEEDED"
    SHARD_FAILED = "SHARD_FAILED"
    TASK_SUCCEEDED = "TASK_SUCCEEDED"


class ShardPlace(BaseModel):
    """Which shard of how many."""

    model_config = ConfigDict(frozen=True)

    index: int
    total: int


class Progress(BaseModel):
    """Numbers that go with an event; each is an increment since the last event of its shard.

    Attributes:
        rows: Rows.
        tokens: Tokens written by the model.
        errors: Rows that ended with an error.
    """

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    tokens: int = 0
    errors: int = 0


class TaskEvent(BaseModel):
    """One fact about a task."""

    model_config = ConfigDict(frozen=True)

    type: TaskEventType
    task_id: str
    run_id: str
    node: str
    attempt: int = 1
    shard: ShardPlace | None = None
    error: str | None = None
    payload: Progress = Progress()
    ts: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def event_id(self) -> str:
        """The same for the same fact, however often it is published."""
        place = "" if self.shard is None else str(self.shard.index)
        moment = self.ts.isoformat() if self.type is TaskEventType.TASK_PROGRESS else ""
        fact = "\0".join([self.type, self.task_id, place, str(self.attempt), moment])
        return hashlib.sha256(fact.encode()).hexdigest()[:32]
