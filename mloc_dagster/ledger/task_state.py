"""The words that say how a task is."""

from __future__ import annotations

from enum import StrEnum


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
