"""The one word that says how a task is, derived from what Dagster, the fleet and the store know."""

from __future__ import annotations

from dataclasses import dataclass, field

from dagster import DagsterRunStatus
from pydantic import BaseModel, ConfigDict

from mloc_dagster.wire import TaskState


class ShardCounts(BaseModel):
    """A task's shards by what they do.

    Attributes:
        queued: Waiting for a worker, for another attempt, or for their run.
        running: On a worker.
        done: Complete.
        failed: Given up.
    """

    model_config = ConfigDict(frozen=True)

    queued: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All of them; 0 before they are cut."""
        return self.queued + self.running + self.done + self.failed


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the state of a task follows from.

    Attributes:
        run: The status of the newest run that works on it.
        claimed: Whether a run worker has that run.
        exported: Whether its last step succeeded.
        failed: Whether one of its steps failed for good.
        dead: Whether the run is marked with it as a dead letter.
        upstream_done: Whether the tasks that it depends on are done.
        shards: Its shards.
    """

    run: DagsterRunStatus
    claimed: bool = True
    exported: bool = False
    failed: bool = False
    dead: bool = False
    upstream_done: bool = True
    shards: ShardCounts = field(default_factory=ShardCounts)


_QUEUED = (
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.MANAGED,
)


def task_state(facts: TaskFacts) -> TaskState:
    """Returns how a task is."""
    if facts.exported or facts.run is DagsterRunStatus.SUCCESS:
        return TaskState.DONE
    if facts.run is DagsterRunStatus.CANCELED:
        return TaskState.CANCELLED
    if facts.run is DagsterRunStatus.FAILURE:
        return TaskState.DEAD if facts.dead else TaskState.FAILED
    if facts.run in _QUEUED:
        return TaskState.PENDING
    if facts.run is DagsterRunStatus.STARTING:
        return TaskState.DISPATCHED if facts.claimed else TaskState.PENDING
    return _of_started(facts)


def _of_started(facts: TaskFacts) -> TaskState:
    shards = facts.shards
    if facts.failed and not shards.running:
        return TaskState.FAILED
    if not facts.upstream_done:
        return TaskState.WAITING
    if not shards.total:
        return TaskState.DISPATCHED
    if shards.queued and not shards.running:
        return TaskState.PENDING
    return TaskState.RUNNING
