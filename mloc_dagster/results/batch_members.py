"""Small tasks that share a run: who they are, and what became of each."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from mloc_dagster.results.store import Folder, ResultStore

FOLDER = ".batches"
"""Where batches lie in the results; no task's name begins with a dot."""

_BATCH = "batch.json"
_OUTCOME = "outcome.json"


class Member(BaseModel):
    """One task of a batch.

    Attributes:
        task_id: The task, which is its workflow too.
        document: Its template, as it was submitted.
        submitted_at: When it was accepted.
        first: Place of its first row among the batch's rows.
        rows: How many it has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    document: dict[str, JsonValue]
    submitted_at: AwareDatetime
    first: int
    rows: int


class Batch(BaseModel):
    """Tasks that are computed together, their rows one after another.

    Attributes:
        batch_id: Also the id of the Dagster run.
        members: The tasks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_id: str
    members: tuple[Member, ...]

    @property
    def task_id(self) -> str:
        """The name under which all rows are computed, as if they were one task's."""
        return f"batch-{self.batch_id}"


class MemberOutcome(BaseModel):
    """What became of a task.

    Attributes:
        task_id: The task.
        state: `DONE`, `DEAD` (it failed for good) or `CANCELLED`.
        rows: Rows that are there.
        errors: How many of them have an error.
        error: Why it failed; empty when it did not.
        worker_id: Who computed its last row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    state: Literal["DONE", "DEAD", "CANCELLED"]
    rows: int = 0
    errors: int = 0
    error: str = ""
    worker_id: str | None = None


class Outcome(BaseModel):
    """What became of a batch.

    Attributes:
        tasks: One entry for each member.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[MemberOutcome, ...]


def batch_folder(store: ResultStore, batch_id: str) -> Folder:
    """Returns where a batch lies."""
    return store.folder(f"{FOLDER}/{batch_id}")


def write_batch(store: ResultStore, batch: Batch) -> None:
    """Writes a batch; it is durable when this returns."""
    batch_folder(store, batch.batch_id).write_bytes(_BATCH, batch.model_dump_json().encode())


def read_batch(store: ResultStore, batch_id: str) -> Batch:
    """Reads a batch; raises `FileNotFoundError` without one."""
    return Batch.model_validate_json(batch_folder(store, batch_id).read_bytes(_BATCH))


def write_outcome(store: ResultStore, batch_id: str, outcome: Outcome) -> None:
    """Writes what became of a batch: from then on it is done."""
    batch_folder(store, batch_id).write_bytes(_OUTCOME, outcome.model_dump_json().encode())


def read_outcome(store: ResultStore, batch_id: str) -> Outcome | None:
    """Returns what became of a batch; None before it is done."""
    try:
        return Outcome.model_validate_json(batch_folder(store, batch_id).read_bytes(_OUTCOME))
    except FileNotFoundError:
        return None


def mark_cancelled(store: ResultStore, batch_id: str, task_id: str) -> None:
    """Notes that somebody wants no result of a member any more."""
    batch_folder(store, batch_id).write_bytes(f"cancelled/{task_id}", b"")


def cancelled_members(store: ResultStore, batch_id: str) -> set[str]:
    """Returns the members of which nobody wants a result any more."""
    names = batch_folder(store, batch_id).list("cancelled")
    return {each.rpartition("/")[2] for each in names}


def delete_rows(store: ResultStore, batch: Batch) -> None:
    """Deletes the rows that were computed together: each member has its own by now."""
    folder = store.task(batch.task_id)
    for name in folder.list():
        folder.delete(name)
